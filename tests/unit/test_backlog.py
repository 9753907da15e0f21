"""Fold, backlog, plan and journal together, against a simulated database and a simulated CRM."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from cdcsync.backlog import COLD, IN_BATCH, WAITING, Backlog
from cdcsync.coalesce import Event, Fold, PendingRow
from cdcsync.entries import Known
from cdcsync.keyset import KeySet
from cdcsync.mappers.compile import Mapped
from cdcsync.model import ABSENT, Change, ChangeKind, Column, Op, Position, Relation, Text, Value
from cdcsync.plan import Draft, Facts, asks_for, decide
from cdcsync.wal.decode import join_tuple, split_tuple

RELATION = Relation(
    1, "public", "t", "d", (Column("id", 23, -1, True), Column("a", 25, -1, False), Column("big", 25, -1, False))
)
FIELDS = ("a", "big")


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

    def change(self) -> None:
        """Change the table, and stream the change."""
        keys = [str(number) for number in range(6)]
        key = self.random.choice(keys)
        free = [other for other in keys if other not in self.table]
        self.ordinal += 1
        value = f"v{self.ordinal}"
        if key not in self.table:
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
        rows = self.backlog.take(self.random.randint(1, 4))
        if not rows:
            return
        self.announced = self.ordinal
        known = {key: self.ledger[key] for key in asks_for(rows) if key in self.ledger}
        images = {row.key: mapped(row) for row in rows if not row.deleted}
        plan = decide(rows, images, Facts(known), FIELDS)
        if plan.ask:
            again = decide(plan.ask, images, Facts(known, self.crm.find(asks_for(plan.ask)), asked=True), FIELDS)
            plan.drafts += again.drafts
            plan.nothing += again.nothing
            plan.rejected += again.rejected
        assert not [row for row, _ in plan.rejected if not row.whole], "only a swap of toasted rows may be refused"
        for row, _ in plan.rejected:
            # What a person would do: write the column again.
            self.backlog.give_back(row, 0.0)
            if row.key in self.table:
                value, big = self.table[row.key]
                self.ordinal += 1
                self._stream(ChangeKind.UPDATE, row.key, None, (value, big.encode()))
        for row in plan.nothing:
            if row.deleted and row.uncertain:
                self.ledger.pop(row.key, None)
            self.backlog.settle(row, 0.0)
        fate = self.random.choice(["answered", "answered", "lost", "refused"])
        for draft in plan.drafts:
            self._settle(draft, fate)

    def _settle(self, draft: Draft, fate: str) -> None:
        row = draft.row
        if fate == "refused":
            self.backlog.give_back(row, 0.0)
            return
        crm_id = self.crm.write(draft)
        if fate == "lost":
            row.uncertain = True
            self.backlog.give_back(row, 0.0)
        elif crm_id is None:
            for origin in row.origins:
                self.ledger.pop(origin, None)
            self.backlog.refit(row, _no_origins, 0.0)
            self.backlog.give_back(row, 0.0)
        else:
            for origin in row.origins:
                self.ledger.pop(origin, None)
            if draft.op is Op.DELETE:
                self.ledger.pop(row.key, None)
            else:
                self.ledger[row.key] = Known(crm_id, draft.fields, draft.hashes, {}, row.last, 0.0)
            self.backlog.settle(row, 0.0)

    def tick(self) -> None:
        """Write down what changed."""
        for key, slot, row in self.backlog.changed():
            if row is None:
                self.journal.pop((key, slot), None)
            else:
                self.journal[key, slot] = row
        self.saved_ledger = dict(self.ledger)
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
        for event in self.log:
            if event.position.ordinal > self.saved_at:
                self.backlog.feed(event, 0.0, uncertain=event.position.ordinal <= self.announced)

    def drain(self) -> None:
        """Let everything settle."""
        self.random = random.Random(0)
        for _ in range(2000):
            if not len(self.backlog):
                return
            self.thaw()
            self.send()
        held = self.backlog.held
        raise AssertionError(f"rows that never settle: {held}, {self.backlog.fold.waiting}, {self.backlog.in_flight}")


def _no_origins(row: PendingRow) -> PendingRow:
    row.origins = ()
    return row


def _colliding(key: str) -> int:
    return int(key) % 2


@settings(max_examples=600, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    steps=st.lists(st.sampled_from("ccccssstxfh"), min_size=5, max_size=120),
    hashed=st.sampled_from([hash, _colliding]),
)
def test_any_history_of_changes_answers_and_crashes_converges(
    seed: int, steps: list[str], hashed: Callable[[str], int]
) -> None:
    """After any mix of changes, sends, lost answers, ticks and crashes the CRM equals the table; nothing is doubled.

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
        }[step]()
    world.drain()
    assert dict(world.crm.records.values()) == {key: {"a": a, "big": big} for key, (a, big) in world.table.items()}
    assert len(world.crm.records) == len(world.table)
    assert world.backlog.oldest() is None


def test_a_row_that_was_never_sent_takes_no_record_along() -> None:
    """A row leaves its key, another is inserted there and leaves as well, the first one returns: each has its own."""
    backlog = Backlog("m")
    ledger = {"1": Known("A", FIELDS, b"", {}, Position(1, 0), 0.0)}
    steps: list[tuple[str, str | None, Text]] = [
        ("2", "1", ABSENT),
        ("1", None, b"b"),
        ("3", "1", ABSENT),
        ("1", "2", ABSENT),
    ]
    for number, (key, old, big) in enumerate(steps, start=1):
        kind = ChangeKind.INSERT if old is None else ChangeKind.UPDATE
        change = Change(kind, RELATION, join_tuple([key.encode(), b"x", big]))
        backlog.feed(Event(change, key, old, Position(1, number), 0.0), 0.0)
    rows = backlog.take(9)
    plan = decide(rows, {row.key: mapped(row) for row in rows}, Facts(ledger), FIELDS)
    assert {draft.row.key: draft.record.crm_id for draft in plan.drafts} == {"1": "A", "3": None}
    assert not plan.rejected


def test_a_row_given_back_meets_the_one_that_left_its_key_first() -> None:
    """Of two rows that left a key one after another, the first one carries on what was sent under it."""
    fold = Fold()

    def change(number: int, key: str, old: str | None, *, uncertain: bool = False) -> None:
        update = Change(ChangeKind.UPDATE, RELATION, join_tuple([key.encode(), b"x", b"b"]))
        fold.feed(Event(update, key, old, Position(1, number), 0.0), uncertain=uncertain)

    change(1, "1", None)
    sent = fold.take("1")
    change(2, "2", None, uncertain=True)
    change(3, "3", "1")
    change(4, "1", "2")
    change(5, "4", "1")
    assert fold.give_back(sent) == "3"


def test_journal_slots_are_apart() -> None:
    """A waiting row, one in flight and a cold one of the same key are journaled under different slots."""
    assert len({WAITING, IN_BATCH, COLD}) == 3
