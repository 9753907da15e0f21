"""``cdcsync demo``: a shop database under live load, both sandbox CRMs and the daemon, on this machine alone.

Runs until Ctrl-C or for a number of seconds; then the shop closes, the daemon catches up, and a verdict is given:
the CRMs are equal to the database, or what is not. Everything lives in one temporary directory and goes with it.
"""

from __future__ import annotations

import contextlib
import random
import shutil
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import psycopg
from rich.console import Console

from cdcsync.demo.live import Frame, View, view
from cdcsync.demo.postgres import EmbeddedPostgres
from cdcsync.demo.processes import Children, Daemon, DemoError, SandboxProcess, get_json, put_json, start_sandbox
from cdcsync.demo.shop import COMPANIES, CUSTOMERS, ORDERS, Inventor, create
from cdcsync.demo.shop_config import VERSION_FIELDS, Places, write
from cdcsync.demo.verdict import Verdict, judge
from cdcsync.demo.workload import RATE, Tally, Workload
from cdcsync.errors import EXIT_NOT_FINE, EXIT_OK
from cdcsync.model import Lsn
from cdcsync.status import Snapshot

FRAME_SECONDS = 0.4
QUIET_SECONDS = 120.0
SHOWN_DIFFERENCES = 20
STATUS_PORT = 9187
ROWS = COMPANIES + CUSTOMERS + ORDERS


def run_demo(*, seconds: float | None = None, seed: int | None = None, rate: float = RATE) -> int:
    """Run the demo; returns the exit code, 0 if the CRMs equal the database at the end. Raises DemoError."""
    console = Console()
    chosen = random.SystemRandom().randrange(1_000_000) if seed is None else seed
    console.print(f"cdcsync demo, seed {chosen}", style="bold", highlight=False)
    with contextlib.ExitStack() as stack:
        ending = stack.enter_context(_ending())
        stage = stack.enter_context(_stage(Inventor(chosen), rate))
        _tell(console, stage)
        with view(console) as show:
            target = _play(stage, show, seconds, ending)
            show.say("The shop is closed; waiting until the CRMs are current …")
            quiet = _settle(stage, show, target)
        return _conclude(console, judge(stage.dsn, stage.admin_urls), stage.workload.tally, quiet)


@dataclass(frozen=True, slots=True)
class Stage:
    """Everything that runs."""

    dsn: str
    psql: Path
    config: Path
    status_url: str
    sandboxes: tuple[SandboxProcess, ...]
    daemon: Daemon
    workload: Workload
    started: float

    @property
    def admin_urls(self) -> Mapping[str, str]:
        """The sandboxes' admin ports, by CRM."""
        return {sandbox.name: sandbox.admin_url for sandbox in self.sandboxes}

    def frame(self, snapshot: Snapshot | None) -> Frame:
        """Take a picture of this moment."""
        elapsed = time.monotonic() - self.started
        requests = {name: int(get_json(f"{url}/books")["requests"]) for name, url in self.admin_urls.items()}
        return Frame(elapsed, self.workload.tally, self.daemon.pid, self.daemon.restarts, snapshot, requests)


@contextlib.contextmanager
def _stage(inventor: Inventor, rate: float) -> Iterator[Stage]:
    """Start everything, and take it down afterwards, whatever happens."""
    directory = Path(tempfile.mkdtemp(prefix="cdcsync-demo-"))
    children = Children(directory)
    postgres = EmbeddedPostgres(directory / "postgres")
    try:
        with ThreadPoolExecutor() as pool:
            waiting = [pool.submit(start_sandbox, children, name) for name in VERSION_FIELDS]
            dsn = _open_shop(postgres, inventor)
            sandboxes = tuple(one.result() for one in waiting)
        for sandbox in sandboxes:
            put_json(f"{sandbox.admin_url}/settings", {"version_field": VERSION_FIELDS[sandbox.name]})
        listen = f"127.0.0.1:{_free_port(STATUS_PORT)}"
        salesforce, hubspot = sandboxes
        config = directory / "cdcsync.toml"
        write(config, Places(dsn, salesforce.url, hubspot.url, listen, directory / "state.db"))
        status_url = f"http://{listen}/"
        daemon = Daemon(children, config, status_url)
        workload = Workload(dsn, inventor, rate)
        yield Stage(dsn, postgres.program("psql"), config, status_url, sandboxes, daemon, workload, time.monotonic())
    finally:
        children.stop()
        postgres.stop("immediate")
        shutil.rmtree(directory, ignore_errors=True)


def _open_shop(postgres: EmbeddedPostgres, inventor: Inventor) -> str:
    """Start the server, make the database and its first rows; returns its connection URI."""
    postgres.start()
    with psycopg.connect(postgres.dsn(), autocommit=True) as connection:
        connection.execute("CREATE DATABASE shop")
    dsn = postgres.dsn("shop")
    with psycopg.connect(dsn, autocommit=True) as connection:
        create(connection, inventor)
    return dsn


