"""Fill a ``status.Snapshot``: from the running daemon, or from the state file and PostgreSQL when it is down."""

from __future__ import annotations

import asyncio
import datetime as dt
import json
import os
import time
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import psycopg

from cdcsync import __version__, status
from cdcsync.config import Config, MapConfig, PostgresConfig
from cdcsync.copies import Copy
from cdcsync.entries import CopyState, Pause, RejectGroup
from cdcsync.errors import CdcsyncError
from cdcsync.lane import Lane
from cdcsync.model import Lsn
from cdcsync.pipeline import Pipeline
from cdcsync.route import Route
from cdcsync.state import State
from cdcsync.state_pauses import Standing
from cdcsync.status_json import from_json
from cdcsync.wal.connect import connect_again
from cdcsync.wal.slot import SlotInfo, present_lsn, show_slot
from cdcsync.wal.source import Source

WATCH_SECONDS = 5.0
ASK_SECONDS = 3.0


@dataclass(slots=True)
class SlotWatch:
    """Looks at the slot and the server's position every few seconds, over an ordinary connection."""

    settings: PostgresConfig
    info: SlotInfo | None = None
    server_lsn: int | None = None
    error: str | None = None

    async def run(self) -> None:
        """Look for ever."""
        while True:
            await self.look()
            await asyncio.sleep(WATCH_SECONDS)

    async def look(self) -> None:
        """Look once; what could not be seen is None, with the reason in ``error``."""
        try:
            async with await connect_again(self.settings) as connection:
                self.info = await show_slot(connection, self.settings.slot)
                self.server_lsn = await present_lsn(connection)
                self.error = None
        except (psycopg.Error, CdcsyncError) as error:
            self.info = self.server_lsn = None
            self.error = " ".join((error.message if isinstance(error, CdcsyncError) else str(error)).split())

    async def current_lsn(self) -> int:
        """Return the server's present position. Raises SourceUnavailableError."""
        async with await connect_again(self.settings) as connection:
            return await present_lsn(connection)


def live_snapshot(
    pipeline: Pipeline, source: Source, config: Config, watch: SlotWatch, started: float
) -> status.Snapshot:
    """Describe the running daemon."""
    now = time.time()
    lanes = tuple(_live_lane(lane, config, pipeline, now) for lane in pipeline.lanes)
    return status.Snapshot(
        version=__version__,
        generated=dt.datetime.now(dt.UTC),
        source=_source(
            config,
            watch,
            pipeline.received_lsn,
            pipeline.durable_lsn,
            connected=source.connected,
            error=source.last_error,
            reading_paused=pipeline.full,
        ),
        lanes=lanes,
        maps=tuple(_live_map(lane, route, pipeline) for lane in pipeline.lanes for route in lane.routes),
        uptime=now - started,
        pid=os.getpid(),
    )


def ask_daemon(config: Config) -> status.Snapshot | None:
    """Ask the running daemon of this config for its snapshot, by its status page; None if none answers. Blocks."""
    if config.status.listen is None:
        return None
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with direct.open(f"http://{config.status.listen}/status.json", timeout=ASK_SECONDS) as answer:
            snapshot = from_json(json.load(answer))
    except (OSError, ValueError, TypeError, AttributeError):  # nobody, a stranger, or a daemon of another version
        return None
    mine = (config.postgres.slot, {entry.name for entry in config.maps})
    return snapshot if (snapshot.source.slot, {entry.name for entry in snapshot.maps}) == mine else None


def stored_snapshot(state: State, config: Config, watch: SlotWatch) -> status.Snapshot:
    """Describe what the state file holds, with the slot as PostgreSQL shows it; the daemon may be down."""
    with state.reading():
        return _stored_snapshot(state, config, watch)


