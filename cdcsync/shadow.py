"""A run that writes nothing to any CRM: it reads the database and the CRMs, and tells what the daemon would send.

Nothing that the daemon has is touched: the slot is a temporary one of this process's own, which the server drops with
the connection; the publication is taken as it is; the state file is a copy, removed at the end, from which the ledger
counts: what the CRM is known to hold costs nothing here either.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shutil
import socket
import sqlite3
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any, Final

import structlog

from cdcsync.apply.dryrun import DryRun, Tally, Would
from cdcsync.apply.limiter import Limiter
from cdcsync.apply.registry import create
from cdcsync.config import AlertConfig, Config, CrmConfig
from cdcsync.entries import Identity
from cdcsync.errors import StateError
from cdcsync.guard import Finding
from cdcsync.pipeline import Pipeline
from cdcsync.service import Service, fit
from cdcsync.state import State
from cdcsync.status import count
from cdcsync.status_json import FORMAT
from cdcsync.status_text import table
from cdcsync.wal import slot
from cdcsync.wal.connect import Connection, connect

PREFIX: Final = ".cdcsync-shadow-"
HEADER: Final = ("CRM", "object", "creates", "updates", "deletes", "links", "API calls")


class ShadowService(Service):
    """A run of the daemon that writes nothing."""

    def __init__(
        self,
        config: Config,
        log: structlog.typing.FilteringBoundLogger,
        *,
        once: bool = False,
        output: Path | None = None,
    ) -> None:
        super().__init__(config, log.bind(shadow=True), once=once)
        self._real = config
        self._output = output
        self._lines: IO[str] | None = None
        self._tallies: defaultdict[tuple[str, str], Tally] = defaultdict(Tally)
        self._notes: list[str] = []

    async def run_with_state(self) -> None:
        """Prepare with a slot and a state of its own, and serve."""
        with contextlib.ExitStack() as stack:
            directory = stack.enter_context(_throw_away(self._real.state.path))
            self.config = _harmless(self._real, directory)
            state = _trial(self._real.state.path, self.config.state.path)
            stack.callback(state.close)
            if self._output is not None:
                self._lines = stack.enter_context(_private(self._output))
            async with await connect(self.config.postgres.dsn, replication=True) as replication:
                await self._serve_with(state, replication)

    def destination(self, name: str, crm: CrmConfig, limiter: Limiter) -> DryRun:
        """Make an adapter that reads, behind what answers for it."""
        return DryRun(create(name, crm, limiter), self._tell)

    def summary(self) -> str:
        """Say what would have been sent, a line per object."""
        rows = [
            (crm, name, *(f"{tally.kinds[kind]:,}" for kind in ("create", "update", "delete")), f"{tally.links:,}",
             f"{tally.calls:,}")
            for (crm, name), tally in sorted(self._tallies.items())
        ]  # fmt: skip
        told = [table(HEADER, rows)] if rows else ["Nothing would have been sent."]
        return "\n".join([*told, *self._notes])

    async def _serve_with(self, state: State, replication: Connection) -> None:
        postgres = self.config.postgres
        types: dict[int, int] = {}
        async with await connect(postgres.dsn) as connection:
            found = await fit(connection, self.config, state, types)
        identity = await slot.create_slot_on(replication, postgres.dsn, postgres.slot, temporary=True)
        start = identity.consistent_point
        state.bind(Identity(identity.system_id, identity.database, identity.slot, start), start, identity.timeline)
        pipeline = Pipeline(state, self.config.batch.max_memory, self.config.state.max_journal, self.log)
        try:
            await self.serve(pipeline, identity, found, types, lent=replication)
        finally:
            pipeline.close()
            self._conclude(pipeline, found)

    def _conclude(self, pipeline: Pipeline, found: Sequence[Finding]) -> None:
        for lane in pipeline.lanes:
            same = lane.totals()["suppressed"]
            self._notes.append(f"{lane.name}: {count(same, 'change')} would have changed nothing")
            for (code, name), rows in [item for route in lane.routes for item in route.reasons.items()]:
                where = f" ({name})" if name else ""
                self._notes.append(f"{lane.name}: {count(rows, 'row')} cannot be mapped: {code}{where}")
        self._notes += [f"{one.route.name} would pause: {one.route.paused}" for one in found if one.route.paused]
        for (crm, name), tally in sorted(self._tallies.items()):
            figures = dict(tally.kinds)
            self.log.info(
                "would have sent", crm=crm, object=name, calls=tally.calls, links=tally.links, records=figures
            )

    def _tell(self, would: Would) -> None:
        self._tallies[would.crm, would.target.object].add(would)
        self.log.info("would send", crm=would.crm, object=would.target.object, records=dict(Counter(would.kinds)))
        if self._lines is not None:
            self._lines.writelines(f"{line}\n" for line in _lines(would))


def _harmless(config: Config, directory: Path) -> Config:
    """Return the config with a slot and a state of its own, that changes nothing and tells nobody."""
    name = f"{config.postgres.slot[:40]}_shadow_{os.getpid()}"
    return config.model_copy(
        update={
            "postgres": config.postgres.model_copy(update={"slot": name, "create": False, "failover": False}),
            "state": config.state.model_copy(update={"path": directory / "state.db", "mirror": None}),
            "status": config.status.model_copy(update={"listen": None}),
            "alert": AlertConfig(),
        }
    )


@contextlib.contextmanager
def _throw_away(real: Path) -> Iterator[Path]:
    """Make a directory beside the state file for as long as the context lasts; what killed runs left goes, too.

    Raises StateError. Where there is no state yet, and no place for one, it is among the system's temporary files.
    """
    parent = real.parent if real.parent.is_dir() else Path(tempfile.gettempdir())
    mine = f"{PREFIX}{socket.gethostname()}-"
    for left in parent.glob(f"{mine}*"):
        if not Path(f"/proc/{left.name.removeprefix(mine).partition('-')[0]}").exists():
            shutil.rmtree(left, ignore_errors=True)
    try:
        directory = Path(tempfile.mkdtemp(prefix=f"{mine}{os.getpid()}-", dir=parent))
    except OSError as error:
        raise StateError(
            f"cannot make a directory for the trial's state in {parent}: {error.strerror}",
            hint="Run it as the daemon's user.",
        ) from error
    try:
        yield directory
    finally:
        shutil.rmtree(directory)


def _trial(real: Path, path: Path) -> State:
    """Open a copy of the state file, or a new one where there is none. Raises StateError."""
    if real.exists():
        log = real.with_name(f"{real.name}-wal")
        try:
            # Whoever opens a file in WAL mode leaves two more beside it, which may then not be the daemon's to use.
            if not log.exists():
                _copy(real, path, "mode=ro&immutable=1")
            if log.exists():  # a daemon has it, or has just taken it
                _copy(real, path, "mode=ro")
        except sqlite3.Error as error:
            raise StateError(f"cannot copy the state file {real}: {error}", hint="See docs/state.md.") from error
    state = State.open(path)
    state.begin_trial()
    return state


def _copy(real: Path, path: Path, mode: str) -> None:
    with (
        contextlib.closing(sqlite3.connect(f"{real.absolute().as_uri()}?{mode}", uri=True)) as source,
        contextlib.closing(sqlite3.connect(path)) as copy,
    ):
        source.backup(copy)


@contextlib.contextmanager
def _private(path: Path) -> Iterator[IO[str]]:
    """Open a new file for this user alone: it holds rows' values. Raises StateError."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise StateError(
            f"cannot write {path}: {error.strerror}", hint="--shadow-output takes the path of a new file."
        ) from error
    with os.fdopen(descriptor, "w", encoding="utf-8", buffering=1) as lines:
        yield lines


def _lines(would: Would) -> Iterator[str]:
    for kind, record in zip(would.kinds, would.records, strict=True):
        entry = {
            "format": FORMAT,
            "crm": would.crm,
            "object": would.target.object,
            "op": kind,
            "key": record.key,
            "crm_id": record.crm_id,
            "fields": dict(record.fields),
            "links": [dataclasses.asdict(link) for link in record.links],
        }
        yield json.dumps(entry, ensure_ascii=False, default=_plain)


def _plain(value: Any) -> Any:
    """Return what JSON has no form for: a reference as its parts, numbers and times as text."""
    return dataclasses.asdict(value) if dataclasses.is_dataclass(value) and not isinstance(value, type) else str(value)