def _free_port(wanted: int) -> int:
    """Take the wanted port if it is free, else any."""
    for port in (wanted, 0):
        with contextlib.suppress(OSError), socket.socket() as listener:
            listener.bind(("127.0.0.1", port))
            return int(listener.getsockname()[1])
    raise DemoError("there is no free TCP port on 127.0.0.1")


def _tell(console: Console, stage: Stage) -> None:
    lines = {
        "status page": stage.status_url,
        **{f"{one.name} records": f"{one.admin_url}/records" for one in stage.sandboxes},
        "database": f"{stage.psql} '{stage.dsn}'",
        "config": str(stage.config),
        "daemon": f"process {stage.daemon.pid}; kill -9 it and see",
    }
    for title, where in lines.items():
        console.print(f"  {title:<20}{where}", soft_wrap=True, markup=False, highlight=False)
    console.print("Ctrl-C closes the shop and gives the verdict.", style="dim")


@contextlib.contextmanager
def _ending() -> Iterator[threading.Event]:
    """Turn the first SIGINT or SIGTERM into an event; the second one interrupts."""
    event = threading.Event()

    def end(number: int, frame: FrameType | None) -> None:
        del number, frame
        if event.is_set():
            raise KeyboardInterrupt
        event.set()

    before = {number: signal.signal(number, end) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield event
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _play(stage: Stage, show: View, seconds: float | None, ending: threading.Event) -> Lsn:
    """Let the shop live until the end; returns the position that the CRMs have to reach."""
    stage.workload.start()
    end = None if seconds is None else stage.started + seconds
    while not ending.wait(FRAME_SECONDS) and (end is None or time.monotonic() < end):
        if stage.workload.failure:
            raise DemoError(f"the workload failed: {stage.workload.failure}")
        _watch(stage, show)
    return stage.workload.stop()


def _settle(stage: Stage, show: View, target: Lsn) -> Snapshot | None:
    """Wait until the daemon says that nothing is left to do; its word for that, or None if it takes too long."""
    deadline = time.monotonic() + QUIET_SECONDS
    while time.monotonic() < deadline:
        snapshot = _watch(stage, show)
        if snapshot and _is_quiet(snapshot, target):
            return snapshot
        time.sleep(FRAME_SECONDS)
    return None


def _is_quiet(snapshot: Snapshot, target: Lsn) -> bool:
    """Tell whether everything up to ``target`` was read, and every row settled."""
    copied = all(entry.backfill.state in ("none", "done") for entry in snapshot.maps)
    settled = all(lane.applied_lsn >= target and not lane.pending for lane in snapshot.lanes)
    return snapshot.source.received_lsn >= target and copied and settled


def _watch(stage: Stage, show: View) -> Snapshot | None:
    if news := stage.daemon.revive():
        show.say(news)
    snapshot = stage.daemon.snapshot()
    show.show(stage.frame(snapshot))
    return snapshot


def _conclude(console: Console, verdict: Verdict, tally: Tally, quiet: Snapshot | None) -> int:
    """Print the verdict; returns the exit code."""
    fine = verdict.ok and quiet is not None and quiet.balanced
    head = "The CRMs are equal to the database." if fine else "The CRMs are NOT equal to the database."
    sent = verdict.total("creates") + verdict.total("updates") + verdict.total("deletes")
    doubled, put_back, needless = map(verdict.total, ("double_creates", "steps_back", "noop_writes"))
    lines = [
        f"{verdict.compared:,} records compared, {len(verdict.differences):,} differ.",
        f"{ROWS:,} rows to begin with and {tally.changes:,} row changes, each for two CRMs,",
        f"became {sent:,} writes, associations included, in {verdict.total('requests'):,} requests.",
        f"{doubled:,} records doubled, {put_back:,} put back to an older state, {needless:,} repeated.",
    ]
    lines += _complaints(quiet)
    lines += [f"  {difference}" for difference in verdict.differences[:SHOWN_DIFFERENCES]]
    console.print(f"\n{'✓' if fine else '✗'} {head}", style="bold green" if fine else "bold red", highlight=False)
    for text in lines:
        console.print(f"  {text}", soft_wrap=True, markup=False, highlight=False)
    return EXIT_OK if fine else EXIT_NOT_FINE


def _complaints(quiet: Snapshot | None) -> Iterator[str]:
    """Say what the daemon itself knows to be wrong."""
    if quiet is None:
        yield f"The daemon was not done after {QUIET_SECONDS:.0f} s."
        return
    for lane in quiet.lanes:
        if not lane.balanced:
            yield f"The books of {lane.name} do not balance: {lane.missing:+,} changes unaccounted for."
    for entry in quiet.maps:
        for group in entry.rejects:
            yield f"{entry.name}: {group.rows:,} rejected, {group.code} {group.field or ''}".rstrip()
