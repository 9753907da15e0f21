"""Decide what to send for the rows that were taken: upsert, update, delete, or nothing. Pure.

The ledger's word counts only for rows that are not ``uncertain``. Who asks what:

* A delete of a row that the ledger does not know: nothing to do if the CRM has never seen it, else the CRM is asked.
* A key change updates the record that the ledger knows under the row's ``base``; where it knows none, or an earlier
  attempt may have arrived, the CRM is asked under which key it holds the record.
* A field that is the CRM's own once filled (``only_if_empty``) goes to a new record, and to one in which it is empty:
  whether there is a record, and what is in it, the CRM is asked.
* Where an id may have become another record's (``ids_merge``), a delete and a key change ask in any case: only a record
  that still has the row's key is the row's.
* What the ledger knows as equal does not go out, and a record of which nothing is left is suppressed. A record from
  which fields are left out is an update: an upsert might make it anew, from a part.
* A record cannot be created, nor given to another row, from a row with columns missing: such a row is rejected.
* A field or link whose record cannot be there before this one is left for later: the row goes twice.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from cdcsync.coalesce import PendingRow
from cdcsync.entries import Known
from cdcsync.errors import ConfigError, RowRejectedError
from cdcsync.mappers.compile import Mapped, RowMapper, WantedLink
from cdcsync.mappers.values import field_hash
from cdcsync.model import INCOMPLETE_ROW, Applied, Link, Op, Record, Ref, Rejected, Relation, Value
from cdcsync.tombstone import Tombstone, is_tombstone, place_of

HASH_BYTES = 8
_NOT_SENT = bytes(HASH_BYTES)


@dataclass(frozen=True, slots=True)
class Draft:
    """A row that is to be sent, with what the ledger will say once it has been applied.

    ``unfinished``: something was left for later, so the row is not settled by that. ``doubted``: links left for later
    that an attempt without an answer may have changed, by ``slot``: the ledger will not tell of them.
    """

    row: PendingRow
    op: Op
    record: Record
    fields: tuple[str, ...] = ()
    hashes: bytes = b""
    links: Mapping[str, str] = field(default_factory=dict)
    unfinished: bool = False
    doubted: Mapping[str, str] = field(default_factory=dict)

    def replaced_by(self, outcome: Applied) -> bool:
        """Whether part of the row went to another record than the ledger knew, which lacks the rest.

        People have deleted the one that was known, or merged it, and another one has the key.
        """
        if self.row.deleted or self.record.crm_id is None or outcome.crm_id in {None, self.record.crm_id}:
            return False
        made = {slot(link) for link in self.record.links if link.to_id is not None}
        return len(self.record.fields) < len(self.fields) or not made.issuperset(self.links)


@dataclass(slots=True)
class Plan:
    """The decision for each row taken.

    ``ask`` are rows whose fate depends on which records the CRM holds; ``look`` those for which it depends on what is
    in the record, whose id is given.
    """

    drafts: list[Draft] = field(default_factory=list)
    nothing: list[PendingRow] = field(default_factory=list)
    rejected: list[tuple[PendingRow, Rejected]] = field(default_factory=list)
    ask: list[PendingRow] = field(default_factory=list)
    look: list[tuple[PendingRow, str]] = field(default_factory=list)

    def after(self, earlier: Plan) -> Plan:
        """Return this plan, for the rows that an earlier one had a question about, with what that one decided."""
        return Plan(
            earlier.drafts + self.drafts,
            earlier.nothing + self.nothing,
            earlier.rejected + self.rejected,
            self.ask,
            self.look,
        )


@dataclass(frozen=True, slots=True)
class Facts:
    """What was looked up for the rows of one plan; all by the rows' keys.

    ``known``: the mapping's ledger. ``asked``: rows for which the CRM was asked, and ``found`` the ids of the records
    that it holds, by the records' keys. ``filled``: fields in which the row's record has something, of rows for which
    that was looked up. ``ids``: CRM ids of the records that a row's fields and links (by ``slot``) refer to, as far as
    they are known. ``later``: fields and links that are left for later. ``sent_links``: CRM ids that an earlier attempt
    may have linked. ``ids_merge`` is as in ``apply.base.Limits``.
    """

    known: Mapping[str, Known]
    found: Mapping[str, str] = field(default_factory=dict)
    asked: Collection[str] = frozenset()
    filled: Mapping[str, Collection[str]] = field(default_factory=dict)
    ids: Mapping[tuple[str, str], str] = field(default_factory=dict)
    later: Mapping[str, Collection[str]] = field(default_factory=dict)
    sent_links: Mapping[tuple[str, str], frozenset[str]] = field(default_factory=dict)
    ids_merge: bool = False


@dataclass(frozen=True, slots=True)
class Shape:
    """A mapping's fields, sorted, and those of them that are the CRM's own once they are filled.

    ``tombstone``: what is set in the record of a row that is deleted, where the record is kept.
    """

    fields: tuple[str, ...]
    only_if_empty: frozenset[str] = frozenset()
    tombstone: Tombstone | None = None


def slot(link: WantedLink | Link) -> str:
    """Name a link of a mapping: what it leads to, and of which type."""
    return f"{link.to_object}:{link.type}"


def decide(rows: Sequence[PendingRow], mapped: Mapping[str, Mapped], facts: Facts, shape: Shape) -> Plan:
    """Plan the rows taken; ``mapped`` holds the mapping's result by key for those that are not deletes."""
    plan = Plan()
    for row in rows:
        if row.deleted:
            _decide_delete(row, facts, shape.tombstone, plan)
        else:
            _Write(row, mapped[row.key], facts, shape).decide(plan)
    return plan


