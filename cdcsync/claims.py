"""Which of several rows a record belongs to that stands under a key that each of them had. Pure.

After a crash the stream shows which keys a row had, and not under which of them it was sent: a record may be that of
the row that left its key, or of a later one there. The CRM is asked for all those keys at once, while none of the rows
is sent. Whoever wrote a record is among the rows that had its key, and no row has two.

The ledger knows some of the records by their ids, whatever key they have now. One that it does not know was created
since, by a row inserted since, of which every column is at hand: whichever row gets it writes it whole, and the others
are created. Rows that were swapping their keys may have taken each other's records over: whatever the ids say, those
are written whole.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cdcsync.coalesce import PendingRow
from cdcsync.entries import Known


@dataclass(frozen=True, slots=True)
class Owned:
    """The record that is a row's: its key and id, and what the ledger knew of it.

    ``sure``: nothing but states of this row was ever written to it.
    """

    place: str
    crm_id: str
    known: Known | None
    sure: bool


def attribute(rows: Sequence[PendingRow], found: Mapping[str, str], known: Mapping[str, Known]) -> dict[str, Owned]:
    """Return each row's record by the row's seat; rows that have none are left out.

    ``rows`` are all that may have a record under one of the keys asked for, ``found`` the ids of the records by key,
    ``known`` the ledger's entries by key.
    """
    matching = _Matching(rows, found, known)
    matching.run()
    swapped = _swapping(rows)
    by_id = {entry.crm_id: entry for entry in known.values()}
    return {
        row.key: Owned(
            place, found[place], by_id.get(found[place]), matching.is_own(row, place) and row.key not in swapped
        )
        for place, row in matching.owner.items()
    }


class _Matching:
    """Each record's row, so that as many records as can have one do (by augmenting paths)."""

    def __init__(self, rows: Sequence[PendingRow], found: Mapping[str, str], known: Mapping[str, Known]) -> None:
        self.owner: dict[str, PendingRow] = {}
        self._place: dict[str, str] = {}
        self._claimants = _by_place(rows)
        self._found = found
        self._known = known

    def run(self) -> None:
        """Match; records that are known by their ids first."""
        for place in sorted(self._found, key=lambda place: not self._is_known(place)):
            self._assign(place)

    def is_own(self, row: PendingRow, place: str) -> bool:
        """Whether the record at ``place`` is the one that the ledger knows as the row's."""
        entry = self._entry(row)
        return entry is not None and entry.crm_id == self._found[place]

    def _is_known(self, place: str) -> bool:
        return any(self.is_own(row, place) for row in self._claimants[place])

    def _assign(self, place: str) -> None:
        """Give the record at ``place`` to a row, whose own record may go to another one, and so on."""
        places, came_by = [place], dict[str, str]()
        for current in places:
            for row in sorted(self._claimants[current], key=lambda row: self._unlikely(row, current)):
                if row.key in came_by:
                    continue
                came_by[row.key] = current
                if row.key not in self._place:
                    self._hand_on(row, came_by)
                    return
                places.append(self._place[row.key])

    def _hand_on(self, row: PendingRow | None, came_by: Mapping[str, str]) -> None:
        while row is not None:
            place = came_by[row.key]
            displaced = self.owner.get(place)
            self.owner[place], self._place[row.key] = row, place
            row = displaced

    def _unlikely(self, row: PendingRow, place: str) -> tuple[bool, ...]:
        """Order rows for a record: its own, then one that may lack columns, and so should have what may be its own.

        A row that is gone comes last: where a sweep deletes what another row just leaves, that one is to have it.
        """
        taken, knows = row.key in self._place, self._entry(row) is not None
        return taken, not self.is_own(row, place), row.deleted, knows, row.base is None, row.key != place

    def _entry(self, row: PendingRow) -> Known | None:
        return self._known.get(row.base) if row.base is not None else None


def _by_place(rows: Sequence[PendingRow]) -> defaultdict[str, list[PendingRow]]:
    claimants: defaultdict[str, list[PendingRow]] = defaultdict(list)
    for row in rows:
        for place in row.places:
            claimants[place].append(row)
    return claimants


def _swapping(rows: Sequence[PendingRow]) -> set[str]:
    """Return the seats of rows that may have waited for each other's keys in a circle, and perhaps of some more.

    A row that wanted no key which another one may have had was in no circle, nor was one whose keys no other wanted;
    without these there are more of them.
    """
    claimants = _by_place(rows)
    claims = {place: len(those) for place, those in claimants.items()}
    wants = Counter(place for row in rows for place in row.tried)
    left = {row.key for row in rows}
    todo = list(rows)
    while todo:
        row = todo.pop()
        waited = any(claims[place] > 1 for place in row.tried)
        waited_for = any(wants[place] > (place in row.tried) for place in row.places)
        if row.key not in left or (waited and waited_for):
            continue
        left.discard(row.key)
        for place in row.places:
            claims[place] -= 1
            wants[place] -= place in row.tried
            if claims[place] == 1 or (place in row.tried and wants[place] <= 1):
                todo.extend(other for other in claimants[place] if other.key in left)
    return left