def _stored_snapshot(state: State, config: Config, watch: SlotWatch) -> status.Snapshot:
    checkpoint = state.checkpoint()
    pending, oldest, reasons = state.pending(), state.oldest(), state.parked.groups()
    standing = state.pauses.standing()
    connected = watch.info is not None and watch.info.active_pid is not None
    lanes = []
    maps = []
    for name, crm in config.crm.items():
        mine = [entry for entry in config.maps if entry.crm == name]
        counters = state.counters(name)
        first = [oldest[entry.name] for entry in mine if entry.name in oldest]
        rejected = sum(group.rows for group in reasons if group.mapping in {entry.name for entry in mine})
        lanes.append(
            status.LaneStatus(
                name=name,
                kind=crm.kind,
                state=_stored_state([standing.of(entry.name, name) is not None for entry in mine], connected=connected),
                applied_lsn=Lsn(min([lsn - 1 for lsn, _ in first] + [checkpoint.durable_lsn])),
                applied_time=dt.datetime.fromtimestamp(min(since for _, since in first), dt.UTC) if first else None,
                lag_seconds=max([time.time() - since for _, since in first], default=0.0),
                pending=sum(pending.get(entry.name, 0) for entry in mine),
                rejected=rejected,
                unmapped=state.unmapped(name, [entry.name for entry in mine]),
                counters=_counters(counters, requests=0),
                pause=_pause(standing.crms.get(name)),
            )
        )
        maps += [
            _stored_map(entry, state, standing, pending, reasons, counters, oldest=oldest.get(entry.name, (None,))[0])
            for entry in mine
        ]
    return status.Snapshot(
        version=__version__,
        generated=dt.datetime.now(dt.UTC),
        source=_source(
            config, watch, checkpoint.durable_lsn, checkpoint.durable_lsn, connected=connected, error=watch.error
        ),
        lanes=tuple(lanes),
        maps=tuple(maps),
    )


def _source(
    config: Config,
    watch: SlotWatch,
    received: int,
    durable: int,
    *,
    connected: bool,
    error: str | None,
    reading_paused: bool = False,
) -> status.SourceStatus:
    info = watch.info
    return status.SourceStatus(
        connected=connected,
        slot=config.postgres.slot,
        received_lsn=Lsn(received),
        durable_lsn=Lsn(durable),
        server_lsn=Lsn(watch.server_lsn) if watch.server_lsn is not None else None,
        retained_bytes=info.retained_bytes if info is not None else None,
        warn_bytes=config.postgres.warn_lag,
        wal_status=info.wal_status if info is not None else None,
        last_error=error,
        reading_paused=reading_paused,
    )


def _stored_state(paused: Sequence[bool], *, connected: bool) -> status.LaneState:
    """Say what a lane does, from outside: where nothing reads the slot, nothing is sent for long."""
    if not connected:
        return "stopped"
    return "paused" if paused and all(paused) else "running"


def _live_lane(lane: Lane, config: Config, pipeline: Pipeline, now: float) -> status.LaneStatus:
    gate = lane.limiter.status()
    first, since = lane.oldest(), lane.oldest_time()
    return status.LaneStatus(
        name=lane.name,
        kind=config.crm[lane.name].kind,
        state=lane.state,
        applied_lsn=Lsn(first.commit_lsn - 1 if first is not None else pipeline.received_lsn),
        applied_time=dt.datetime.fromtimestamp(since if since is not None else now, dt.UTC),
        lag_seconds=max(0.0, now - since) if since is not None else 0.0,
        pending=lane.pending,
        in_flight=sum(len(route.backlog.in_flight) for route in lane.routes),
        held=sum(len(route.backlog.held) for route in lane.routes),
        rejected=lane.rejected,
        unmapped=lane.unmapped,
        counters=_counters(lane.totals(), requests=gate.requests),
        rate=gate.rate,
        quotas=gate.quotas,
        quota_lasts_until=_moment(gate.lasts_until),
        breaker=gate.breaker,
        breaker_until=_moment(gate.probe_at),
        jobs=tuple(
            status.Job(
                id=job.crm_job or f"#{job.id}",
                object=job.mapping,
                op=job.op.value,
                state=job.state.value,
                records=job.records,
                processed=word.processed if word is not None else 0,
            )
            for job, word in lane.jobs.active
        ),
        retry_at=_moment(lane.retry_at),
        last_error=lane.last_error or (gate.reason or None),
        last_error_code=lane.last_error_code,
        failing=lane.failing,
        held_back=gate.reason if gate.paused_for is not None else None,
        pause=_pause(pipeline.standing.crms.get(lane.name)),
    )


def _moment(unix: float | None) -> dt.datetime | None:
    return None if unix is None else dt.datetime.fromtimestamp(unix, dt.UTC)


