"""What a lane sends, and in which order, on a real state file with a small CRM in memory."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cdcsync.apply.base import Limits
from cdcsync.coalesce import Event
from cdcsync.errors import TransientError
from cdcsync.model import Batch, Change, ChangeKind, Column, Op, Outcome, Ref, Rejected, Relation, Target
from cdcsync.route import Follow
from tests.polling import eventually_async
from tests.unit.test_pipeline import COMPANIES, PEOPLE, MemoryCrm, bench, companies, delete, insert, people, run, update

STAFF = Relation(3, "public", "staff", "f", tuple(Column(name, 25, -1, True) for name in ("id", "name", "manager")))


@dataclass(eq=False)
class Diary(MemoryCrm):
    """Notes what is sent, as (operation, object, key, fields), and may be out of order for some object."""

    sent: list[tuple[str, str, str, dict[str, Any]]] = field(default_factory=list)
    failing: frozenset[str] = frozenset()
    own: dict[str, object] = field(default_factory=dict)
    """What people have put into fields of any record."""

    def send(self, batch: Batch) -> list[Outcome]:
        if batch.target.object in self.failing:
            msg = "out of order"
            raise TransientError(msg)
        with self.lock:
            self.sent += [(batch.op.value, batch.target.object, one.key, dict(one.fields)) for one in batch.records]
        return super().send(batch)

    def read(self, target: Target, crm_ids: Iterable[str], fields: Iterable[str]) -> dict[str, dict[str, object]]:
        with self.lock:
            held = {record["id"]: record for (name, _), record in self.records.items() if name == target.object}
            found = {crm_id: held[crm_id] for crm_id in crm_ids if crm_id in held}
        return {
            crm_id: {name: self.own.get(name, record.get(name)) for name in fields} for crm_id, record in found.items()
        }

    def of(self, name: str) -> list[tuple[str, str, dict[str, Any]]]:
        return [(op, key, fields) for op, target, key, fields in self.sent if target == name]


def staff(**changes: Any) -> Any:
    """Map a table that refers to itself."""
    boss = {"column": "manager", "ref": "crm.User.Key"}
    given = {"name": "staff", "table": "staff", "to": "crm.User", "key": {"Key": "id"}}
    return people(**{**given, "fields": {"Name": "name", "Boss": boss}, **changes})


def test_only_what_changed_goes_out(tmp_path: Path) -> None:
    """A change of one field is an update of that field by the record's id; one that changes nothing costs nothing."""

    async def work() -> None:
        async with bench(tmp_path, people(fields={"Name": "name", "Town": "company"}), crm=(crm := Diary())) as at:
            at.commit(insert(PEOPLE, "1", "a", "x"))
            await at.settled()
            at.commit(update(PEOPLE, ["1", "a", "x"], ["1", "b", "x"]))
            await at.settled()
            at.commit(update(PEOPLE, ["1", "b", "x"], ["1", "b", "x"]))
            await at.settled()
            at.commit(update(PEOPLE, ["1", "b", "x"], ["1", "b", None]))
            await at.settled()
            assert crm.of("Contact") == [
                ("upsert", "1", {"Name": "a", "Town": "x"}),
                ("update", "1", {"Name": "b"}),
                ("update", "1", {"Town": None}),
            ]

    run(work)


def test_a_record_that_is_gone_is_made_anew_from_the_whole_row(tmp_path: Path) -> None:
    """An update of one field finds no record: what is created then has every field, not that one alone."""

    async def work() -> None:
        async with bench(tmp_path, people(fields={"Name": "name", "Town": "company"}), crm=(crm := Diary())) as at:
            at.commit(insert(PEOPLE, "1", "a", "x"))
            await at.settled()
            crm.records.clear()
            at.commit(update(PEOPLE, ["1", "a", "x"], ["1", "b", "x"]))
            await at.settled()
            assert crm.of("Contact")[-1] == ("upsert", "1", {"Name": "b", "Town": "x"})

    run(work)


def test_a_field_that_people_filled_stays_theirs(tmp_path: Path) -> None:
    """``only_if_empty``: sent with a new record and while the CRM has nothing there, never over what it has."""
    fields = {"Name": "name", "Phone": {"column": "company", "only_if_empty": True}}

    async def work() -> None:
        async with bench(tmp_path, people(fields=fields), crm=(crm := Diary())) as at:
            at.commit(insert(PEOPLE, "1", "a", None))
            await at.settled()
            at.commit(update(PEOPLE, ["1", "a", None], ["1", "a", "12"]))
            await at.settled()
            crm.own["Phone"] = "99"
            at.commit(update(PEOPLE, ["1", "a", "12"], ["1", "b", "13"]))
            await at.settled()
            at.commit(update(PEOPLE, ["1", "b", "13"], ["1", "c", None]))
            await at.settled()
            assert crm.of("Contact") == [
                ("upsert", "1", {"Name": "a", "Phone": None}),
                ("update", "1", {"Phone": "12"}),
                ("update", "1", {"Name": "b"}),
                ("update", "1", {"Name": "c"}),
            ]

    run(work)


def test_a_record_that_was_there_before_keeps_what_people_filled(tmp_path: Path) -> None:
    """The ledger knows nothing of a record that the CRM has: it is asked before such a field is written."""
    fields = {"Name": "name", "Phone": {"column": "company", "only_if_empty": True}}

    async def work() -> None:
        crm = Diary(own={"Phone": "99"}, records={("Contact", "1"): {"id": "Contact-1"}})
        async with bench(tmp_path, people(fields=fields), crm=crm) as at:
            at.commit(insert(PEOPLE, "1", "a", "12"))
            await at.settled()
            assert crm.of("Contact") == [("update", "1", {"Name": "a"})]

    run(work)


