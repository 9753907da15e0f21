"""Fold, backlog, plan and journal together, against a simulated database and a simulated CRM."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from cdcsync.backlog import COLD, IN_BATCH, WAITING, Backlog
from cdcsync.coalesce import Event, Fold, PendingRow, shown
from cdcsync.entries import Known
from cdcsync.keyset import KeySet
from cdcsync.mappers.compile import Mapped
from cdcsync.model import ABSENT, INCOMPLETE_ROW, Change, ChangeKind, Column, Op, Position, Relation, Text, Value
from cdcsync.plan import Draft, Facts, Shape, asks_for, decide
from cdcsync.wal.decode import join_tuple, split_tuple

RELATION = Relation(
    1, "public", "t", "d", (Column("id", 23, -1, True), Column("a", 25, -1, False), Column("big", 25, -1, False))
)
FIELDS = ("a", "big")
SHAPE = Shape(FIELDS)


def mapped(row: PendingRow) -> Mapped:
    """Map a tuple as a compiled mapper would: columns to fields of the same name."""
    values = dict(zip(("id", *FIELDS), split_tuple(row.image), strict=True))
    fields: dict[str, Value] = {
        name: None if values[name] is None else str(values[name], "utf-8")  # type: ignore[arg-type]  # bytes, as not ABSENT
        for name in FIELDS
        if values[name] is not ABSENT
    }
    return Mapped(row.key, fields, (), (), tuple(name for name in FIELDS if values[name] is ABSENT))


class Crm:
    """Records by id with a unique external key; counts what must never happen."""

    def __init__(self) -> None:
        self.records: dict[str, tuple[str, dict[str, Value]]] = {}
        self.ids = 0

    def find(self, keys: Iterator[str]) -> dict[str, str]:
        wanted = set(keys)
        return {key: crm_id for crm_id, (key, _) in self.records.items() if key in wanted}

    def write(self, draft: Draft) -> str | None:
        """Do what the CRM does; returns the record's id, None where an update found nothing."""
        record = draft.record
        holder = next((i for i, (key, _) in self.records.items() if key == record.key), None)
        if draft.op is Op.DELETE:
            assert record.crm_id is not None
            self.records.pop(record.crm_id, None)
            return record.crm_id
        if draft.op is Op.UPDATE:
            assert record.crm_id is not None
            if record.crm_id not in self.records:
                return None
            assert holder in {None, record.crm_id}, "an external key that another record holds"
            self.records[record.crm_id] = (record.key, {**self.records[record.crm_id][1], **record.fields})
            return record.crm_id
        if holder is None:
            assert set(record.fields) == set(FIELDS), "a record made from part of a row"
            self.ids += 1
            holder = str(self.ids)
            self.records[holder] = (record.key, {})
        self.records[holder] = (record.key, {**self.records[holder][1], **record.fields})
        return holder


