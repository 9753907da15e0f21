"""What the state file holds about deletes: how many went lately, how many records there are, what was let go by hand.

The number of records is kept with each write of the ledger, in its transaction: to count them would take seconds.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from itertools import groupby
from operator import itemgetter

from cdcsync.backlog import COLD, WAITING
from cdcsync.deletes import Account, Spent
from cdcsync.entries import Known
from cdcsync.model import START, Position
from cdcsync.state_file import StateFile
from cdcsync.tombstone import is_tombstone

_SPENT, _RECORDS, _GRANTED, _SWEPT = "deletes:", "records:", "granted:", "swept:"

OURS = """NOT (lsn = 0 AND ordinal = 0) AND shape NOT IN (SELECT id FROM shape WHERE fields LIKE '["",%')"""
"""Of the ledger: the records of rows that live. What is known without our having written it (records that were found to
link to) is not ours, and what was kept of a deleted row is done with (``tombstone.MARK``)."""


class StoredDeletes:
    """The deletes in an open state file; ``mapping_id`` gives a mapping's number there."""

    def __init__(self, file: StateFile, mapping_id: Callable[[str], int]) -> None:
        self._db = file
        self._mapping_id = mapping_id

    def account(self, mapping: str) -> Account:
        """Return what is known of a mapping's deletes."""
        granted = self._db.meta(_GRANTED + mapping)
        return Account(
            Spent.parse(self._db.meta(_SPENT + mapping)),
            self.records(mapping),
            Position(*json.loads(granted)) if granted else START,
            self._swept(mapping),
        )

    def spend(self, mapping: str, spent: Spent) -> None:
        """Write down, before sending, what is about to be spent."""
        with self._db.transaction():
            self._db.set_meta(_SPENT + mapping, spent.to_text())

    def let_go(self, mapping: str, position: Position, oldest: Position | None) -> None:
        """Write down that what a sweep feeds with this position may go; nothing from before ``oldest`` waits."""
        waiting = {one for one in self._swept(mapping) if oldest is not None and one >= oldest}
        with self._db.transaction():
            self._db.set_meta(_SWEPT + mapping, json.dumps(sorted({*waiting, position})))

    def forget_grants(self) -> None:
        """Forget what may go, within a transaction: positions of another slot would mean something else."""
        self._db.execute("DELETE FROM meta WHERE key LIKE 'granted:%' OR key LIKE 'swept:%'")

    def records(self, mapping: str) -> int:
        """Return how many records the CRM holds because we wrote them."""
        kept = self._db.meta(_RECORDS + mapping)
        return self._counted(mapping) if kept is None else int(kept)

    def count(self, entries: Iterable[tuple[str, str, Known | None]]) -> None:
        """Take note of ledger entries that are about to be written, within the transaction and before they are."""
        for mapping, group in groupby(entries, itemgetter(0)):
            of_mapping = list(group)
            new = len({key for _, key, known in of_mapping if known is not None and _is_ours(known)})
            gone = self._known_among(mapping, sorted({key for _, key, _ in of_mapping}))
            self._db.set_meta(_RECORDS + mapping, str(self.records(mapping) + new - gone))

    def waiting(self, mapping: str) -> tuple[int, int]:
        """Count a mapping's rows in the journal, and the deletes that wait among them; it looks at each."""
        deletes = f"flags & 1 AND job IN ({WAITING}, {COLD})"
        query = f"SELECT count(*), count(*) FILTER (WHERE {deletes}) FROM journal WHERE mapping = ?"  # noqa: S608 — ours
        rows, deletes = self._db.execute(query, (self._mapping_id(mapping),)).fetchone()
        return rows, deletes

    def cold(self, mapping: str) -> int:
        """Count a mapping's deletes that live in the journal alone; it looks at each row there."""
        query = f"SELECT count(*) FROM journal WHERE mapping = ? AND job = {COLD} AND flags & 1"  # noqa: S608 — constant
        return int(self._db.execute(query, (self._mapping_id(mapping),)).fetchone()[0])

    def _swept(self, mapping: str) -> frozenset[Position]:
        return frozenset(Position(*one) for one in json.loads(self._db.meta(_SWEPT + mapping) or "[]"))

    def _counted(self, mapping: str) -> int:
        query = f"SELECT count(*) FROM ledger WHERE mapping = ? AND {OURS}"  # noqa: S608 — constant
        return int(self._db.execute(query, (self._mapping_id(mapping),)).fetchone()[0])

    def _known_among(self, mapping: str, keys: Sequence[str]) -> int:
        marks = ",".join("?" * len(keys))
        query = f"SELECT count(*) FROM ledger WHERE mapping = ? AND key IN ({marks}) AND {OURS}"  # noqa: S608 — marks
        return int(self._db.execute(query, (self._mapping_id(mapping), *keys)).fetchone()[0])


def _is_ours(known: Known) -> bool:
    return known.position != START and not is_tombstone(known)