def test_rows_that_refer_to_each_other_are_created_first_and_linked_later(tmp_path: Path) -> None:
    """A boss of himself, and two who are each other's: nobody waits for ever, and in the end each has his boss."""

    async def work() -> None:
        async with bench(tmp_path, staff(), crm=(crm := Diary())) as at:
            at.commit(insert(STAFF, "1", "a", "1"), insert(STAFF, "2", "b", "3"), insert(STAFF, "3", "c", "2"))
            await at.settled()
            held = {key: record["Boss"].key for (_, key), record in crm.records.items()}
            assert held == {"1": "1", "2": "3", "3": "2"}
            created = {key: fields for op, key, fields in crm.of("User") if op == "upsert"}
            assert set(created["1"]) == {"Name"}
            assert {len(created["2"]), len(created["3"])} == {1, 2}, "one without its boss, and the other with"
            assert sum(op == "upsert" for op, *_ in crm.of("User")) == 3

    run(work)


def test_a_boss_goes_after_those_who_still_have_him(tmp_path: Path) -> None:
    """In a table that refers to itself deletes go in reverse, too, and several of them do not wait for each other."""

    async def work() -> None:
        async with bench(tmp_path, staff(), crm=(crm := Diary())) as at:
            at.commit(insert(STAFF, "1", "a", None), insert(STAFF, "2", "b", "1"), insert(STAFF, "3", "c", "1"))
            await at.settled()
            crm.sent.clear()
            at.commit(
                delete(STAFF, "1", "a", None),
                update(STAFF, ["2", "b", "1"], ["2", "b", None]),
                delete(STAFF, "3", "c", "1"),
            )
            await at.settled()
            order = [(op, key) for op, key, _ in crm.of("User")]
            assert order.index(("update", "2")) < order.index(("delete", "1"))
            assert crm.keys("User") == {"2"}

    run(work)


def test_a_row_follows_the_one_that_it_refers_to_in_the_database(tmp_path: Path) -> None:
    """By a foreign key that the config does not speak of: the parent first, though the child came first; no must."""
    child = people(fields={"Name": "name"})

    async def work() -> None:
        crm = Diary(limits=Limits(dict.fromkeys(Op, 1), 4))
        crm.judge = lambda _, record: Rejected("BAD", "no") if record.fields.get("Name") == "bad" else None
        async with bench(tmp_path, child, companies(), crm=crm) as at:
            at.route("people").follows.append(Follow("company", at.route("companies")))
            at.commit(*(insert(PEOPLE, str(n), "x", "1") for n in range(3)), insert(COMPANIES, "1", "a"))
            await at.settled()
            assert crm.sent[0][1] == "Account"
            at.commit(insert(COMPANIES, "2", "bad"), insert(PEOPLE, "7", "y", "2"))
            await at.settled()
            assert "7" in crm.keys("Contact"), "a parent that is rejected keeps nobody waiting"
            assert all(not isinstance(value, Ref) for *_, fields in crm.sent for value in fields.values())

    run(work)


def test_an_object_that_fails_does_not_stop_the_others(tmp_path: Path) -> None:
    """Failures concern their mapping, as long as others succeed: it backs off alone."""

    async def work() -> None:
        crm = Diary(failing=frozenset({"Account"}))
        async with bench(tmp_path, companies(), people(fields={"Name": "name"}), crm=crm) as at:
            at.commit(*(insert(COMPANIES, str(n), "a") for n in range(50)))
            await eventually_async(lambda: at.route("companies").backoff.failures >= 3)
            for number in range(20):
                at.commit(insert(PEOPLE, str(number), "x", None))
                await eventually_async(lambda number=number: str(number) in crm.keys("Contact"))  # type: ignore[misc]
            assert not at.lane.limiter.open_in, "the CRM as a whole works"
            assert not at.lane.rejected
            crm.failing = frozenset()
            at.route("companies").backoff.until = 0.0
            at.lane.nudge()
            await at.settled()

    run(work)


def test_changes_and_urgent_mappings_overtake_a_copy(tmp_path: Path) -> None:
    """A thousand copied rows wait; a change of their mapping and rows of a high one go within a few requests."""

    async def work() -> None:
        crm = Diary(limits=Limits(dict.fromkeys(Op, 10), 1))
        first = people(fields={"Name": "name"}, priority="high")
        async with bench(tmp_path, companies(), first, crm=crm) as at:
            crm.gate.clear()
            at.route("companies").paused = at.route("people").paused = "by the test"
            for number in range(1000):
                copied(at, str(number))
            at.commit(insert(COMPANIES, "new", "b"), *(insert(PEOPLE, str(n), "x", None) for n in range(5)))
            at.route("companies").paused = at.route("people").paused = None
            at.lane.nudge()
            await at.settled()
            keys = [(name, key) for _, name, key, _ in crm.sent]
            assert keys.index(("Account", "new")) < 50
            assert max(place for place, (name, _) in enumerate(keys) if name == "Contact") < 50

    run(work)


def copied(at: Any, key: str) -> None:
    """Feed a row as a copy does."""
    change = Change(ChangeKind.COPY, COMPANIES, insert(COMPANIES, key, "a").new)
    at.lane.feed(at.route("companies"), Event(change, key, None, at.pipeline.position, 0.0, copied=True))
