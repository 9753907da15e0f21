"""Ordering a SELECT against the stream by what its snapshot sees. Pure.

The stream delivers a commit before other sessions see it (behind a synchronous standby, long before), so neither LSNs
nor clocks say whether a row that was read is older or newer than one that was streamed. Transaction ids do:

* a streamed transaction that the snapshot does not see is newer than anything read under it;
* one that it sees is contained in what was read.

So a chunk of a table is read like this: note the keys that the stream touches; read the rows, their snapshot, and the
end of the WAL *after* reading; wait until the stream has come there, for then all that the snapshot sees has been
delivered; drop the rows whose keys were touched by transactions that it does not see; the others go out, and whatever
the stream brings later is newer.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple, Self

MAX_NOTED: Final = 100_000
"""Keys that a window notes before the chunk's own keys are known; a chunk read so slowly is read again, smaller."""

MAX_RECENT: Final = 131_072
"""Transactions remembered from before a window (those touching its mapping since the last snapshot)."""

_EPOCH = 1 << 32


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What ``pg_current_snapshot()`` says: all below ``xmin`` is visible, nothing from ``xmax`` on, nor in ``xip``.

    Transaction ids are 64-bit here, and only those of top-level transactions, which are what the stream carries too.
    """

    xmin: int
    xmax: int
    xip: frozenset[int]

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read ``xmin:xmax:xip,…``. Raises ValueError for anything else."""
        xmin, xmax, xip = text.split(":")
        return cls(int(xmin), int(xmax), frozenset(map(int, xip.split(","))) if xip else frozenset())

    def bounded(self) -> Self:
        """Return what is sure of a standby's snapshot: it lists none of the transactions between its bounds that run.

        A visible one that is taken for invisible costs a second look at its rows, and no more.
        """
        return type(self)(self.xmin, self.xmin, frozenset())

    def sees(self, xid: int) -> bool:
        """Tell whether a committed transaction is visible; ``xid`` is 32 bits wide and near this snapshot."""
        distance = (xid - self.xmax + _EPOCH // 2) % _EPOCH - _EPOCH // 2
        full = self.xmax + distance
        return full < self.xmax and full not in self.xip


class Merged(NamedTuple):
    """``rows`` to apply; the first ``settled`` rows of the chunk need not be read again, the others have to be."""

    rows: list[bytes]
    settled: int


class Window:
    """One mapping's reconciliation with the stream, chunk after chunk.

    ``note`` is called for each streamed change of the mapping from before the first chunk to after the last one; around
    each chunk goes ``open`` before its transaction begins, ``narrow`` when its rows are known, ``merge`` (or
    ``close``) at the end. Between the ``merge`` and the application of its rows nothing may be streamed.
    """

    def __init__(self) -> None:
        self._recent: deque[int] = deque(maxlen=MAX_RECENT)
        self._before: tuple[int, ...] = ()
        self._noted: dict[str, dict[int, bool]] | None = None
        self._chunk: frozenset[str] | None = None
        self._truncates: list[int] = []
        self.overflowed = False

    def note(self, key: str, xid: int, *, partial: bool = False) -> None:
        """Note a streamed change: once per key, for a key change with the old and the new one.

        ``partial``: its new tuple left columns out (unchanged TOAST). A row that was read before may then not be
        dropped in its favour: it is the only one to hold those columns.
        """
        self._remember(xid)
        if self._noted is None or (self._chunk is not None and key not in self._chunk):
            return
        if len(self._noted) >= MAX_NOTED and key not in self._noted:
            self.overflowed = True
            return
        changes = self._noted.setdefault(key, {})
        changes[xid] = partial and changes.get(xid, True)

    def note_truncate(self, xid: int) -> None:
        """Note a streamed TRUNCATE of the table: it touches all keys."""
        self._remember(xid)
        if self._noted is not None:
            self._truncates.append(xid)

    def open(self) -> None:
        """Begin to note keys, before the chunk's snapshot is taken."""
        self._before = tuple(self._recent)
        self._noted, self._chunk, self._truncates, self.overflowed = {}, None, [], False

    def follows(self, snapshot: Snapshot) -> bool:
        """Whether all that was streamed before the window opened is visible to a snapshot."""
        return all(map(snapshot.sees, self._before))

    def narrow(self, keys: Iterable[str]) -> None:
        """Note only these keys from now on: the chunk's rows are known."""
        if self._noted is None:
            return
        self._chunk = frozenset(keys)
        self._noted = {key: changes for key, changes in self._noted.items() if key in self._chunk}

    def merge(self, rows: Sequence[tuple[str | None, bytes]], snapshot: Snapshot) -> Merged:
        """Close the window and pick the rows that nothing streamed is newer than.

        The stream must have reached the end of the WAL as it was after the rows were read. Nothing is settled when a
        transaction was delivered before the window opened and is not visible to the snapshot (its keys are not known),
        or when the table was truncated meanwhile.
        """
        noted = self._noted or {}
        unclear = self.overflowed or not self.follows(snapshot) or not all(map(snapshot.sees, self._truncates))
        self._recent = deque((xid for xid in self._recent if not snapshot.sees(xid)), MAX_RECENT)
        self.close()
        if unclear:
            return Merged([], 0)
        kept: list[bytes] = []
        for index, (key, row) in enumerate(rows):
            changes = noted.get(key, {}) if key is not None else {}
            newer = [partial for xid, partial in changes.items() if not snapshot.sees(xid)]
            if not newer:
                kept.append(row)
            elif all(newer):
                return Merged(kept, index)
        return Merged(kept, len(rows))

    def close(self) -> None:
        """Stop noting keys, without a result."""
        self._noted, self._chunk, self._before = None, None, ()

    def _remember(self, xid: int) -> None:
        if not self._recent or self._recent[-1] != xid:
            self._recent.append(xid)


def flushed_position(insert_lsn: int, segment_size: int, block_size: int) -> int:
    """Turn an insert position into the one that flushing (and so the stream) can reach at that moment.

    When the last record ends exactly at the end of a page, the insert position already stands behind the next page's
    header (24 bytes; 40 on a segment's first page), while the flush position stays at the boundary.
    """
    in_page = insert_lsn % block_size
    header = 40 if insert_lsn % segment_size < block_size else 24
    return insert_lsn - in_page if in_page == header else insert_lsn