class World:
    """A table, its stream, and a lane reduced to its decisions; every step is drawn from one seed."""

    def __init__(self, seed: int, hashed: Callable[[str], int] = hash) -> None:
        self.random = random.Random(seed)
        self.hashed = hashed
        self.table: dict[str, tuple[str, str]] = {}
        self.crm = Crm()
        self.ledger: dict[str, Known] = {}
        self.backlog = Backlog("m", KeySet(hashed))
        self.ordinal = 0
        self.log: list[Event] = []
        self.journal: dict[tuple[str, int], PendingRow] = {}
        self.cold: set[str] = set()
        self.saved_ledger: dict[str, Known] = {}
        self.saved_at = 0
        self.announced = 0
        self.changing = True
        self.outside: dict[str, str] = {}
        """Large values of rows that a row filter leaves out; they do not come along when the row enters."""
        self.filtering = False
        self.rejects: dict[str, PendingRow] = {}
        self.saved_rejects: dict[str, PendingRow] = {}

    def change(self) -> None:
        """Change the table, and stream the change."""
        keys = [str(number) for number in range(6)]
        key = self.random.choice(keys)
        free = [other for other in keys if other not in self.table and other not in self.outside]
        self.ordinal += 1
        value = f"v{self.ordinal}"
        if key in self.outside:
            self.table[key] = (value, self.outside.pop(key))
            self._stream(ChangeKind.INSERT, key, None, (value, ABSENT))
        elif key in self.table and self.random.random() < 0.1:
            self.outside[key] = self.table.pop(key)[1]
            self.filtering = True
            self._stream(ChangeKind.DELETE, key, key, None)
        elif key not in self.table:
            self.table[key] = (value, f"B{value}")
            self._stream(ChangeKind.INSERT, key, None, (value, f"B{value}".encode()))
        elif self.random.random() < 0.25:
            del self.table[key]
            self._stream(ChangeKind.DELETE, key, key, None)
        elif free and self.random.random() < 0.4:
            target = self.random.choice(free)
            self.table[target] = (value, self.table.pop(key)[1])
            self._stream(ChangeKind.UPDATE, target, key, (value, ABSENT))
        else:
            self.table[key] = (value, self.table[key][1])
            self._stream(ChangeKind.UPDATE, key, None, (value, ABSENT))

    def _stream(self, kind: ChangeKind, key: str, old: str | None, values: tuple[str, object] | None) -> None:
        new = None
        if values is not None:
            new = join_tuple([key.encode(), values[0].encode(), values[1]])  # type: ignore[list-item]
        change = Change(kind, RELATION, new)
        event = Event(change, key, old, Position(1, self.ordinal), float(self.ordinal))
        self.log.append(event)
        self.backlog.feed(event, 0.0)

    def send(self) -> None:
        """Take some rows, decide, write; some answers are lost, some requests never arrive."""
        self._clear_up()
        rows = self.backlog.take(self.random.randint(1, 4))
        if not rows:
            return
        self.announced = self.ordinal
        known = {key: self.ledger[key] for key in asks_for(rows) if key in self.ledger}
        images = {row.key: mapped(row) for row in rows if not row.deleted}
        plan = decide(rows, images, Facts(known), SHAPE)
        if plan.ask:
            asked = {row.key for row in plan.ask}
            facts = Facts(known, self.crm.find(asks_for(plan.ask)), asked=asked)
            plan = decide(plan.ask, images, facts, SHAPE).after(plan)
        refused = [row for row, _ in plan.rejected if not row.whole]
        assert self.filtering or not refused, "only a swap of toasted rows may be refused"
        for row, _ in plan.rejected:
            # What a person would do: write the column again.
            self._park(row)
            if row.key in self.table:
                value, big = self.table[row.key]
                self.ordinal += 1
                self._stream(ChangeKind.UPDATE, row.key, None, (value, big.encode()))
        for row in plan.nothing:
            if row.deleted and row.uncertain:
                self._forget(row)
            self.backlog.settle(row, 0.0)
        fate = self.random.choice(["answered", "answered", "lost", "refused"])
        for draft in plan.drafts:
            self._settle(draft, "rejected" if self.changing and self.random.random() < 0.1 else fate)

    def _park(self, row: PendingRow) -> None:
        if self.backlog.fold.newer_than(row) is not None:
            self.backlog.give_back(row, 0.0)
        else:
            assert row.key not in self.rejects
            self.rejects[row.key] = row
            self.backlog.park(row, 0.0)

    def retry(self) -> None:
        """Let a rejected row be sent once more, as a person would, or when its parent has come."""
        idle = [key for key in self.rejects if not self.backlog.has(key) and self.backlog.can_readmit(key)]
        if idle:
            self._readmit(self.random.choice(sorted(idle)))

    def _readmit(self, key: str) -> None:
        row = self.rejects.pop(key)
        row.doubt()
        self.backlog.readmit(row, 0.0)

    def _settle(self, draft: Draft, fate: str) -> None:
        row = draft.row
        if fate == "rejected":
            if self.random.random() < 0.3:  # its associations were: the record is written
                self.crm.write(draft)
                row.doubt()
            self._park(row)
            return
        if fate == "refused":
            self.backlog.give_back(row, 0.0)
            return
        crm_id = self.crm.write(draft)
        if fate == "lost":
            row.doubt()
            self.backlog.give_back(row, 0.0)
        elif crm_id is None:
            self._forget(row)
            self.backlog.refit(row, _no_record, 0.0)
            self.backlog.give_back(row, 0.0)
        else:
            self._forget(row)
            if draft.op is not Op.DELETE:
                self.ledger[row.key] = Known(crm_id, draft.fields, draft.hashes, {}, row.last, 0.0)
            self.backlog.settle(row, 0.0)

    def _forget(self, row: PendingRow) -> None:
        for key in (row.key, *row.places):
            self.ledger.pop(key, None)

    def _clear_up(self) -> None:
        """Ask the CRM whose records are whose; the table may change before the answer is here, and it may be lost."""
        for key in self.backlog.recalled():
            self._readmit(key)
        keys = self.backlog.in_doubt()
        if not keys:
            return
        found = self.crm.find(iter(keys))
        for _ in range(self.random.choice([0, 0, 0, 1, 2]) if self.changing else 0):
            self.change()
        if self.random.random() < 0.1:
            self.backlog.forget_doubts()
            return
        known = {key: self.ledger[key] for key in keys if key in self.ledger}
        for key, there in self.backlog.resolve(found, known, 0.0).items():
            self.ledger.pop(key, None)
            if there is not None:
                self.ledger[key] = Known(there[0], (), b"", {}, Position(0, 0), 0.0)

    def tick(self) -> None:
        """Write down what changed."""
        for key, slot, row in self.backlog.changed():
            if row is None:
                self.journal.pop((key, slot), None)
            else:
                self.journal[key, slot] = row
        self.saved_ledger = dict(self.ledger)
        self.saved_rejects = {key: replace(row) for key, row in self.rejects.items()}
        self.saved_at = self.ordinal

    def freeze(self) -> None:
        """Leave some rows to the journal, which is written at once."""
        keys = self.backlog.freezable(self.random.randint(1, 3))
        for key in keys:
            older = self.journal[key, COLD] if key in self.cold else None
            if (older is not None) == (key in self.backlog.cold):
                self.backlog.freeze(key, replace(older) if older is not None else None)
                self.cold.add(key)
        self.tick()

    def thaw(self) -> None:
        """Take some rows back from the journal."""
        for key in self.random.sample(sorted(self.cold), min(len(self.cold), self.random.randint(1, 3))):
            self.cold.discard(key)
            self.backlog.thaw(replace(self.journal[key, COLD]), 0.0)
        left = [self.journal[key, COLD] for key in self.cold]
        self.backlog.note_coldest(min(left, key=lambda row: row.first, default=None))

    def crash(self) -> None:
        """Lose everything that was not written down, and stream it again."""
        self.backlog = Backlog("m", KeySet(self.hashed))
        warm = ((slot, replace(row)) for (_, slot), row in self.journal.items() if slot != COLD)
        cold = {key: row for (key, slot), row in self.journal.items() if slot == COLD}
        self.backlog.restore(warm, 0.0)
        self.cold = set(cold)
        coldest = min(cold.values(), key=lambda row: row.first, default=None)
        self.backlog.restore_cold(cold, coldest, Position(1, self.saved_at))
        self.ledger = dict(self.saved_ledger)
        self.rejects = {key: replace(row) for key, row in self.saved_rejects.items()}
        for row in self.rejects.values():
            self.backlog.mark_parked(row)
        for event in self.log:
            if event.position.ordinal > self.saved_at:
                self.backlog.feed(event, 0.0, uncertain=event.position.ordinal <= self.announced)

    def drain(self) -> None:
        """Let everything settle."""
        self.random = random.Random(0)
        self.changing = False
        for _ in range(2000):
            if not len(self.backlog) and not self.rejects:
                return
            self.thaw()
            self.send()
            if not self.backlog.ready and not self.backlog.hindered:
                self.retry()
        held = self.backlog.held
        raise AssertionError(f"rows that never settle: {held}, {self.backlog.fold.waiting}, {self.backlog.in_flight}")