def map_rows(
    mapper_for: Callable[[Relation], RowMapper], rows: Sequence[PendingRow]
) -> tuple[dict[str, Mapped], list[tuple[PendingRow, Rejected]]]:
    """Map the rows that are not deletes; returns the results by key, and what could not be mapped.

    A row may have a shape that the mapping was corrected away from: it is read again, and supersedes what is parked.
    """
    mapped: dict[str, Mapped] = {}
    rejected: list[tuple[PendingRow, Rejected]] = []
    for row in rows:
        if row.deleted:
            continue
        try:
            mapped[row.key] = mapper_for(row.relation).map(row.image)
        except RowRejectedError as error:
            rejected.append((row, Rejected(error.code, error.message, error.field)))
        except ConfigError:
            rejected.append((row, Rejected("shape-outdated", "the row has a shape that the mapping does not fit")))
    return mapped, rejected


def asks_for(rows: Sequence[PendingRow]) -> Iterator[str]:
    """Yield the keys under which the ledger or the CRM may know the records of these rows, or others have them."""
    for row in rows:
        yield from row.places if row.deleted and row.places else row.keys


def redraft(
    rows: Sequence[PendingRow], op: Op, mapped: Mapping[str, Mapped], facts: Facts, shape: Shape
) -> list[Draft]:
    """Draft again what a bulk job carries, as it was when the job was planned; rows that cannot be are left out."""
    drafts = []
    for row in rows:
        entry = _entry(row, facts.known)
        crm_id = entry.crm_id if entry is not None else None
        if op is not Op.UPSERT and crm_id is None:
            continue
        if op is Op.DELETE:
            drafts.append(Draft(row, op, Record(row.key, crm_id=crm_id)))
        elif row.deleted and crm_id is not None and shape.tombstone is not None:
            drafts.append(_buried(row, crm_id, entry, facts, shape.tombstone))
        elif row.key in mapped:
            write = _Write(row, mapped[row.key], facts, shape)
            hashes = write.hashes(write.values, entry)
            values = write.values_without_looking(crm_id)
            record = Record(row.key, values, crm_id, rekeyed=op is Op.UPDATE and bool(row.origins))
            drafts.append(Draft(row, op, record, shape.fields, hashes))
    return drafts


def _decide_delete(row: PendingRow, facts: Facts, tombstone: Tombstone | None, plan: Plan) -> None:
    known = _entry(row, facts.known)
    crm_id = known.crm_id if known is not None else None
    if is_tombstone(known) and not row.uncertain:
        plan.nothing.append(row)
        return
    # A tombstone is written by the key, and so cannot reach another row's record.
    another = facts.ids_merge and crm_id is not None and tombstone is None
    if row.key in facts.asked:
        crm_id = _found(row.places or (row.key,), crm_id, facts)
    elif another or (row.places and (row.uncertain or crm_id is None)):
        plan.ask.append(row)
        return
    if crm_id is None:
        plan.nothing.append(row)
    elif tombstone is not None:
        plan.drafts.append(_buried(row, crm_id, known, facts, tombstone))
    else:
        plan.drafts.append(Draft(row, Op.DELETE, Record(row.key, crm_id=crm_id)))


