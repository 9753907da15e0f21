"""The stream of committed changes, for ever: connects, verifies what it finds, streams, and connects again.

What a retry can mend is retried, with growing pauses. What it cannot mend is SourceError: a slot that is gone, lost or
ahead of what is durable here, another cluster, a history that left ours, a publication that is gone.
"""

from __future__ import annotations

import asyncio
import random
import tempfile
from collections.abc import Callable
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, Final

import psycopg
from psycopg import sql
from psycopg.errors import Diagnostic
from structlog.typing import FilteringBoundLogger

from cdcsync.errors import SourceError, SourceUnavailableError
from cdcsync.model import format_lsn
from cdcsync.wal.announce import Announcer
from cdcsync.wal.catalog import Ancestor, load_ancestors, load_types, rows, server_version
from cdcsync.wal.connect import RAW, SHUTTING_DOWN, Connection, connect_again, holds_any_bytes, until_closed
from cdcsync.wal.formats import verify_formats
from cdcsync.wal.options import VERSION_14, start_options
from cdcsync.wal.session import Event, ReplicationSession
from cdcsync.wal.slot import SlotIdentity, identify_system, present_timeline, sessions, show_slot
from cdcsync.wal.stream import Stream, start_session
from cdcsync.wal.streamed import StreamedTransactions
from cdcsync.wal.verify import refusal, verify_publication, verify_slot, verify_system

if TYPE_CHECKING:
    from cdcsync.config import PostgresConfig

TEXT_OID: Final = 25
RETRY_SECONDS: Final = (0.2, 30.0)
DOUBLINGS: Final = 8
BUSY_SECONDS: Final = 5.0
"""The longest pause while another connection holds the slot: mostly one of ours that the server has yet to miss."""
STEADY_SECONDS: Final = 10.0
"""A stream that lasted as long was no failure: the pauses start anew."""
REOPEN_SECONDS: Final = 0.5
SHUTDOWN_SECONDS: Final = 2.0
"""How long a server that shuts down may go on sending: it does not say so in the stream before it has sent all."""
REMIND_SECONDS: Final = 300.0
"""How often the log says again what keeps the stream from running."""
SPILL_BUFFER: Final = 256 << 10
"""Bytes that are read back at once from a file of a streamed transaction."""
PROMOTION_SECONDS: Final = 1.0
"""How often a standby is asked whether it still is one."""

SENDER_TIMEOUT: Final = "SELECT setting::int8 FROM pg_settings WHERE name = 'wal_sender_timeout'"

PARTITIONED: Final = "SELECT EXISTS (SELECT FROM pg_class WHERE relkind = 'p')"

Sink = Callable[[list[Event]], None]


class _SlotBusyError(SourceUnavailableError):
    """Another connection reads the slot."""


