"""Decide what to send for the rows that were taken: upsert, update, delete, or nothing. Pure.

The ledger's word counts only for rows that are not ``uncertain``. Who asks what:

* A delete of a row that the ledger does not know: nothing to do if the CRM has never seen it, else the CRM is asked.
* A key change updates the record that the ledger knows under the row's ``base``; where it knows none, or an earlier
  attempt may have arrived, the CRM is asked under which key it holds the record.
* A write that changes no field and no link is suppressed. Otherwise all fields that the row carries go out.
* A record cannot be created, nor given to another row, from a row with columns missing: such a row is rejected.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from cdcsync.coalesce import PendingRow
from cdcsync.entries import Known
from cdcsync.errors import ConfigError, RowRejectedError
from cdcsync.mappers.compile import Mapped, RowMapper, WantedLink
from cdcsync.mappers.values import field_hash
from cdcsync.model import INCOMPLETE_ROW, Link, Op, Record, Rejected, Relation

HASH_BYTES = 8
_NOT_SENT = bytes(HASH_BYTES)


@dataclass(frozen=True, slots=True)
class Draft:
    """A row that is to be sent, with what the ledger will say once it has been applied."""

    row: PendingRow
    op: Op
    record: Record
    fields: tuple[str, ...] = ()
    hashes: bytes = b""
    links: Mapping[str, str] = field(default_factory=dict)


@dataclass(slots=True)
class Plan:
    """The decision for each row taken. ``ask`` are rows whose fate depends on what the CRM holds."""

    drafts: list[Draft] = field(default_factory=list)
    nothing: list[PendingRow] = field(default_factory=list)
    rejected: list[tuple[PendingRow, Rejected]] = field(default_factory=list)
    ask: list[PendingRow] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Facts:
    """What was looked up for the rows of one plan.

    ``known``: the mapping's ledger by key. ``found``: CRM ids by key, for the rows in ``asked``. ``links``: for each
    row's key the CRM ids of the records that its links go to (by ``slot``), as far as they exist. ``sent_links``: CRM
    ids that an earlier attempt may have linked, by (key, slot).
    """

    known: Mapping[str, Known]
    found: Mapping[str, str] = field(default_factory=dict)
    asked: bool = False
    links: Mapping[tuple[str, str], str] = field(default_factory=dict)
    sent_links: Mapping[tuple[str, str], frozenset[str]] = field(default_factory=dict)


def slot(link: WantedLink | Link) -> str:
    """Name a link of a mapping: what it leads to, and of which type."""
    return f"{link.to_object}:{link.type}"


def decide(rows: Sequence[PendingRow], mapped: Mapping[str, Mapped], facts: Facts, fields: tuple[str, ...]) -> Plan:
    """Plan the rows taken; ``mapped`` holds the mapping's result by key for those that are not deletes."""
    plan = Plan()
    for row in rows:
        if row.deleted:
            _decide_delete(row, facts, plan)
        else:
            _decide_write(row, mapped[row.key], facts, fields, plan)
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
    rows: Sequence[PendingRow],
    op: Op,
    mapped: Mapping[str, Mapped],
    known: Mapping[str, Known],
    fields: tuple[str, ...],
) -> list[Draft]:
    """Draft again what a bulk job carries, as it was when the job was planned; rows that cannot be are left out."""
    drafts = []
    for row in rows:
        entry = _entry(row, known)
        crm_id = entry.crm_id if entry is not None else None
        if op is Op.DELETE and crm_id is not None:
            drafts.append(Draft(row, op, Record(row.key, crm_id=crm_id)))
        elif op is not Op.DELETE and row.key in mapped:
            result = mapped[row.key]
            record = Record(row.key, result.fields, crm_id)
            drafts.append(Draft(row, op, record, fields, _hashes(result, fields, entry)))
    return drafts


def _decide_delete(row: PendingRow, facts: Facts, plan: Plan) -> None:
    known = _entry(row, facts.known)
    crm_id = known.crm_id if known is not None else None
    if facts.asked:
        crm_id = _found(row.places, crm_id, facts)
    elif row.places and (row.uncertain or crm_id is None):
        plan.ask.append(row)
        return
    if crm_id is None:
        plan.nothing.append(row)
    else:
        plan.drafts.append(Draft(row, Op.DELETE, Record(row.key, crm_id=crm_id)))


def _decide_write(row: PendingRow, mapped: Mapped, facts: Facts, fields: tuple[str, ...], plan: Plan) -> None:
    known = _entry(row, facts.known)
    moved = bool(row.origins)
    # A row that lacks columns must not be made anew where the record went with a delete of which no answer came.
    doubtful = row.uncertain and bool(moved or mapped.absent)
    if not facts.asked and (doubtful or (moved and known is None)):
        plan.ask.append(row)
        return
    op, crm_id = _operation(row, known, facts)
    if facts.asked and known is not None and crm_id != known.crm_id:
        known = None  # another record than the one that the ledger tells of
    missing = crm_id is None and (facts.asked or known is None)
    if mapped.absent and (row.whole or missing):
        plan.rejected.append((row, _incomplete(mapped)))
        return
    hashes = _hashes(mapped, fields, known)
    links, changes = _links(row, mapped, known, facts)
    same = known is not None and known.fields == fields and known.hashes == hashes and not changes
    if same and not moved and not row.uncertain and not row.whole:
        plan.nothing.append(row)
        return
    record = Record(row.key, mapped.fields, crm_id, changes)
    plan.drafts.append(Draft(row, op, record, fields, hashes, links))


def _operation(row: PendingRow, known: Known | None, facts: Facts) -> tuple[Op, str | None]:
    known_id = known.crm_id if known is not None else None
    if not row.origins and not facts.asked:
        return Op.UPSERT, known_id
    crm_id = _found((*row.origins, row.key), known_id, facts) if facts.asked else known_id
    if crm_id is None or crm_id == facts.found.get(row.key):
        return Op.UPSERT, crm_id
    return Op.UPDATE, crm_id


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


def _hashes(mapped: Mapped, fields: tuple[str, ...], known: Known | None) -> bytes:
    values = mapped.fields
    if len(values) == len(fields):
        return b"".join([field_hash(values[name]) for name in fields])
    old = _by_field(known) if known is not None else {}
    return b"".join(field_hash(values[name]) if name in values else old.get(name, _NOT_SENT) for name in fields)


def _by_field(known: Known) -> dict[str, bytes]:
    return {
        name: known.hashes[index * HASH_BYTES : (index + 1) * HASH_BYTES] for index, name in enumerate(known.fields)
    }


def _links(
    row: PendingRow, mapped: Mapped, known: Known | None, facts: Facts
) -> tuple[dict[str, str], tuple[Link, ...]]:
    """Return the links as they will be, and the changes that lead there."""
    kept = known.links if known is not None else {}
    links = {name: kept[name] for name in mapped.absent if name in kept}
    changes: list[Link] = []
    for wanted in mapped.links:
        name = slot(wanted)
        to_id = facts.links.get((row.key, name))
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
