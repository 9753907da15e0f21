"""A simulated CRM, and the books that say what was done to it.

It keeps records by id with one external key each, resolves references as Salesforce does (a reference is to the record,
whatever its key is called later), and refuses what a CRM refuses. Whatever must never happen goes to ``books.wrong``.
"""

from __future__ import annotations

import os
import random
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from cdcsync.apply.bisect import isolate
from cdcsync.errors import BatchRejectedError
from cdcsync.model import Applied, Batch, Link, Missing, Op, Outcome, Record, Ref, Rejected, Retry, Target
from tests.simulation.database import BAD
from tests.simulation.plot import FIELDS, OWNED, PLAIN

RACE = 120.0
"""Seconds between our look at a field and our write in which a person may come between."""
TRACED = "CDCSYNC_TRACE" in os.environ
NOTE = "Note"
"""A field that is not mapped."""


def trace(*words: object) -> None:
    """Tell what happens, where somebody wants to know."""
    if TRACED:
        print(*words)


@dataclass(slots=True)
class Held:
    """A record."""

    crm_id: str
    object: str
    key: str
    fields: dict[str, Any] = field(default_factory=dict)
    links: dict[str, str] = field(default_factory=dict)
    filled_at: float | None = None
    """When a person filled the field that is the CRM's own then."""
    looked_at: float = -1e9
    """When we read it last."""

    @property
    def uid(self) -> str:
        return str(self.fields.get("Uid"))

    def refers_to(self, crm_id: str) -> bool:
        """Whether one of its fields or links is to a record."""
        return crm_id in self.links.values() or any(self.fields.get(name) == crm_id for name in FIELDS)


@dataclass(slots=True)
class Books:
    """What was done, and what should not have been."""

    wrong: list[str] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    versions: dict[str, str] = field(default_factory=dict)
    """The newest version of each row that was ever written, by uid."""
    refused: Counter[str] = field(default_factory=Counter)
    """New refusals in a row, by object, in the present life and since the mapping was seen paused."""
    told: set[tuple[str, str]] = field(default_factory=set)
    """What was refused ever: uid and version."""


@dataclass(slots=True)
class Job:
    """A bulk job as the CRM has it."""

    target: Target
    op: Op
    state: str = "open"
    records: tuple[Record, ...] | None = None
    outcomes: list[Outcome] = field(default_factory=list)
    done_at: float = 0.0