def _no_record(row: PendingRow) -> PendingRow:
    row.lies_at(None)
    return row


def _colliding(key: str) -> int:
    return int(shown(key)) % 2


@settings(max_examples=4000, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    steps=st.lists(st.sampled_from("cccsstxfhr"), min_size=5, max_size=120),
    hashed=st.sampled_from([hash, _colliding]),
)
def test_any_history_of_changes_answers_and_crashes_converges(
    seed: int, steps: list[str], hashed: Callable[[str], int]
) -> None:
    """After any mix of changes, sends, lost answers, rejections and crashes the CRM equals the table; none is doubled.

    So it is even where keys are taken for those of cold rows, as they are often with the second hash.
    """
    world = World(seed, hashed)
    for step in steps:
        {
            "c": world.change,
            "s": world.send,
            "t": world.tick,
            "x": world.crash,
            "f": world.freeze,
            "h": world.thaw,
            "r": world.retry,
        }[step]()
    world.drain()
    assert dict(world.crm.records.values()) == {key: {"a": a, "big": big} for key, (a, big) in world.table.items()}
    assert len(world.crm.records) == len(world.table)
    assert world.backlog.oldest() is None


class Rows:
    """A backlog that is fed by hand."""

    def __init__(self) -> None:
        self.backlog = Backlog("m")
        self._number = 0

    def change(self, key: str | None, old: str | None, big: Text = ABSENT, *, uncertain: bool = False) -> None:
        """Insert (no old key), update, move or delete (no key) a row."""
        self._number += 1
        kind = ChangeKind.INSERT if old is None else ChangeKind.UPDATE if key is not None else ChangeKind.DELETE
        new = None if key is None else join_tuple([key.encode(), b"x", big])
        event = Event(Change(kind, RELATION, new), key or old or "", old, Position(1, self._number), 0.0)
        self.backlog.feed(event, 0.0, uncertain=uncertain)

    def places(self) -> dict[str, tuple[str, ...]]:
        """Return the places of the waiting rows by their seats."""
        return {key: row.places for key, row in self.backlog.fold.waiting.items()}


