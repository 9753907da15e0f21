"""The socket of one replication connection: drains it, sends status updates, and knows no more.

All of it runs in callbacks of the event loop, none of which waits:

* Reading is paced: at once when the socket was quiet, every ``READ_PACE`` under load (a client that wakes for each
  message costs the walsender more than itself). A drain is bounded, so that the loop stays live; the rest follows at
  the loop's next turn.
* A streamed transaction that commits is delivered in such pieces too, and nothing is read before its end.
* Status updates have a timer that depends on nobody's reading. To pause is to stop watching the socket: TCP holds the
  server back while the updates go on.
* Whatever ends the stream ends ``run``.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from typing import Final

import psycopg
from psycopg import pq

from cdcsync.errors import SourceUnavailableError
from cdcsync.wal.connect import Connection
from cdcsync.wal.session import Event, ReplicationSession
from cdcsync.wal.streamed import StreamedTransactions

READ_PACE: Final = 0.005
"""The least time between two drains, in seconds."""

DRAIN_MESSAGES: Final = 500
DRAIN_BYTES: Final = 1 << 20
"""What one drain takes at most, so that other callbacks of the loop get their turn."""

FAREWELL_SECONDS: Final = 2.0


class Stream:
    """Runs ``session`` over ``connection``, which has just entered COPY BOTH mode; gives events to ``deliver``.

    ``deliver`` is called with the events of each drain, on the event loop; what it raises ends the stream.
    """

    def __init__(
        self, connection: Connection, session: ReplicationSession, deliver: Callable[[list[Event]], None]
    ) -> None:
        self._pgconn = connection.pgconn
        self._session = session
        self._deliver = deliver
        self._loop = asyncio.get_running_loop()
        self._descriptor = connection.fileno()
        self._ended: asyncio.Future[None] = self._loop.create_future()
        self._holds: set[str] = set()
        self._next_drain: asyncio.TimerHandle | asyncio.Handle | None = None
        self._last_drain = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._sending = False
        self._over = False
        self._leaving = False

    async def run(self) -> None:
        """Stream until the server ends it in good order, as a shutdown does.

        Raises psycopg.Error (the connection is lost, or the server says why it ends), SourceUnavailableError (a
        shutdown that waits for what is not durable), DecodeError, and whatever ``deliver`` raises.
        """
        if not self._holds:
            self._next_drain = self._loop.call_soon(self._drain)  # what came with the answer to the command
        self._tick()
        try:
            await self._ended
        finally:
            self._unwatch()
            self._loop.remove_writer(self._descriptor)
            if self._timer is not None:
                self._timer.cancel()
            self._session.close()

    def hold(self, reason: str) -> None:
        """Stop reading until ``reason`` is released; several reasons may hold at once. Status updates go on."""
        self._holds.add(reason)
        self._unwatch()

    def release(self, reason: str) -> None:
        """Go on reading, unless something else holds."""
        self._holds.discard(reason)
        self._session.listen(self._loop.time())
        if not self._holds and not self._ended.done() and self._next_drain is None:
            self._next_drain = self._loop.call_soon(self._drain)  # libpq may hold messages that no socket event tells

    def confirm(self, lsn: int) -> None:
        """Take note that everything before ``lsn`` is durable; the server is told soon."""
        self._session.confirm(lsn)
        self._rearm()

    def request_progress(self) -> None:
        """Ask the server for its position; it comes as Progress, if it is ahead."""
        self._guarded(lambda: self._send(self._session.status(self._loop.time(), reply_now=True)))

    def fail(self, error: Exception) -> None:
        """End the stream with ``error``."""
        if not self._ended.done():
            self._ended.set_exception(error)

    async def farewell(self) -> None:
        """Tell the server what is durable, and end the stream in good order; what it still sends is dropped."""
        self.hold("farewell")
        if self._ended.done():
            return
        try:
            self._send(self._session.status(self._loop.time()))
            self._leaving = True
            self._pgconn.put_copy_end()
            async with asyncio.timeout(FAREWELL_SECONDS):
                await self._discard()
        except (psycopg.Error, TimeoutError):
            pass  # the server resends what it has not heard of
        if not self._ended.done():
            self._ended.set_result(None)

    async def _discard(self) -> None:
        size = 0
        while size >= 0:
            await asyncio.sleep(READ_PACE)
            self._pgconn.flush()
            self._pgconn.consume_input()
            while (size := self._pgconn.get_copy_data(1)[0]) > 0:
                pass

    # --- reading

    def _watch(self) -> None:
        if not self._holds and not self._ended.done():
            self._loop.add_reader(self._descriptor, self._readable)

    def _unwatch(self) -> None:
        self._loop.remove_reader(self._descriptor)
        if self._next_drain is not None:
            self._next_drain.cancel()
            self._next_drain = None

    def _readable(self) -> None:
        earliest = self._last_drain + READ_PACE
        if self._loop.time() >= earliest:
            self._drain()
        else:
            self._loop.remove_reader(self._descriptor)
            self._next_drain = self._loop.call_at(earliest, self._drain)

    def _drain(self) -> None:
        self._next_drain = None
        self._guarded(self._read)
        self._last_drain = self._loop.time()
        if self._next_drain is None:
            self._watch()
        self._tick()  # the timer's own turn comes after all that the loop has to do before it

    def _read(self) -> None:
        """Deliver what has arrived, within the bounds of a drain; the rest has its turn soon."""
        session, now = self._session, self._loop.time()
        events: list[Event] = []
        if session.replaying:
            events = session.replay(now, DRAIN_MESSAGES, DRAIN_BYTES)
            self._drain_again()
        else:
            taken = 0
            for number, data in enumerate(self._messages(), start=1):
                events += session.receive(bytes(data), now)
                taken += len(data)
                if number == DRAIN_MESSAGES or taken > DRAIN_BYTES or session.replaying:
                    self._drain_again()
                    break
        if events and not self._ended.done():  # a warning that came between them may have ended the stream
            self._deliver(events)
        if self._over:
            self._finish()

    def _drain_again(self) -> None:
        """Have the next drain at the loop's next turn, whatever the socket says."""
        self._loop.remove_reader(self._descriptor)
        self._next_drain = self._loop.call_soon(self._drain)

    def _messages(self) -> Iterator[memoryview]:
        """Yield messages until no whole one is left. libpq reads the socket in pieces of some 16 kB."""
        consume, get = self._pgconn.consume_input, self._pgconn.get_copy_data
        encrypted = self._pgconn.ssl_in_use
        arrived = True
        while arrived:
            arrived = False
            consume()
            if encrypted:
                consume()  # the rest of a TLS record, which leaves no trace on the socket
            while (message := get(1))[0] > 0:
                arrived = True
                yield message[1]
            if message[0] < 0:
                self._over = True
                return

    def _finish(self) -> None:
        """Read how the server ended the stream."""
        result = self._pgconn.get_result()
        if result is not None and result.status == pq.ExecStatus.FATAL_ERROR:
            raise psycopg.errors.error_from_result(result, encoding="utf-8")
        if not self._ended.done():
            self._ended.set_result(None)

    # --- writing

    def _tick(self) -> None:
        """Send a status update if it is due, and set the timer to the next."""
        now = self._loop.time()
        if self._session.should_close(now):
            self.fail(SourceUnavailableError("the server shuts down before what it sent is durable; it comes again"))
        elif not self._holds and self._session.silent(now):
            self.fail(SourceUnavailableError("the server has not answered for a long time"))
        elif (status := self._session.due(now)) is not None:
            self._guarded(lambda: self._send(status))
        self._rearm()

    def _rearm(self) -> None:
        """Set the timer to the session's deadline, if it is not set to an earlier time."""
        if self._ended.done():
            return
        deadline = self._session.deadline()
        if self._timer is not None:
            if self._timer.when() <= deadline:
                return
            self._timer.cancel()
        self._timer = self._loop.call_at(deadline, self._alarm)

    def _alarm(self) -> None:
        self._timer = None
        self._tick()

    def _send(self, data: bytes) -> None:
        if self._ended.done() or self._leaving or self._sending:
            return  # where the last update still waits for the socket, the next one will tell more
        self._pgconn.put_copy_data(data)
        self._flush()

    def _flush(self) -> None:
        waiting = bool(self._pgconn.flush())
        if waiting and not self._sending:
            self._loop.add_writer(self._descriptor, lambda: self._guarded(self._flush))
        elif self._sending and not waiting:
            self._loop.remove_writer(self._descriptor)
        self._sending = waiting

    def _guarded(self, action: Callable[[], None]) -> None:
        """Let whatever ``action`` raises end the stream."""
        try:
            action()
        except Exception as error:  # noqa: BLE001 - it is raised again by run(), where it belongs
            self.fail(error)


def start_session(
    start_lsn: int, sender_timeout: float, streamed: StreamedTransactions | None = None
) -> ReplicationSession:
    """Return a session on the running loop's clock."""
    now = asyncio.get_running_loop().time()
    epoch = time.time() - now
    return ReplicationSession(start_lsn, sender_timeout=sender_timeout, now=now, epoch=epoch, streamed=streamed)