def _buried(row: PendingRow, crm_id: str, known: Known | None, facts: Facts, tombstone: Tombstone) -> Draft:
    record = Record(place_of(row, crm_id, facts.found), tombstone.values, crm_id)
    links = known.links if known is not None else {}
    return Draft(row, Op.UPDATE, record, tombstone.fields, tombstone.hashes, links)


@dataclass(slots=True)
class _Write:
    """The decision for one row that is to be written."""

    row: PendingRow
    mapped: Mapped
    facts: Facts
    shape: Shape

    @property
    def values(self) -> dict[str, Value]:
        """The fields that the row carries, but for those that are left for later."""
        later = self.facts.later.get(self.row.key)
        values = self.mapped.fields
        return values if not later else {name: value for name, value in values.items() if name not in later}

    def decide(self, plan: Plan) -> None:
        row, facts = self.row, self.facts
        known = _entry(row, facts.known)
        asked = row.key in facts.asked
        if not asked and self._has_to_ask(known):
            plan.ask.append(row)
            return
        op, crm_id = self._operation(known, asked=asked)
        if asked and known is not None and crm_id != known.crm_id:
            known = None  # another record than the one that the ledger tells of
        missing = is_tombstone(known) or (crm_id is None and (asked or known is None))
        if self.mapped.absent and (row.whole or missing):
            plan.rejected.append((row, _incomplete(self.mapped)))
            return
        if crm_id is not None and row.key not in facts.filled and self._owned(known):
            plan.look.append((row, crm_id))
            return
        self._draft(plan, op, crm_id, known)

    def _has_to_ask(self, known: Known | None) -> bool:
        row = self.row
        moved = bool(row.origins)
        # A row that lacks columns must not be made anew where the record went with a delete of which no answer came.
        if row.uncertain and (moved or self.mapped.absent):
            return True
        if moved and (known is None or self.facts.ids_merge):
            return True
        owned = not row.whole and not self.shape.only_if_empty.isdisjoint(self.values)
        return owned and (known is None or row.uncertain)

    def _operation(self, known: Known | None, *, asked: bool) -> tuple[Op, str | None]:
        row, facts = self.row, self.facts
        known_id = known.crm_id if known is not None else None
        if not row.origins and not asked:
            return Op.UPSERT, known_id
        crm_id = _found((*row.origins, row.key), known_id, facts) if asked else known_id
        if crm_id is None or crm_id == facts.found.get(row.key):
            return Op.UPSERT, crm_id
        return Op.UPDATE, crm_id

    def _owned(self, known: Known | None) -> set[str]:
        """Return the fields that are to go to a record in which they are empty: those that changed."""
        if not self.shape.only_if_empty or self.row.whole:
            return set()
        before = self._before(known)
        return {
            name
            for name, value in self.values.items()
            if name in self.shape.only_if_empty and value is not None and before.get(name) != self._hash(name, value)
        }

    def _draft(self, plan: Plan, op: Op, crm_id: str | None, known: Known | None) -> None:
        row, later = self.row, self.facts.later.get(self.row.key, ())
        values = self.values
        hashes = self.hashes(values, known)
        links, changes = self._links(known, later)
        doubted = {name: links.pop(name) for name in later if name in links} if row.uncertain or row.whole else {}
        trusted = known is not None and known.crm_id is not None and not row.uncertain and not row.whole
        values = self._without_owned(values, crm_id, known)
        if trusted:
            before = self._before(known)
            values = {name: value for name, value in values.items() if before.get(name) != self._hash(name, value)}
            op = Op.UPDATE
        elif row.key in self.facts.asked and crm_id is not None and self._is_part(values):
            op = Op.UPDATE
        if trusted and not values and not changes and not row.origins and not later:
            plan.nothing.append(row)
            return
        rekeyed = bool(row.origins) and crm_id is not None and crm_id != self.facts.found.get(row.key)
        record = Record(row.key, values, crm_id, changes, rekeyed)
        plan.drafts.append(Draft(row, op, record, self.shape.fields, hashes, links, bool(later), doubted))

    def _is_part(self, values: Mapping[str, Value]) -> bool:
        """Whether a record could not be made from these values: it may be gone by the time that they arrive."""
        return bool(self.mapped.absent) or len(values) < len(self.mapped.fields)

    def _without_owned(self, values: dict[str, Value], crm_id: str | None, known: Known | None) -> dict[str, Value]:
        """Leave out the fields that are the CRM's own, but for those that changed and that are empty there."""
        owned = self.shape.only_if_empty
        if not owned or crm_id is None or self.row.whole:
            return values
        sendable = self._owned(known).difference(self.facts.filled.get(self.row.key, ()))
        return {name: value for name, value in values.items() if name not in owned or name in sendable}

    def hashes(self, values: Mapping[str, Value], known: Known | None) -> bytes:
        """Return what the ledger is to say of all the mapping's fields."""
        fields = self.shape.fields
        if len(values) == len(fields):
            return b"".join([self._hash(name, values[name]) for name in fields])
        old = dict(_by_field(known)) if known is not None else {}
        if self.row.uncertain or self.row.whole:
            for name in self.facts.later.get(self.row.key, ()):  # an attempt without an answer may have changed it
                old.pop(name, None)
        return b"".join(
            self._hash(name, values[name]) if name in values else old.get(name, _NOT_SENT) for name in fields
        )

    def values_without_looking(self, crm_id: str | None) -> dict[str, Value]:
        """Return the fields that may go to a record of which nobody knows now what is in it."""
        mine = crm_id is None or self.row.whole
        return {name: value for name, value in self.values.items() if mine or name not in self.shape.only_if_empty}

    def _before(self, known: Known | None) -> Mapping[str, bytes]:
        trusted = known is not None and not self.row.uncertain and not self.row.whole
        return _by_field(known) if known is not None and trusted else {}

    def _hash(self, name: str, value: Value) -> bytes:
        """Return a field's hash; for a reference the record counts, too: another one may have its key by now."""
        if value.__class__ is Ref:
            crm_id = self.facts.ids.get((self.row.key, name), "")
            return field_hash(f"{field_hash(value).hex()} {crm_id}")
        return field_hash(value)

    def _links(self, known: Known | None, later: Collection[str]) -> tuple[dict[str, str], tuple[Link, ...]]:
        """Return the links as they will be, and the changes that lead there."""
        row, facts = self.row, self.facts
        kept = known.links if known is not None else {}
        links = {name: kept[name] for name in (*self.mapped.absent, *later) if name in kept}
        changes: list[Link] = []
        for wanted in self.mapped.links:
            name = slot(wanted)
            if name in later:
                continue
            to_id = facts.ids.get((row.key, name))
            before = set(facts.sent_links.get((row.key, name), ()))
            if name in kept:
                before.add(kept[name])
            if to_id is not None:
                links[name] = to_id
            certain = kept.get(name) == to_id and not row.uncertain
            was = tuple(sorted(before - {to_id}))
            if was or (to_id is not None and not certain):
                changes.append(Link(wanted.to_object, wanted.type, to_id, was))
        return links, tuple(changes)


def _entry(row: PendingRow, known: Mapping[str, Known]) -> Known | None:
    """Return what the ledger knows of a row's record. One that was inserted may have been written before we knew."""
    return known.get(row.key if row.base is None else row.base)


def _found(places: Sequence[str], known_id: str | None, facts: Facts) -> str | None:
    """Return the id of a row's record: that of the ledger, if it was found, else what was found in the last place."""
    ids = [facts.found[place] for place in places if place in facts.found]
    return known_id if known_id in ids else ids[-1] if ids else None


def _incomplete(mapped: Mapped) -> Rejected:
    names = ", ".join(mapped.absent)
    return Rejected(
        INCOMPLETE_ROW,
        f"the stream did not carry the unchanged large value behind {names}, and the CRM does not hold the record; "
        "with backfill = true it is read from the table, else any write to that column sends it",
        mapped.absent[0],
    )


def _by_field(known: Known) -> dict[str, bytes]:
    return {
        name: known.hashes[index * HASH_BYTES : (index + 1) * HASH_BYTES] for index, name in enumerate(known.fields)
    }
