"""The commands that make, give up and move the slot, each in step with the state file. The daemon must not run."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import structlog

from cdcsync.config import Config
from cdcsync.errors import REBUILD, SourceError, StateAbsentError, StateDamagedError, StateError
from cdcsync.model import format_lsn
from cdcsync.service import prepare
from cdcsync.state import State
from cdcsync.state_file import set_aside
from cdcsync.status import size
from cdcsync.wal import slot
from cdcsync.wal.connect import connect
from cdcsync.wal.health import loss


@dataclass(frozen=True, slots=True)
class Skip:
    """What giving a slot up, or moving it, leaves unread: WAL from ``start`` to ``end``."""

    exists: bool
    start: int | None
    end: int


async def make_slot(config: Config, log: structlog.typing.FilteringBoundLogger) -> bool:
    """Make publication and slot for the first start to take up (``cdcsync slot create``), whatever ``create`` says.

    Returns whether there was no slot before. Raises as ``service.prepare``.
    """
    name = config.postgres.slot
    with _state(config) as state:
        async with await connect(config.postgres.dsn) as connection:
            existed = (await slot.show_slot(connection, name)).exists
        if not existed and state.identity() is not None:
            raise StateError(
                f"the state file {state.path} has a position in slot {name!r}, which is gone",
                hint=REBUILD,
            )
        allowed = config.model_copy(update={"postgres": config.postgres.model_copy(update={"create": True})})
        await prepare(allowed, state, log, {})
    return not existed


async def forget_slot(config: Config) -> bool:
    """Drop the slot, and let the next start copy every table anew. Returns whether there was a slot.

    Raises SourceError while it is in use.
    """
    _set_damaged_aside(config)
    with _state(config) as state:
        async with await connect(config.postgres.dsn) as connection:
            info = await slot.show_slot(connection, config.postgres.slot)
            _distrust_old(state, info)
            if info.exists:
                await slot.drop_slot(connection, config.postgres.slot)
        state.unbind()
    return info.exists


async def look(config: Config, to: int | None = None) -> Skip:
    """Say what would be left unread: all of the slot's, or what lies before ``to``. Raises StateError if it is read."""
    async with await connect(config.postgres.dsn) as connection:
        info = await slot.show_slot(connection, config.postgres.slot)
        tip = await slot.present_lsn(connection)
    _refuse_in_use(info)
    return Skip(info.exists, info.confirmed_flush_lsn, tip if to is None else to)


def sentences(config: Config, skip: Skip) -> list[str]:
    """Say what a skip means, and what the next start does about it."""
    if not skip.exists:
        lines = ["There is no such slot now."]
    elif skip.start is None:
        lines = ["This skips an unknown amount of WAL that was not read."]
    else:
        unread = size(max(0, skip.end - skip.start))
        lines = [f"This skips {unread} of WAL that was not read ({format_lsn(skip.start)} to {format_lsn(skip.end)})."]
    lines.append("The next start reads every mapped table and makes up for it, rows deleted meanwhile included.")
    if skip.exists and (unknown := _what_is_unknown(config)) is not None:
        lines.append(unknown)
    uncopied = [entry.name for entry in config.maps if not entry.backfill]
    if uncopied:
        lines.append(f"But not for {', '.join(uncopied)} (backfill = false): what was skipped there is never sent.")
    return lines


async def advance_slot(config: Config, to: int) -> int:
    """Move the slot to ``to`` without reading, and let the next start compare every table; returns where it is then.

    The checkpoint is written first: a slot ahead of its checkpoint is taken for a loss. Raises SourceError, StateError.
    """
    name = config.postgres.slot
    with _state(config) as state:
        async with (
            await connect(config.postgres.dsn) as connection,
            await connect(config.postgres.dsn, replication=True) as replication,
        ):
            info = await slot.show_slot(connection, name)
            system = await slot.identify_system(replication)
            _refuse_in_use(info)
            _refuse_misfit(state, info, system)
            _refuse_target(to, max(info.confirmed_flush_lsn or 0, state.checkpoint().durable_lsn), system.lsn)
            _distrust_old(state, info)
            state.skip(to, system.timeline)
            return await slot.advance(connection, name, to)


def _distrust_old(state: State, info: slot.SlotInfo) -> None:
    """Forget what an old copy of the state file says: it knows less than what was confirmed to the slot."""
    ahead = (info.confirmed_flush_lsn or 0) > state.checkpoint().durable_lsn
    if state.backed_up() is not None or (ahead and state.identity() is not None):
        state.distrust()


def _set_damaged_aside(config: Config) -> Path | None:
    """Put a damaged state file aside, so that a new one is made (from the mirror, if there is one)."""
    path = config.state.path
    try:
        State.open(path, config.state.mirror).close()
    except StateDamagedError:
        return set_aside(path, "damaged")
    return None


def _what_is_unknown(config: Config) -> str | None:
    """Say what a state file that is lost or damaged costs; None where it is neither."""
    path, mirror = config.state.path, config.state.mirror
    try:
        with contextlib.closing(State.read(path)) as state:
            state.verify()
            if not state.blank:
                return None
            what = f"The state file {path} is new"
    except StateDamagedError:
        what = f"The state file {path} is damaged; it is moved aside"
    except StateAbsentError:
        what = f"There is no state file {path}"
    except StateError:
        return None  # of an older schema, which is migrated, or one that is refused
    if mirror is not None:
        return f"{what}, and made anew from its mirror."
    return f"{what}. Rows that were deleted since it was lost stay in the CRM: nothing else knows that they were sent."


def _refuse_in_use(info: slot.SlotInfo) -> None:
    if info.active_pid is not None:
        raise StateError(
            f"slot {info.name!r} is in use (server process {info.active_pid})", hint="Stop the daemon first."
        )


def _refuse_misfit(state: State, info: slot.SlotInfo, system: slot.System) -> None:
    if not info.exists:
        raise SourceError(f"there is no slot {info.name!r}", hint="cdcsync slot create")
    if info.lost:
        cause, remedy = loss(info)
        raise SourceError(f"slot {info.name!r} is lost: {cause}", hint=f"{remedy}; then {REBUILD}")
    bound = state.identity()
    if bound is None or bound[:3] != (system.system_id, system.database, info.name):
        raise StateError(
            f"the state file {state.path} does not belong to slot {info.name!r} of this database",
            hint="Point dsn, slot and [state] path to what belongs together; `cdcsync slot show` asks the server.",
        )


def _refuse_target(to: int, start: int, end: int) -> None:
    if not start < to <= end:
        raise SourceError(
            f"the slot cannot be moved to {format_lsn(to)}: what is unread lies between {format_lsn(start)} and"
            f" {format_lsn(end)}",
            hint="give --to a position in there, or leave it out to skip everything up to now",
        )


@contextlib.contextmanager
def _state(config: Config) -> Iterator[State]:
    state = State.open(config.state.path, config.state.mirror)
    try:
        yield state
    finally:
        state.close()