def _pause(pause: Pause | None) -> status.Pause | None:
    if pause is None:
        return None
    since = dt.datetime.fromtimestamp(pause.since, dt.UTC)
    return status.Pause(reason=pause.reason, since=since, by=pause.by, who=pause.who or None)


def _live_map(lane: Lane, route: Route, pipeline: Pipeline) -> status.MapStatus:
    return status.MapStatus(
        name=route.name,
        table=route.config.table,
        lane=lane.name,
        target=f"{lane.name}.{route.config.object}",
        pending=len(route.backlog),
        rejected=route.backlog.rejected,
        applied=route.applied,
        paused=route.paused,
        incomplete=_live_incomplete(route, pipeline),
        pause=_pause(pipeline.pause_of(route) if route.paused else None),
        backfill=_live_copy(route, pipeline.copies.of(route.name)),
        rejects=tuple(
            status.RejectGroup(code=code, field=field, rows=rows)
            for (code, field), rows in sorted(route.reasons.items(), key=lambda item: -item[1])
        ),
    )


def _stored_map(  # noqa: PLR0917 — what was read once for all mappings
    entry: MapConfig,
    state: State,
    standing: Standing,
    pending: Mapping[str, int],
    reasons: Sequence[RejectGroup],
    counters: Mapping[str, int],
    *,
    oldest: int | None,
) -> status.MapStatus:
    groups = tuple(
        status.RejectGroup(code=group.code, field=group.field, rows=group.rows)
        for group in reasons
        if group.mapping == entry.name
    )
    return status.MapStatus(
        name=entry.name,
        table=entry.table,
        lane=entry.crm,
        target=f"{entry.crm}.{entry.object}",
        pending=pending.get(entry.name, 0),
        rejected=sum(group.rows for group in groups),
        applied=counters.get(f"applied:{entry.name}", 0),
        paused=standing.of(entry.name, entry.crm),
        pause=_pause(standing.maps.get(entry.name)),
        incomplete=_stored_incomplete(entry, state, oldest),
        backfill=_stored_copy(entry, state.last_copy(entry.name)),
        rejects=groups,
    )


def _live_incomplete(route: Route, pipeline: Pipeline) -> bool:
    """Whether changes may be missing, but for those that wait or are parked. What a person asked for finds few."""
    copy, oldest = pipeline.copies.of(route.name), route.backlog.oldest()
    uncopied = route.config.backfill and not route.whole
    copying = pipeline.comparing or (copy is not None and copy.entry.makes_up)
    # A copied row has the position at which it was read, and may have been committed long before.
    return uncopied or route.passes_over or copying or (oldest is not None and oldest <= route.copied_to)


def _stored_incomplete(entry: MapConfig, state: State, oldest: int | None) -> bool:
    uncopied = entry.backfill and not state.copied(entry.name)
    passed_over = state.drift_mark(entry.name) == "passed over"
    copying = any(copy.mapping == entry.name and copy.makes_up for copy in state.copies())
    return uncopied or passed_over or copying or (oldest is not None and oldest <= state.copied_to(entry.name)[0])


def _live_copy(route: Route, copy: Copy | None) -> status.Backfill:
    if copy is None:
        return status.Backfill(state="done" if route.whole else "none", rows=route.read)
    entry = copy.entry
    waiting = copy.backfill.waiting if copy.backfill is not None else None
    state: status.BackfillState = "copying" if copy.began is not None and waiting is None else "waiting"
    return status.Backfill(
        state=state,
        rows=entry.rows,
        estimate=entry.estimate or None,
        seconds_left=copy.seconds_left(time.monotonic()),
        reason=entry.reason,
        waits_for=waiting,
    )


def _stored_copy(mapping: MapConfig, entry: CopyState | None) -> status.Backfill:
    if entry is None:
        return status.Backfill(state="waiting" if mapping.backfill else "none")
    if entry.finished is not None:
        return status.Backfill(state="done", rows=entry.rows, estimate=entry.estimate or None)
    return status.Backfill(state="waiting", rows=entry.rows, estimate=entry.estimate or None, reason=entry.reason)


def _counters(totals: Mapping[str, int], *, requests: int) -> status.Counters:
    names = ("changes_in", "applied", "suppressed", "coalesced", "discarded", "created", "deleted", "retries")
    return status.Counters(requests=requests, **{name: totals.get(name, 0) for name in names})