def test_a_row_that_was_never_sent_takes_no_record_along() -> None:
    """A row leaves its key, another is inserted there and leaves as well, the first one returns: each has its own."""
    rows = Rows()
    rows.change("2", "1")
    rows.change("1", None, b"b")
    rows.change("3", "1")
    rows.change("1", "2")
    taken = rows.backlog.take(9)
    ledger = {"1": Known("A", FIELDS, b"", {}, Position(1, 0), 0.0)}
    plan = decide(taken, {row.key: mapped(row) for row in taken}, Facts(ledger), SHAPE)
    assert {draft.row.key: draft.record.crm_id for draft in plan.drafts} == {"1": "A", "3": None}
    assert not plan.rejected


def test_a_row_given_back_meets_the_one_that_left_its_key_first() -> None:
    """Of two rows that left a key one after another, the first one carries on what was sent under it."""
    rows = Rows()
    rows.change("1", "1")
    (sent,) = rows.backlog.take(1)
    rows.change("2", None, b"b", uncertain=True)
    rows.change("3", "1")
    rows.change("1", "2")
    rows.change("4", "1")
    assert rows.backlog.give_back(sent, 0.0) == "3"


def test_a_key_on_the_way_is_no_place() -> None:
    """A row whose answer was lost moves on twice: it was not sent under the second key, so another row may be."""
    rows = Rows()
    rows.change("1", None, b"b")
    (sent,) = rows.backlog.take(1)
    sent.doubt()
    rows.backlog.give_back(sent, 0.0)
    rows.change("2", "1")
    rows.change("3", "2")
    rows.change("2", None, b"c")
    assert rows.places() == {"3": ("1",), "2": ()}
    assert {row.key for row in rows.backlog.take(9)} == {"3", "2"}


def test_a_row_moves_onto_a_key_whose_delete_waits() -> None:
    """The old record is deleted first, and the row keeps its own: nothing is lost that the CRM has on it."""
    rows = Rows()
    rows.change(None, "1")
    rows.change("1", "2")
    (gone,) = rows.backlog.take(9)
    assert (gone.deleted, gone.places, shown(gone.key)) == (True, ("1",), "1")
    assert rows.backlog.held == {"1": "key 1 has to settle first"}
    rows.backlog.settle(gone, 0.0)
    (moved,) = rows.backlog.take(9)
    assert (moved.key, moved.places, moved.whole) == ("1", ("2",), False)


def test_a_delete_that_comes_back_after_another_row_took_its_key() -> None:
    """It is sent again before that row is written, which does not take its record over."""
    rows = Rows()
    rows.change(None, "1")
    (gone,) = rows.backlog.take(9)
    rows.change("1", "2")
    gone.doubt()
    key = rows.backlog.give_back(gone, 0.0)
    assert key != "1"
    assert rows.places() == {"1": ("2",), key: ("1",)}
    assert [row.key for row in rows.backlog.take(9)] == [key]


def test_rows_that_had_one_key_before_a_crash_wait_until_it_is_known_whose_record_it_holds() -> None:
    """One row left the key, another was inserted there; the ledger knows the record by its id, so it is the first's."""
    rows = Rows()
    rows.change("2", "1", uncertain=True)
    rows.change("1", None, b"b", uncertain=True)
    assert rows.backlog.take(9) == []
    assert rows.backlog.in_doubt() == {"1", "2"}
    assert rows.backlog.in_doubt() == set(), "it is being asked"
    known = Known("A", FIELDS, b"", {}, Position(1, 0), 0.0)
    now = rows.backlog.resolve({"1": "A"}, {"1": known}, 0.0)
    assert now == {"1": ("A", known), "2": None}
    assert rows.places() == {"2": ("1",), "1": ()}
    assert [row.key for row in rows.backlog.take(9)] == ["2"]


