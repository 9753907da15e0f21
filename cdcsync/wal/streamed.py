"""What streamed transactions have sent so far, until they commit or are rolled back. Its files come from the caller.

A server that streams (``streaming 'on'``) sends a large transaction in segments while it is still open. Rows carry the
id of their subtransaction, which may yet be rolled back alone; so each message is kept with that id, and which of them
count is known at the commit. What is kept is the message as it came, without the id: read back in order by a decoder,
it gives what protocol 1 would have given.

Memory is bounded: above ``memory`` bytes in all, the largest transaction goes to a file of its own, and is read back
piece by piece. Of a subtransaction that was rolled back, four bytes are remembered.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Callable, Iterator
from struct import Struct
from typing import IO, Final

from cdcsync.errors import DecodeError

MEMORY: Final = 16 << 20
"""Bytes of messages that are kept in memory, of all transactions together."""

ALWAYS: Final = 0
"""In place of a subtransaction: what stays valid whatever is rolled back. No transaction has this id."""

_RECORD = Struct(">II")

OpenFile = Callable[[], IO[bytes]]
"""Opens a new, empty file for reading and writing, which vanishes when it is closed."""


class StreamedTransaction:
    """The messages of one open transaction, in order; ``buffered`` is how many bytes of them are in memory."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._file: IO[bytes] | None = None
        self._aborted = array("I")

    @property
    def buffered(self) -> int:
        """Bytes in memory."""
        return len(self._buffer)

    def add(self, subxid: int, payload: bytes) -> None:
        """Keep a message of ``subxid`` (or ``ALWAYS``)."""
        self._buffer += _RECORD.pack(subxid, len(payload))
        self._buffer += payload

    def abort(self, subxid: int) -> None:
        """Drop what ``subxid`` has sent."""
        self._aborted.append(subxid)

    def spill(self, open_file: OpenFile) -> None:
        """Move what is in memory to the file. Raises OSError."""
        if self._file is None:
            self._file = open_file()
        self._file.write(self._buffer)
        self._buffer.clear()

    def survivors(self) -> Iterator[bytes]:
        """Yield the messages that no abort dropped. Raises OSError. Nothing may be added any more."""
        aborted = sorted(self._aborted)
        latest, dropped = ALWAYS, False
        for subxid, payload in self._records():
            if subxid != latest:
                place = bisect_left(aborted, subxid)
                latest, dropped = subxid, place < len(aborted) and aborted[place] == subxid
            if not dropped:
                yield payload

    def close(self) -> None:
        """Give the file back."""
        if self._file is not None:
            self._file.close()

    def _records(self) -> Iterator[tuple[int, bytes]]:
        file = self._file
        if file is not None:
            file.seek(0)
            while header := file.read(_RECORD.size):
                subxid, length = _RECORD.unpack(header)
                payload = file.read(length)
                if len(payload) != length:
                    raise OSError("the file of a streamed transaction ends too early")
                yield subxid, payload
        at = 0
        while at < len(self._buffer):
            subxid, length = _RECORD.unpack_from(self._buffer, at)
            at += _RECORD.size + length
            yield subxid, bytes(self._buffer[at - length : at])


class StreamedTransactions:
    """All transactions of one connection that are streamed and still open; files come from ``open_file``.

    Segments do not overlap: between ``start`` and ``stop``, what is added belongs to one transaction.
    """

    def __init__(self, open_file: OpenFile, memory: int = MEMORY) -> None:
        self._open_file = open_file
        self._memory = memory
        self._buffered = 0
        self._open: dict[int, StreamedTransaction] = {}
        self._current: StreamedTransaction | None = None

    def __len__(self) -> int:
        return len(self._open)

    def start(self, xid: int, *, first: bool) -> None:
        """Begin a segment of ``xid``. Raises DecodeError if it is not the first one, and those before did not come."""
        if first == (xid in self._open):
            raise DecodeError(f"streamed transaction {xid} does not go on where it stopped")
        self._current = self._open.setdefault(xid, StreamedTransaction())

    def stop(self) -> None:
        """End the segment."""
        self._current = None

    def add(self, subxid: int, payload: bytes) -> None:
        """Keep a message of the present segment. Raises OSError when it has to go to a file and cannot."""
        transaction = self._current
        if transaction is None:
            raise DecodeError("a message of a streamed transaction outside a segment")
        before = transaction.buffered
        transaction.add(subxid, payload)
        self._buffered += transaction.buffered - before
        if self._buffered > self._memory:
            self._spill()

    def abort(self, xid: int, subxid: int) -> None:
        """Drop what ``subxid`` has sent; all of the transaction if it is ``xid`` itself."""
        if xid == subxid:
            transaction = self._open.pop(xid, None)
            if transaction is not None:
                self._buffered -= transaction.buffered
                transaction.close()
        elif xid in self._open:
            self._open[xid].abort(subxid)

    def take(self, xid: int) -> StreamedTransaction:
        """Hand out ``xid``, which has committed, for the caller to read and close. Raises DecodeError if none came."""
        transaction = self._open.pop(xid, None)
        if transaction is None:
            raise DecodeError(f"streamed transaction {xid} commits, but none of it came")
        self._buffered -= transaction.buffered
        return transaction

    def close(self) -> None:
        """Drop everything."""
        for transaction in self._open.values():
            transaction.close()
        self._open.clear()

    def _spill(self) -> None:
        largest = max(self._open.values(), key=lambda transaction: transaction.buffered)
        self._buffered -= largest.buffered
        largest.spill(self._open_file)
