"""Tells people what is wrong: looks at each snapshot, writes down what is to be told, and delivers it beside all else.

A notice is in the state file before it is delivered, and leaves it afterwards. A crash between delivery and that lets
it be told once more, with the same id.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import Final, Protocol, TypeVar

import structlog

from cdcsync.alert_sinks import AlertError, post, run_command
from cdcsync.alerts import Condition, Name, Notice, Sink, Watch, conditions, step
from cdcsync.clock import Clock
from cdcsync.config.alert import AlertConfig
from cdcsync.errors import CdcsyncError
from cdcsync.state import State
from cdcsync.status import Snapshot

T = TypeVar("T")

RETRY_SECONDS: Final = (2.0, 10.0, 60.0, 300.0)
"""Pauses between the attempts to tell one; after the last of them it is given up, and the log says so."""
LAST_SECONDS: Final = 10.0
"""How long the end of the daemon waits for a notice."""
ENDED: Final = Name("daemon-ended")


class Surroundings(Protocol):
    """What the alerts need of the pipeline."""

    clock: Clock

    async def on_file(self, work: Callable[[State], T]) -> T:
        """Run ``work`` on the state file, in the file's thread."""


class Alerting:
    """The alerts of one daemon. Nothing is kept where none are configured."""

    def __init__(self, config: AlertConfig, around: Surroundings, log: structlog.typing.FilteringBoundLogger) -> None:
        self._config = config
        self._around = around
        self._log = log
        tell: dict[Sink, Callable[[Notice], Awaitable[None]]] = {}
        if config.command is not None:
            tell["command"] = lambda notice: run_command(config.command or "", notice)
        if config.webhook is not None:
            tell["webhook"] = lambda notice: post(config, notice)
        self._tell = tell
        self._watch: Watch | None = None
        self._due = asyncio.Condition()

    async def look(self, snapshot: Snapshot) -> None:
        """Compare what is wrong now with what was told."""
        if not self._tell:
            return
        watch = await self._known()
        seen = conditions(snapshot, watch.alerts, self._config.rejects)
        # Of what the last daemon saw, some is seen again only after a while.
        young = snapshot.uptime < self._config.after
        await self._step(watch, list(seen), young=young)

    async def run(self) -> None:
        """Deliver for ever what is due, in order on each way."""
        async with asyncio.TaskGroup() as tasks:
            for sink in self._tell:
                tasks.create_task(self._deliver_all(sink))

    async def ended(self, error: CdcsyncError) -> None:
        """Tell that the daemon ends with an error, once and not for long; the next start closes it."""
        if not self._tell:
            return
        watch = await self._known()
        await self._step(watch, [Condition(ENDED, f"cdcsync has ended: {error.message}")], young=True)
        try:
            async with asyncio.timeout(LAST_SECONDS):
                for sink in self._tell:
                    while (notice := self._next(sink)) is not None and await self._attempt(sink, notice):
                        continue
        except TimeoutError:
            self._log.error("alert not told in time: it is told at the next start")

    async def _known(self) -> Watch:
        if self._watch is None:
            text = await self._around.on_file(State.alerts)
            self._watch = Watch.parse(text, self._around.clock.time())
        return self._watch

    async def _step(self, watch: Watch, seen: list[Condition], *, young: bool) -> None:
        after = step(
            watch,
            seen,
            self._around.clock.time(),
            patience=self._config.after,
            sinks=tuple(self._tell),
            young=young,
        )
        for notice in after.due[len(watch.due) :]:
            self._log.warning(f"alert {notice.event}", alert=notice.name.kind, subject=notice.name.subject or None)
        await self._keep(after)

    async def _keep(self, watch: Watch) -> None:
        """Remember, on disk where it would be missed."""
        before, self._watch = self._watch, watch
        if before is None or watch.worth_a_write(before):
            await self._around.on_file(lambda state: state.keep_alerts(watch.to_text()))
        if watch.due:
            async with self._due:
                self._due.notify_all()

    def _next(self, sink: Sink) -> Notice | None:
        due = self._watch.due if self._watch is not None else ()
        return next((notice for notice in due if sink in notice.sinks), None)

    async def _deliver_all(self, sink: Sink) -> None:
        while True:
            async with self._due:
                await self._due.wait_for(lambda: self._next(sink) is not None)
            notice = self._next(sink)
            if notice is not None:
                await self._deliver(sink, notice)

    async def _deliver(self, sink: Sink, notice: Notice) -> None:
        for pause in RETRY_SECONDS:
            if await self._attempt_whole(sink, notice):
                return
            await asyncio.sleep(pause)
        if not await self._attempt_whole(sink, notice):
            self._log.error("alert given up", alert=notice.name.kind, subject=notice.name.subject, way=sink)
            await self._told(sink, notice)

    async def _attempt_whole(self, sink: Sink, notice: Notice) -> bool:
        """Try to tell one; a stop waits for the attempt, since half of one may be told again."""
        attempt = asyncio.ensure_future(self._attempt(sink, notice))
        try:
            return await asyncio.shield(attempt)
        except asyncio.CancelledError:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LAST_SECONDS):
                    await attempt
            raise

    async def _attempt(self, sink: Sink, notice: Notice) -> bool:
        try:
            await self._tell[sink](notice)
        except AlertError as error:
            self._log.warning("alert not told", alert=notice.name.kind, way=sink, error=error.message)
            return False
        await self._told(sink, notice)
        return True

    async def _told(self, sink: Sink, notice: Notice) -> None:
        watch = await self._known()
        await self._keep(watch.told_on(notice, sink))