class Crm:
    """The CRM: it outlives every daemon.

    ``excused`` tells of a row, by its uid, whether the record of an object's key may be missing to which it refers.
    """

    def __init__(self, rng: random.Random, *, whole_batches: bool, excused: Callable[[str, str, str], bool]) -> None:
        self.records: dict[str, Held] = {}
        self.jobs: dict[str, Job] = {}
        self.books = Books()
        self.tolerant = False
        """Whether it takes by now what it refused."""
        self.gap = False
        """Whether changes went unseen: a row whose key changed among them has two records until the sweep."""
        self.removed: dict[str, tuple[str, str]] = {}
        """Object and key of records that people deleted and that were not made anew, by uid."""
        self.deleting: Callable[[str, Held], None] = lambda _crm_id, _held: None
        self.unclear: Callable[[str, str], bool] = lambda _object, _key: False
        """Whether the record that a row is written to may have been another row's, and so what is in it."""
        """What is called before a record is deleted for us."""
        self._rng = rng
        self._whole_batches = whole_batches
        self._excused = excused
        self._ids = 0
        self._by_key: dict[tuple[str, str], str] = {}
        self._gone: set[str] = set()
        """Ids of the records that people deleted."""

    # --- requests

    def find(self, target: Target, keys: Iterable[str]) -> dict[str, str]:
        """Look records up by key."""
        found = {key: self._by_key.get((target.object, key)) for key in keys}
        return {key: crm_id for key, crm_id in found.items() if crm_id is not None}

    def read(self, crm_ids: Sequence[str], names: Sequence[str], now: float) -> dict[str, dict[str, object]]:
        """Read fields of records."""
        found = {}
        for crm_id in crm_ids:
            held = self.records.get(crm_id)
            if held is not None:
                held.looked_at = now
                found[crm_id] = {name: held.fields.get(name) for name in names}
        return found

    def write(self, batch: Batch) -> list[Outcome]:
        """Write a batch, record by record."""
        if self._whole_batches and any(self._refuses(record) for record in batch.records):
            msg = "something in there is not right"
            raise BatchRejectedError(msg, reason="INVALID")
        self._expect(len({record.key for record in batch.records}) == len(batch.records), "a key twice in a batch")
        return [self._write(batch, record) for record in batch.records]

    def run_jobs(self, now: float, locked: Callable[[], bool]) -> None:
        """Do what the bulk jobs have done by now, whether somebody looks or not."""
        due = [job for job in self.jobs.values() if job.state == "running" and job.done_at <= now]
        for job in sorted(due, key=lambda one: one.done_at):
            job.state = "done"
            for record in job.records or ():
                if locked():
                    job.outcomes.append(Retry("LOCKED", "row lock"))
                else:
                    job.outcomes += isolate(self.write, Batch(job.target, job.op, (record,)))

    # --- people

    def note(self, crm_id: str, text: str) -> None:
        """Let a person write into a field that is not mapped."""
        self.records[crm_id].fields[NOTE] = text

    def fill(self, crm_id: str, text: str, now: float) -> None:
        """Let a person fill the field that is the CRM's own then."""
        held = self.records[crm_id]
        held.fields[OWNED] = text
        held.filled_at = now

    def remove(self, crm_id: str) -> None:
        """Let a person delete a record."""
        held = self.records[crm_id]
        self.removed[held.uid] = held.object, held.key
        self._gone.add(crm_id)
        self._drop(crm_id)

    # --- inside

    def _write(self, batch: Batch, record: Record) -> Outcome:
        outcome = self._judge(batch, record)
        trace("write", batch.target.object, batch.op.value, record, outcome)
        return outcome

    def _judge(self, batch: Batch, record: Record) -> Outcome:
        self.books.counts["writes"] += 1
        if batch.op is Op.DELETE:
            return self._delete(record)
        name = batch.target.object
        if self._refuses(record):
            self._note_refusal(name, record)
            return Rejected("BAD_NAME", "no such name", "Name")
        if batch.op is Op.UPDATE and record.crm_id not in self.records:
            return Missing("no such record")
        holder = self._by_key.get((name, record.key))
        if batch.op is Op.UPDATE and holder is not None and holder != record.crm_id:
            excused = self._excused(self.records[holder].uid, name, record.key)
            self._expect(excused, f"{name} {record.key} would be taken from its record")
            return Rejected("DUPLICATE_VALUE", "another record has that key")
        fields = self._resolved(record)
        if fields is None or not all(map(self._may_link, record.links)):
            return Rejected("NO_PARENT", "foreign key not found")
        crm_id = record.crm_id if batch.op is Op.UPDATE else holder
        if crm_id is None:
            crm_id = self._create(name, record)
        self._put(crm_id, record, fields)
        self.books.refused[name] = 0
        return Applied(crm_id, created=holder is None and batch.op is Op.UPSERT)

    def _note_refusal(self, name: str, record: Record) -> None:
        state = str(record.fields.get("Uid", record.key)), str(record.fields.get("Version"))
        self.books.refused[name] += state not in self.books.told
        self.books.told.add(state)

    def _refuses(self, record: Record) -> bool:
        return not self.tolerant and str(record.fields.get("Name", "")).startswith(BAD)

    def _create(self, name: str, record: Record) -> str:
        self._ids += 1
        self.books.counts["created"] += 1
        self._expect(PLAIN.keys() <= set(record.fields), f"{name} {record.key} made from a part")
        crm_id = f"{name[0]}{self._ids:04}"
        self.records[crm_id] = Held(crm_id, name, record.key)
        self._by_key[name, record.key] = crm_id
        self.removed.pop(str(record.fields.get("Uid")), None)
        return crm_id

    def _put(self, crm_id: str, record: Record, fields: Mapping[str, Any]) -> None:
        held = self.records[crm_id]
        before = (held.key, dict(held.fields), dict(held.links))
        self._keep_owned(held, record, fields)
        if held.key != record.key:
            del self._by_key[held.object, held.key]
            self._by_key[held.object, record.key] = crm_id
        held.key = record.key
        held.fields.update(fields)
        for link in record.links:
            for was in link.was_ids:
                if held.links.get(link.type) == was:
                    del held.links[link.type]
            if link.to_id is not None:
                held.links[link.type] = link.to_id
        if before == (held.key, held.fields, held.links):
            self.books.counts["idle"] += 1
            trace("idle", held)
        version = str(held.fields.get("Version"))
        whose = f"{held.uid} {crm_id if self.gap else ''}"
        newest = self.books.versions.get(whose, "")
        self._expect(version >= newest, f"{held.object} {held.key} went back from {newest} to {version}")
        self.books.versions[whose] = max(version, newest)

    def _keep_owned(self, held: Held, record: Record, fields: Mapping[str, Any]) -> None:
        """See that nothing is written over what a person wrote, unless the record is another row's by now."""
        if held.filled_at is None or OWNED not in fields or fields.get("Uid", held.uid) != held.uid:
            return
        if self.unclear(held.object, record.key):
            return
        if fields[OWNED] != held.fields[OWNED] and not held.looked_at <= held.filled_at < held.looked_at + RACE:
            self.books.wrong.append(f"{held.object} {record.key}: {held.fields[OWNED]} is a person's")

    def _delete(self, record: Record) -> Outcome:
        crm_id = record.crm_id or ""
        held = self.records.get(crm_id)
        if held is not None:
            self.books.counts["deleted"] += 1
            self.deleting(crm_id, held)
            self._drop(crm_id)
        return Applied(record.crm_id)

    def _drop(self, crm_id: str) -> None:
        held = self.records.pop(crm_id)
        del self._by_key[held.object, held.key]
        for other in self.records.values():
            for name in FIELDS:
                if other.fields.get(name) == crm_id:
                    other.fields[name] = None
            other.links = {name: to for name, to in other.links.items() if to != crm_id}

    def _resolved(self, record: Record) -> dict[str, Any] | None:
        resolved: dict[str, Any] = {}
        for name, value in record.fields.items():
            resolved[name] = value
            if isinstance(value, Ref):
                resolved[name] = self._by_key.get((value.object, value.key))
                if resolved[name] is None:
                    if (value.object, value.key) not in self.removed.values():
                        excused = self._excused(self._uid_of(record), value.object, value.key)
                        self._expect(excused, f"sent before its parent {value.object} {value.key}")
                    return None
        return resolved

    def _uid_of(self, record: Record) -> str:
        held = self.records.get(record.crm_id or "")
        return str(record.fields.get("Uid", held.uid if held is not None else None))

    def _may_link(self, link: Link) -> bool:
        if link.to_id is None or link.to_id in self.records:
            return True
        self._expect(link.to_id in self._gone, f"a link to {link.to_id}, which is gone")
        return False

    def _expect(self, condition: bool, wrong: str) -> None:  # noqa: FBT001 — reads as an assertion does
        if not condition:
            self.books.wrong.append(wrong)