def test_a_swap_of_keys_waits_until_it_is_known_where_the_records_are() -> None:
    """Two rows swap keys, one of them with an answer lost: they are written over each other's records only after."""
    rows = Rows()
    rows.change("3", "1")
    (sent,) = rows.backlog.take(9)
    rows.change("1", "2")
    rows.change("2", "3")
    sent.doubt()
    rows.backlog.give_back(sent, 0.0)
    assert rows.places() == {"1": ("2",), "2": ("1", "3")}
    assert rows.backlog.take(9) == []
    assert rows.backlog.in_doubt() == {"1", "3"}
    rows.backlog.resolve({"3": "A"}, {"1": Known("A", FIELDS, b"", {}, Position(1, 0), 0.0)}, 0.0)
    assert rows.places() == {"1": ("2",), "2": ("3",)}
    assert [row.key for row in rows.backlog.take(9)] == ["1"], "no circle is left"


def test_a_row_that_comes_back_in_part_keeps_nothing() -> None:
    """It left a row filter with a large value that was never sent: what the CRM has of it is not the row's any more."""
    rows = Rows()
    rows.change("1", "1", b"new")
    rows.change(None, "1")
    rows.change("1", None)
    (back,) = rows.backlog.take(9)
    assert back.whole
    known = {"1": Known("A", FIELDS, b"", {}, Position(1, 0), 0.0)}
    ((_, reason),) = decide([back], {"1": mapped(back)}, Facts(known), SHAPE).rejected
    assert reason.code == INCOMPLETE_ROW


def test_a_refused_key_change_that_is_taken_back() -> None:
    """The row gets its old key again, and meets its own rejected state, which holds that key: they become one."""
    rows = Rows()
    rows.change("2", "1")
    (refused,) = rows.backlog.take(9)
    rows.backlog.park(refused, 0.0)
    rows.change("1", "2")
    assert rows.backlog.take(9) == []
    assert rows.backlog.recalled() == {"2"}
    rows.backlog.readmit(refused, 0.0)
    assert rows.places() == {"1": ("1",)}
    assert [row.key for row in rows.backlog.take(9)] == ["1"]


def test_a_refused_delete_is_not_the_next_row_s() -> None:
    """A row moves onto the key of one whose delete was refused: it keeps its own record, and waits for the delete."""
    rows = Rows()
    rows.change(None, "1")
    (refused,) = rows.backlog.take(9)
    rows.backlog.park(refused, 0.0)
    rows.change("1", "4")
    assert rows.backlog.take(9) == []
    assert rows.backlog.recalled() == {"1"}
    key = rows.backlog.readmit(refused, 0.0)
    assert rows.places() == {"1": ("4",), key: ("1",)}
    (again,) = rows.backlog.take(9)
    assert (again.key, again.deleted) == (key, True)
    rows.backlog.park(again, 0.0)
    assert rows.backlog.take(9) == []
    assert rows.backlog.held == {"1": "key 1 has to settle first"}


def test_a_delete_of_an_older_file_that_gives_up_its_seat() -> None:
    """It is journaled without a seat from then on, and not under its old key as well."""
    rows = Rows()
    change = Change(ChangeKind.DELETE, RELATION, None)
    fold = Fold()
    fold.feed(Event(change, "2", None, Position(1, 1), 0.0))
    old = fold.take("2")
    old.base, old.tried = "1", ()
    rows.backlog.restore([(WAITING, old)], 0.0)
    (taken,) = rows.backlog.take(9)
    rows.backlog.settle(taken, 0.0)
    assert ("2", WAITING, None) in list(rows.backlog.changed())


def test_a_shift_of_all_keys_is_no_circle() -> None:
    """20,000 rows that each wait for the next one's key go one after another, and none is looked at time and again."""
    rows = Rows()
    for number in range(20_000, 0, -1):
        rows.change(str(number + 1), str(number))
    sent = 0
    while rows.backlog.ready:
        taken = rows.backlog.take(200)
        sent += len(taken)
        for row in taken:
            assert not row.whole
            rows.backlog.settle(row, 0.0)
    assert (sent, len(rows.backlog)) == (20_000, 0)


def test_journal_slots_are_apart() -> None:
    """A waiting row, one in flight and a cold one of the same key are journaled under different slots."""
    assert len({WAITING, IN_BATCH, COLD}) == 3
