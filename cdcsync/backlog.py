"""One mapping's rows on their way: waiting, ready, held back, in flight. Pure; the clock is an argument.

A row may go when nothing in flight and nothing that has to go first touches its key. What may not go is *held*
until what it waits for has settled; only rows that wait for their own predecessor or parent are held. The
backlog also remembers which rows changed since the last tick, for the journal.

Where the record under a key may be that of more than one row, none of them may go until it is known whose it is: the
lane asks the CRM for the keys ``in_doubt`` and gives the answer to ``resolve``.
"""

from __future__ import annotations

import heapq
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice, takewhile

from cdcsync.claims import attribute
from cdcsync.coalesce import Event, Fold, PendingRow, over, shown
from cdcsync.entries import Known
from cdcsync.keyset import KeySet
from cdcsync.model import START, Position
from cdcsync.ready import Ready

WAITING = 0
"""Journal slot of a row that waits."""
IN_BATCH = -1
"""Journal slot of a row in flight outside a bulk job; a job's rows are journaled under its number."""
COLD = -2
"""Journal slot of a row that is in the journal alone, to save memory."""

_ASKING = "the CRM is to be asked which row's record it holds"

_HEAP_SLACK = 1_000
_HEAP_GROWTH = 1.25
"""How many entries of rows that are gone may be kept, with their keys."""


@dataclass(frozen=True, slots=True)
class Flight:
    """A row that was handed to the CRM; ``job`` is a bulk job's number or IN_BATCH."""

    row: PendingRow
    job: int
    at: float
    """When it was taken; the clock is that of ``ready``."""