class Source:
    """Reads the slot of ``settings`` and gives events to ``sink``, on the event loop, once per drain of the socket.

    ``on_connect`` is called before the first events of each connection: they start again after the last confirmed
    position, so a transaction that was cut short or not yet confirmed comes again from its beginning.
    ``on_gap`` is called, with the reason, when rows of whatever table are missing from the stream that goes on.

    ``types`` maps each user-defined type to the builtin one whose text form it has (``catalog.load_types``); it knows
    all column types of a relation before that relation's rows are delivered. The object stays the same.

    ``partitions`` maps the oid of a partition to the partitioned tables above it. A publication
    without ``publish_via_partition_root`` sends a partition's rows under its own name; it is looked up each time the
    stream describes it, so that partitions may be made, attached and detached meanwhile. This object stays the same.

    ``lent`` is a replication connection with a temporary slot, which goes with it: so does the stream.

    ``spill_directory`` is for the rows of large open transactions, where ``settings.streaming`` makes the server send
    them (None: the system's directory for temporary files). The files have no names: a crash leaves nothing behind.
    """

    def __init__(
        self,
        settings: PostgresConfig,
        *,
        sink: Sink,
        log: FilteringBoundLogger,
        on_connect: Callable[[], None] = lambda: None,
        on_gap: Callable[[str], None] = lambda _: None,
        spill_directory: Path | None = None,
        lent: Connection | None = None,
    ) -> None:
        self.types: dict[int, int] = {}
        self.partitions: dict[int, tuple[Ancestor, ...]] = {}
        self.last_error: str | None = None
        self.timeline: int | None = None
        self._settings = settings
        self._sink = sink
        self._log = log
        self._on_connect = on_connect
        self._on_gap = on_gap
        self._spill_directory = spill_directory
        self._lent = lent
        self._announcer = Announcer(settings.messages, log)
        self._durable = 0
        self._touched = 0
        self._expected: SlotIdentity | None = None
        self._session: ReplicationSession | None = None
        self._stream: Stream | None = None
        self._loading: asyncio.Task[None] | None = None
        self._partitioned = False
        self._paused = False
        self._stopping = asyncio.Event()
        self._failures = 0
        self._remind_at = 0.0

    @property
    def connected(self) -> bool:
        """Whether the stream runs now."""
        return self._stream is not None

    @property
    def received_lsn(self) -> int:
        """How far whole transactions were received on the present or last connection; 0 before the first."""
        return self._session.received if self._session else 0

    @property
    def server_lsn(self) -> int:
        """How far the server has read its WAL for us, as far as it said on the present or last connection."""
        return self._session.server if self._session else 0

    async def run(self, start_lsn: int, expected: SlotIdentity | None, touched: int = 0) -> None:
        """Stream from ``start_lsn``, the durable position (0: the slot's own), until ``stop``.

        ``expected`` is what the checkpoint is bound to, and ``touched`` how far changes were taken before, beyond what
        was durable. Raises SourceError for what a retry cannot mend, DecodeError, and whatever the sink raises.
        """
        self._durable = start_lsn
        self._touched = max(start_lsn, touched)
        self._expected = expected
        self.timeline = expected.timeline if expected else None
        while not self._stopping.is_set():
            began = asyncio.get_running_loop().time()
            longest = RETRY_SECONDS[1]
            try:
                await self._follow()
            except (psycopg.Error, SourceUnavailableError, OSError) as error:
                self._note(refusal(error, self._settings.slot, self._settings.publication))
                longest = BUSY_SECONDS if isinstance(error, _SlotBusyError) else longest
            if self._stopping.is_set():
                return
            if asyncio.get_running_loop().time() - began > STEADY_SECONDS:
                self._failures = 0
            await self._wait_before_retry(longest)

    def confirm(self, lsn: int) -> None:
        """Take note that everything before ``lsn`` is durable: a commit's ``end_lsn`` or a ``Progress.lsn``."""
        self._durable = max(self._durable, lsn)
        if self._stream is not None:
            self._stream.confirm(lsn)

    def pause(self) -> None:
        """Stop reading; the server goes on hearing of us, and keeps what we do not read."""
        self._paused = True
        if self._stream is not None:
            self._stream.hold("consumer")

    def resume(self) -> None:
        """Go on reading."""
        self._paused = False
        if self._stream is not None:
            self._stream.release("consumer")

    def request_progress(self) -> None:
        """Ask the server for its position; it comes as a Progress event, if it is ahead of what was received."""
        if self._stream is not None:
            self._stream.request_progress()

    async def stop(self) -> None:
        """End the stream in good order, with the last confirmed position told; ``run`` returns."""
        self._stopping.set()
        if self._stream is not None:
            await self._stream.farewell()

    # --- one connection

    async def _follow(self) -> None:
        """Connect and stream once, until the server ends it."""
        async with AsyncExitStack() as stack:
            if self._lent is not None and self._lent.closed:
                raise SourceError("the connection is lost, and the temporary slot with it", hint="start again")
            ordinary = await connect_again(self._settings)
            stack.push_async_callback(ordinary.close)
            replication = self._lent or await connect_again(self._settings, replication=True)
            stack.push_async_callback(replication.close)
            await self._verify(ordinary, replication)
            self.types.update(await load_types(ordinary))
            ((self._partitioned,),) = await rows(ordinary, PARTITIONED)
            stream = await self._start(ordinary, replication)
            self._on_connect()
            if self._paused:
                stream.hold("consumer")
            self._stream = stream
            self.last_error = None
            self._log.info("streaming", slot=self._settings.slot, start=format_lsn(self._durable))
            watching = asyncio.ensure_future(self._watch_server(ordinary, stream))
            stack.push_async_callback(_end, watching)
            try:
                await stream.run()
            finally:
                self._stream = None
                if self._loading is not None:
                    await _end(self._loading)
        if not self._stopping.is_set():
            raise SourceUnavailableError("the server ended the stream, as it does when it shuts down")

    async def _verify(self, ordinary: Connection, replication: Connection) -> None:
        settings, since = self._settings, self._durable
        await verify_formats(ordinary, "ordinary")
        await verify_formats(replication, "replication")
        await verify_publication(ordinary, settings.publication, made_anew=settings.create)
        await verify_slot(ordinary, await show_slot(ordinary, settings.slot), since)
        system = await identify_system(replication)
        if self._session is not None:
            self._touched = max(self._touched, self._session.touched)
        await verify_system(replication, system, self._expected, self.timeline, max(since, self._touched))
        self._adopt(system.timeline)
        if self._expected is None:
            self._expected = SlotIdentity(system.system_id, system.timeline, system.database, settings.slot, 0)

    def _adopt(self, timeline: int) -> None:
        if self.timeline is not None and timeline != self.timeline:
            self._log.warning("the server was promoted", timeline=timeline, before=self.timeline)
        self.timeline = timeline

    async def _start(self, ordinary: Connection, replication: Connection) -> Stream:
        settings = self._settings
        if server_version(ordinary) >= VERSION_14:
            await ordinary.execute("SET idle_session_timeout = 0")
        ((sender_timeout,),) = await rows(replication, SENDER_TIMEOUT)
        replication.add_notice_handler(self._notice)
        options = start_options(replication, settings)
        command = (
            sql.SQL("START_REPLICATION SLOT {} LOGICAL {} ({})")
            .format(sql.Identifier(settings.slot), sql.SQL(format_lsn(self._durable)), options)
            .as_bytes(replication)
        )
        if holds_any_bytes(replication):
            await replication.execute(RAW)
        try:
            await replication.execute(command)
        except psycopg.errors.ObjectInUse as error:
            holder = (await show_slot(ordinary, settings.slot)).active_pid
            by = await sessions(ordinary, [holder]) if holder else "a process that has ended since"
            raise _SlotBusyError(f"slot {settings.slot!r} is in use by {by}") from error
        streamed = StreamedTransactions(self._open_file) if settings.streaming else None
        self._session = start_session(self._durable, int(sender_timeout) / 1000, streamed)
        return Stream(replication, self._session, self._receive)

    def _open_file(self) -> IO[bytes]:
        return tempfile.TemporaryFile(dir=self._spill_directory, prefix="cdcsync-", buffering=SPILL_BUFFER)

    async def _watch_server(self, ordinary: Connection, stream: Stream) -> None:
        """End the stream when the server shuts down and would have to wait for us.

        It waits until we have read everything: a paused reader does not hear it say so, and one with much to read only
        at the end. Its ordinary sessions, though, are ended first and not let in again. A stream that is read to its
        end in time has a better one of its own.
        """
        try:
            while True:
                await self._until_promoted(ordinary)
                await until_closed(ordinary)
                await ordinary.close()
                ended = asyncio.get_running_loop().time()
                while isinstance(reopened := await self._reopen(), SourceUnavailableError):
                    late = asyncio.get_running_loop().time() - ended >= SHUTDOWN_SECONDS
                    if self._paused or (late and SHUTTING_DOWN in reopened.message):
                        stream.fail(SourceUnavailableError("the server shuts down before all it sent is read"))
                        return
                    await asyncio.sleep(REOPEN_SECONDS)
                ordinary = reopened
        finally:
            await ordinary.close()

    async def _until_promoted(self, ordinary: Connection) -> None:
        """Follow a standby's promotion: its stream goes on over it, and says nothing. A primary's was before."""
        with suppress(psycopg.Error):
            while (timeline := await present_timeline(ordinary)) is None:  # noqa: ASYNC110 - the server tells nobody
                await asyncio.sleep(PROMOTION_SECONDS)
            self._adopt(timeline)

    async def _reopen(self) -> Connection | SourceUnavailableError:
        try:
            return await connect_again(self._settings)
        except SourceUnavailableError as error:
            return error

    # --- what arrives

    def _receive(self, events: list[Event]) -> None:
        self.last_error = None
        session, stream = self._session, self._stream
        if session is None or stream is None:
            return
        self._announcer.look(events)
        unknown = session.take_user_types() - self.types.keys()
        described = session.take_described() if self._partitioned else set()
        if not unknown and not described:
            self._sink(events)
            return
        stream.hold("catalog")
        self._loading = asyncio.ensure_future(self._deliver_after_loading(unknown, described, events, stream))

    async def _deliver_after_loading(
        self, unknown: set[int], described: set[int], events: list[Event], stream: Stream
    ) -> None:
        """Learn of types made after we connected and of partitions, then deliver the rows that have them."""
        try:
            async with await connect_again(self._settings) as connection:
                if unknown:
                    self.types.update(dict.fromkeys(unknown, TEXT_OID) | await load_types(connection))
                # What was dropped since is not found: then it is what it was before.
                self.partitions.update(await load_ancestors(connection, described))
            self._sink(events)
            stream.release("catalog")
        except Exception as error:  # noqa: BLE001 - it is raised again by the stream's run()
            stream.fail(error)

    def _notice(self, notice: Diagnostic) -> None:
        """Act on the warnings that mean lost or withheld rows."""
        text = notice.message_primary or ""
        if notice.sqlstate != "55000" or self._stream is None:
            return
        if "synchronized_standby_slots" in text:
            self.last_error = text
            self._log.warning("the server withholds rows until a standby has them", reason=text)
        elif self._settings.publication in text:
            self._on_gap(f"publication {self._settings.publication!r} was missing for a while")

    # --- between connections

    def _note(self, error: SourceUnavailableError) -> None:
        now = asyncio.get_running_loop().time()
        if error.message != self.last_error or now >= self._remind_at:
            self._log.warning("the stream is interrupted", reason=error.message)
            self._remind_at = now + REMIND_SECONDS
        self.last_error = error.message

    async def _wait_before_retry(self, longest: float) -> None:
        pause = min(RETRY_SECONDS[0] * 2**self._failures, longest) * random.uniform(0.5, 1.0)  # noqa: S311 - jitter
        self._failures = min(self._failures + 1, DOUBLINGS)
        with suppress(TimeoutError):
            async with asyncio.timeout(pause):
                await self._stopping.wait()


async def _end(task: asyncio.Future[None]) -> None:
    """Cancel a task and wait until it is over, whatever its end."""
    task.cancel()
    await asyncio.wait([task])