class Backlog:
    """The rows of one mapping that are not settled yet."""

    def __init__(self, mapping: str, cold: KeySet | None = None) -> None:
        self.mapping = mapping
        self.fold = Fold()
        self.ready = Ready()
        """Keys that may be looked at."""
        self.held: dict[str, str] = {}
        """Keys that must wait, and for what, in words."""
        self.in_flight: dict[str, Flight] = {}
        self.cold = KeySet() if cold is None else cold
        """Keys of rows that live in the journal alone. Their later changes wait here, and do not go before them.

        A key may be taken for one of them by mistake; it is looked at again, at the latest when none is left.
        """
        self.coldest: tuple[Position, float] | None = None
        """Position and commit time from which on a cold row's first change may be."""
        self.parked: set[str] = set()
        """Keys of rejected rows."""
        self.discarded: set[str] = set()
        """Those of them that a person gave up, and whose places still count."""
        self.unsure: set[str] = set()
        """Those of them under whose key the CRM may hold nothing by now, or another row's record."""
        self.anchored: dict[str, str] = {}
        """Key that the CRM knows → key of the rejected row whose record still stands under it."""
        self.unclear: set[str] = set()
        """Keys whose record has to be looked up before rows that have to do with them can go."""
        self.referred: Counter[tuple[str, str]] = Counter()
        """How many rows in flight refer to a record, by its mapping and key."""
        self.fed = 0
        """Changes received, ever."""
        self._refers: dict[str, Sequence[tuple[str, str]]] = {}
        self._asked: set[str] = set()
        """Keys that are being looked up: until the answer is here, none of their rows may go."""
        self._recalled: set[str] = set()
        """Keys of parked rows whose later changes wait for them."""
        self._stuck: set[str] = set()
        """Seats of rows that wait for others, in no circle that can be left, as long as nothing moves or settles."""
        self._busy: dict[str, str] = {}
        """Key that a row in flight occupies (its own, and those it leaves) → that row's key."""
        self._oldest: list[tuple[Position, str]] = []
        self._marked: dict[str, Position] = {}
        """The last entry made in ``_oldest``, by key."""
        self._carried = 0
        """Bytes of the rows in flight."""
        self._freezing: dict[str, PendingRow] = {}
        self._doubted = START
        """Cold rows of up to this position may have been sent before a crash."""
        self._dirty: defaultdict[int, set[str]] = defaultdict(set)
        """Keys by the slot in which the journal is behind."""
        self._journaled: defaultdict[int, set[str]] = defaultdict(set)
        """Keys by the slot in which the journal has a row; the cold ones are left out."""

    @property
    def rejected(self) -> int:
        """Rows that are parked and not given up."""
        return len(self.parked) - len(self.discarded)

    def __len__(self) -> int:
        return len(self.fold.waiting) + len(self.in_flight) + len(self.cold)

    def owes(self, key: str) -> bool:
        """Whether a row under this key is not settled, or is parked."""
        return any(key in rows for rows in (self.fold.waiting, self.in_flight, self.cold, self.parked))

    @property
    def moving(self) -> int:
        """Rows that wait for nothing but their turn, or are in flight."""
        return len(self.ready) + len(self.in_flight)

    @property
    def size(self) -> int:
        """Bytes of memory that the rows take, roughly."""
        return self.fold.size + self._carried + len(self.cold) * KeySet.ENTRY_BYTES

    def feed(self, event: Event, now: float, *, uncertain: bool = False) -> list[str]:
        """Take one change in; returns the keys of waiting rows that it made or changed."""
        self.fed += 1
        self._stuck.clear()
        touched = self.fold.feed(event, uncertain=uncertain)
        for key in touched:
            self._woken(key, now)
        for left in {event.key, event.old_key or event.key}:
            if left not in self.fold.waiting:
                self._vacated(left)
        return touched

    def restore(self, rows: Iterable[tuple[int, PendingRow]], now: float) -> None:
        """Load what the journal holds. What was in flight outside a job may have arrived, or not."""
        flights: list[PendingRow] = []
        for job, row in rows:
            self._journaled[job].add(row.key)
            row.doubt()
            if job == WAITING:
                self._seat(row, now)
            elif job == IN_BATCH:
                flights.append(row)
            else:
                self._fly(row, job, now)
        for row in flights:
            self._dirty[IN_BATCH].add(row.key)
            self._give_back(row, now)

    def restore_cold(self, keys: Iterable[str], coldest: PendingRow | None, doubted: Position) -> None:
        """Load which rows live in the journal alone, with the oldest of them; none is newer than ``doubted``."""
        for key in keys:
            self.cold.add(key)
        self._doubted = doubted
        self.note_coldest(coldest)

    def note_coldest(self, row: PendingRow | None) -> None:
        """Take note of the oldest of the rows that live in the journal alone; None where there is none."""
        self.coldest = None if row is None else (row.first, row.since)

    def take(
        self,
        limit: int,
        now: float = 0.0,
        *,
        defer: Callable[[PendingRow], str | None] = lambda _: None,
        room: float = math.inf,
        copied: bool = False,
    ) -> list[PendingRow]:
        """Take up to ``limit`` rows that may go now; others are held for the key in their way, or as ``defer`` says.

        Those that only a copy has brought come last, or with ``copied`` first.
        Fewer, but one at least, if their tuples have more than ``room`` bytes.
        """
        rows: list[PendingRow] = []
        for key in list(islice(self.ready.keys(copied=copied), limit)):
            room -= len(self.fold.waiting[key].image)
            if room < 0 and rows:
                break
            reason = self._obstacle(key, now) or defer(self.fold.waiting[key])
            self.ready.pop(key)
            if reason is not None:
                self.held[key] = reason
                continue
            row = self.fold.take(key)
            self._fly(row, IN_BATCH, now)
            self._dirty[WAITING].add(key)
            rows.append(row)
        return rows

    def freezable(self, limit: int) -> list[str]:
        """Name rows that may go to the journal: those whose turn comes last, and that nothing else hangs on."""
        return list(islice(filter(self.can_freeze, reversed(self.fold.waiting)), limit))

    def can_freeze(self, key: str) -> bool:
        """Whether a row waits under this key that may go to the journal."""
        row = self.fold.waiting.get(key)
        if row is None or row.origins:
            return False
        return not any(key in others for others in (self.fold.movers, self._busy, self.anchored))

    def freeze(self, key: str, older: PendingRow | None) -> None:
        """Leave a freezable row to the journal; ``older`` is what the journal holds of it already.

        The next ``changed`` carries it; it has to be written before anything is thawed.
        """
        row = self.fold.take(key)
        self.ready.pop(key)
        self.held.pop(key, None)
        if older is not None:
            self._doubt_cold(older)
            row = over(older, row)
            self.fold.coalesced += 1
        else:
            self.cold.add(key)
        self.coldest = min(self.coldest or (row.first, row.since), (row.first, row.since))
        self._freezing[key] = row
        self._dirty[WAITING].add(key)
        self._dirty[COLD].add(key)

    def thaw(self, row: PendingRow, now: float) -> None:
        """Take a row back from the journal; what came meanwhile folds over it."""
        self._doubt_cold(row)
        self.cold.discard(row.key)
        self._dirty[COLD].add(row.key)
        self._give_back(row, now)
        self._release(row.key, now)
        if not self.cold:
            self.coldest = None
            self.wake_all(now)

    def assign(self, row: PendingRow, job: int) -> None:
        """Move a row in flight into a bulk job."""
        flight = self.in_flight[row.key]
        self._dirty[flight.job].add(row.key)
        self.in_flight[row.key] = replace(flight, job=job)
        self._dirty[job].add(row.key)

    def refer(self, key: str, records: Sequence[tuple[str, str]]) -> None:
        """Note to which records a row in flight refers, by mapping and key."""
        if records:
            self._refers[key] = records
            self.referred.update(records)

    def settle(self, row: PendingRow, now: float) -> None:
        """Let go of a row in flight for good; what waited for its keys is looked at again."""
        self._land(row)
        self._stuck.clear()
        for key in row.keys:
            self._release(key, now)

    def give_back(self, row: PendingRow, now: float, hold: str | None = None) -> str:
        """Return a row in flight that has to be sent again: ready at once, or held for the reason given.

        The answer is the key that it waits under, folded with what came meanwhile.
        """
        self._land(row)
        key = self._give_back(row, now)
        if hold is not None and key == row.key:
            self.ready.pop(key)
            self.held[key] = hold
        for freed in row.keys:
            if freed != key:
                self._release(freed, now, but=key)
        return key

    def park(self, row: PendingRow, now: float) -> None:
        """Let go of a rejected row in flight."""
        self.mark_parked(row)
        self.settle(row, now)

    def mark_parked(self, row: PendingRow) -> None:
        """Remember that a row is parked."""
        self.parked.add(row.key)
        if not row.is_sure:
            self.unsure.add(row.key)
        for origin in row.origins:
            self.anchored[origin] = row.key

    def unpark(self, row: PendingRow, now: float) -> None:
        """Forget that a row is parked: it is folded into a later change, sent again, or given up."""
        for keys in (self.parked, self.discarded, self.unsure):
            keys.discard(row.key)
        for origin in row.origins:
            if self.anchored.pop(origin, None) is not None:
                self._release(origin, now)

    def readmit(self, row: PendingRow, now: float) -> str:
        """Let a parked row wait again; returns the key that it waits under."""
        self.unpark(row, now)
        key = self._give_back(row, now)
        self._release(row.key, now)
        return key

    def discard(self, row: PendingRow, now: float, *, keep: bool) -> None:
        """Let go of a parked row; ``keep`` its places for what comes next there. What waited for it is looked at."""
        if keep:
            self.discarded.add(row.key)
        else:
            self.unpark(row, now)
        for key in row.keys:
            self._release(key, now)

    def refit(self, row: PendingRow, change: Callable[[PendingRow], PendingRow], now: float) -> None:
        """Change a row in flight in place, keeping track of the keys that it occupies."""
        before = row.keys
        self._carried -= row.size
        for key in before:
            self._busy.pop(key, None)
        change(row)
        self._fly(row, self.in_flight[row.key].job, self.in_flight[row.key].at)
        for key in set(before) - set(row.keys):
            self._release(key, now)

    def wake(self, key: str, now: float) -> None:
        """Look at a held row again."""
        if key in self.held:
            self._woken(key, now)

    def wake_all(self, now: float) -> None:
        """Look at every held row again."""
        for key in list(self.held):
            self._woken(key, now)

    def holds_up(self, key: str) -> bool:
        """Whether a child of the record ``key`` must wait although the ledger knows that record.

        So it is while the record under the key is about to go, to be another row's, or may be gone already.
        """
        flight = self.in_flight.get(self._busy.get(key, ""))
        if flight is not None and (flight.row.deleted or flight.row.key != key):
            return True
        return key in self.fold.movers or key in self.cold or any(not row.is_sure for row in self._rows_of(key))

    def leaves(self, key: str) -> str | None:
        """Return the seat of a row that has to leave ``key`` before another one can be written there."""
        leaving = self.fold.movers.get(key)
        seat = next(iter(leaving)) if leaving else self._busy.get(key)
        return None if seat == key else seat

    def will_write(self, key: str) -> bool:
        """Whether a write of the record ``key`` is waiting or in flight."""
        if key in self.cold:
            return True
        row = self.fold.waiting.get(key)
        if row is None:
            flight = self.in_flight.get(key)
            row = flight.row if flight is not None else None
        return row is not None and not row.deleted

    def knows(self, key: str) -> bool:
        """Whether a row under this key, or leaving it, is not settled."""
        return self.has(key) or key in self.cold

    def has(self, key: str) -> bool:
        """Whether a row under this key, or leaving it, is in memory."""
        return key in self.fold.waiting or key in self.fold.movers or key in self._busy

    @property
    def hindered(self) -> bool:
        """Whether rows wait for what only the lane can do: see ``recalled`` and ``in_doubt``."""
        return bool(self.unclear or self._recalled)

    def moves_since(self, since: float, position: Position) -> bool:
        """Whether a row has been ready or in flight since a time, or is cold with a change of up to ``position``.

        Rows that are held may wait for something that comes after it.
        """
        if self.coldest is not None and self.coldest[0].commit_lsn <= position.commit_lsn:
            return True
        ready = self.ready.oldest()
        flight = next(iter(self.in_flight.values()), None)
        return (ready is not None and ready <= since) or (flight is not None and flight.at <= since)

    def oldest(self) -> Position | None:
        """Return the first position of the oldest row that is not settled; of a cold one it may be somewhat early."""
        oldest = self._oldest_entry()
        return None if oldest is None else oldest[0]

    def oldest_time(self) -> float | None:
        """Return the commit time (Unix) of the change that has waited longest, roughly: that of ``oldest``."""
        oldest = self._oldest_entry()
        return None if oldest is None else oldest[1]

    def changed(self) -> Iterator[tuple[str, int, PendingRow | None]]:
        """Yield (key, slot, row or None) of what the journal must write or drop, by slot and key, and start anew."""
        dirty, self._dirty = self._dirty, defaultdict(set)
        freezing, self._freezing = self._freezing, {}
        for slot, keys in dirty.items():
            journaled = self._journaled[slot]
            for key in sorted(keys):  # where the file has them
                row = freezing.get(key) if slot == COLD else self._row_at(key, slot)
                if row is not None:
                    if slot != COLD:  # there may be millions of those, and they never leave the journal unseen
                        journaled.add(key)
                    yield key, slot, row.copy()
                elif slot == COLD or key in journaled:
                    journaled.discard(key)
                    yield key, slot, None
            if not journaled:
                del self._journaled[slot]
        if len(self._oldest) > _HEAP_GROWTH * (len(self.fold.waiting) + len(self.in_flight)) + _HEAP_SLACK:
            self._rebuild_oldest()

    @property
    def dirty(self) -> int:
        """How many entries of the journal changed since the last tick."""
        return sum(map(len, self._dirty.values()))

    def _row_at(self, key: str, slot: int) -> PendingRow | None:
        if slot == WAITING:
            return self.fold.waiting.get(key)
        flight = self.in_flight.get(key)
        return flight.row if flight is not None and flight.job == slot else None

    def _rows_of(self, key: str) -> Iterator[PendingRow]:
        if key in self.fold.waiting:
            yield self.fold.waiting[key]
        if key in self.in_flight:
            yield self.in_flight[key].row

    def _oldest_entry(self) -> tuple[Position, float] | None:
        warm = self._oldest_in_memory()
        if warm is None or self.coldest is None:
            return warm or self.coldest
        return min(warm, self.coldest)

    def _oldest_in_memory(self) -> tuple[Position, float] | None:
        while self._oldest:
            first, key = self._oldest[0]
            for row in self._rows_of(key):
                if row.first == first:
                    return first, row.since
            heapq.heappop(self._oldest)
            if self._marked.get(key) == first:
                del self._marked[key]
        return None

    def _mark(self, first: Position, key: str) -> None:
        if self._marked.get(key) != first:
            self._marked[key] = first
            heapq.heappush(self._oldest, (first, key))

    def _rebuild_oldest(self) -> None:
        """Drop the entries of rows that went to the journal, or were settled behind one that is stuck."""
        keys = {*self.fold.waiting, *self.in_flight}
        self._oldest = [(row.first, key) for key in keys for row in self._rows_of(key)]
        heapq.heapify(self._oldest)
        self._marked = {key: first for first, key in self._oldest}

    def _obstacle(self, key: str, now: float) -> str | None:
        """Say what is in a row's way, if anything is."""
        row = self.fold.waiting[key]
        reason = self._in_the_way(row)
        if reason is not None:
            return reason
        predecessor = self._predecessor(key)
        if predecessor is not None and not self._leave_circle(key, now):
            return _has_to_settle(predecessor)
        return _ASKING if self.unclear and not self.unclear.isdisjoint(row.keys) else None

    def _in_the_way(self, row: PendingRow) -> str | None:
        for other in row.keys:
            if other in self._busy:
                return _has_to_settle(self._busy[other])
            if other in self.cold:
                return _has_to_settle(other)
            if other in self._asked:
                return _ASKING
        if self.parked:
            states = self.parked.intersection(row.keys)
            if states:
                self._recalled |= states
                return f"the rejected state of {shown(states.pop())} is to be taken up again"
            for other in row.keys:
                if other in self.anchored:
                    if self.anchored[other] in self.discarded:  # nobody else will ever take that one up
                        self._recalled.add(self.anchored[other])
                    return _has_to_settle(self.anchored[other])
        self.unclear.update(place for place in row.places if place in self.fold.movers and self.fold.contested(place))
        return None

    def _predecessor(self, key: str) -> str | None:
        """Return the seat of a waiting row that has to leave ``key`` before the row that sits there can be written."""
        leaving = self.fold.movers.get(key)
        return next(iter(leaving)) if leaving and key not in self.fold.waiting[key].places else None

    def _leave_circle(self, key: str, now: float) -> bool:
        """Whether a row waited in a circle, as when two rows swap keys, and does not any more.

        Each row of the circle is written over the record that it finds, once it is known where their records are.
        """
        circle = self._circle(key)
        if circle is None:
            return False
        rows = [self.fold.waiting[member] for member in circle]
        hindrances = [self._in_the_way(row) for row in rows]  # of each, for what is to be done first
        self.unclear.update(place for row in rows if row.tried for place in row.places)
        if any(hindrances) or any(not self.unclear.isdisjoint(row.keys) for row in rows):
            self._stuck.update(circle)
            return False
        for row in rows:
            self.fold.take(row.key)
            row.lies_at(row.key)
            row.whole = True
            self._seat(row, now)
        self._stuck.clear()
        return True

    def _circle(self, key: str) -> list[str] | None:
        """Return the seats of rows that wait for each other in a circle through ``key``."""
        seen: dict[str, None] = {}
        step: str | None = key
        while step is not None and step not in seen and step not in self._stuck:
            seen[step] = None
            step = self._predecessor(step)
        if step == key and seen:
            return list(seen)
        # Of rows that wait for a circle: those of the circle are still to be looked at.
        self._stuck.update(takewhile(lambda seat: seat != step, seen))
        return None

    # --- whose record it is

    def recalled(self) -> set[str]:
        """Return the keys of rejected rows that are to be readmitted: other rows may go only together with them."""
        places, rows = self._bound_up(self.unclear)
        self._recalled.update(
            places, (row.key for row in rows), (self.anchored[key] for key in places if key in self.anchored)
        )
        self._recalled &= self.parked
        return set(filter(self.can_readmit, self._recalled))

    def can_readmit(self, key: str) -> bool:
        """Whether a row is parked that no later change of it is in flight or cold beside."""
        return key in self.parked and key not in self.cold and key not in self._busy

    def in_doubt(self) -> set[str]:
        """Return the keys under which the CRM is to be asked for records, with all that are bound up with them.

        Those of rows that are not all at hand are left out. ``resolve`` or ``forget_doubts`` has to follow.
        """
        if self._asked:
            return set()
        left = set(self.unclear)
        while left:
            keys, rows = self._bound_up([left.pop()])
            left -= keys
            touched = keys.union(*(row.keys for row in rows))
            away = any(key in self._busy or key in self.cold or key in self.parked for key in touched)
            if not away and self.anchored.keys().isdisjoint(keys):
                self._asked |= keys
        return set(self._asked)

    def forget_doubts(self) -> None:
        """Take note that the CRM did not answer."""
        self._asked = set()

    def resolve(
        self, found: Mapping[str, str], known: Mapping[str, Known], now: float
    ) -> dict[str, tuple[str, Known | None] | None]:
        """Give each record that was found under the keys in doubt to the row whose it is.

        Returns what is known of each of these keys now: the record's id, with the ledger's entry that it had; None:
        there is no record.
        """
        asked, self._asked = self._asked, set()
        self._stuck.clear()
        rows = [row for row in self._bound_up(asked)[1] if asked.issuperset(row.places)]
        places = {place for row in rows for place in row.places}
        owned = attribute(rows, found, known)
        for row in rows:
            mine = owned.get(row.key)
            self.fold.take(row.key)
            row.lies_at(mine.place if mine is not None else None)
            row.uncertain = True
            row.whole = row.whole or (mine is not None and not mine.sure)
            self._seat(row, now)
        self.unclear -= asked
        for key in asked:
            self._release(key, now)
        there = {mine.place: (mine.crm_id, mine.known) for mine in owned.values()}
        return {place: there.get(place) for place in places}

    def _bound_up(self, keys: Iterable[str]) -> tuple[set[str], list[PendingRow]]:
        """Return keys with all that are places of rows that may have a record under one of them, and these rows."""
        reached = set(keys)
        todo = list(reached)
        rows: dict[str, PendingRow] = {}
        while todo:
            for key in self.fold.claimants(todo.pop()):
                rows[key] = self.fold.waiting[key]
                further = set(rows[key].places) - reached
                reached |= further
                todo.extend(further)
        return reached, list(rows.values())

    def _doubt_cold(self, row: PendingRow) -> None:
        if row.first <= self._doubted:
            row.doubt()

    # --- bookkeeping

    def _fly(self, row: PendingRow, job: int, now: float) -> None:
        self._carried += row.size
        self.in_flight[row.key] = Flight(row, job, now)
        for key in row.keys:
            self._busy[key] = row.key
        self._dirty[job].add(row.key)
        self._mark(row.first, row.key)

    def _land(self, row: PendingRow) -> None:
        flight = self.in_flight.pop(row.key)
        self._carried -= row.size
        self._dirty[flight.job].add(row.key)
        for key in row.keys:
            self._busy.pop(key, None)
        for place in self._refers.pop(row.key, ()):
            self.referred[place] -= 1
            if not self.referred[place]:
                del self.referred[place]

    def _give_back(self, row: PendingRow, now: float) -> str:
        self._stuck.clear()
        key = self.fold.give_back(row)
        self._woken(key, now)
        if row.key not in self.fold.waiting:
            self._vacated(row.key)
        return key

    def _seat(self, row: PendingRow, now: float) -> None:
        before = row.key
        after = self.fold.put(row)
        if after != before:
            self._vacated(before)
        self._woken(after, now)

    def _vacated(self, key: str) -> None:
        self._dirty[WAITING].add(key)
        self.ready.pop(key)
        self.held.pop(key, None)

    def _woken(self, key: str, now: float) -> None:
        self.held.pop(key, None)
        self.ready.add(key, now, copied=self.fold.waiting[key].copied)
        self._dirty[WAITING].add(key)
        self._mark(self.fold.waiting[key].first, key)

    def _release(self, key: str, now: float, but: str | None = None) -> None:
        # Rows that are to leave this key may be held under the keys that they go to.
        for other in (key, *self.fold.movers.get(key, ())):
            if other in self.held and other != but:
                self._woken(other, now)


def _has_to_settle(key: str) -> str:
    return f"key {shown(key)} has to settle first"
