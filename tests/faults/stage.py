"""A whole cdcsync for tests: a shop database, both sandbox CRMs and the daemon as processes, made to be disturbed."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import psycopg

from cdcsync.demo.processes import Children, SandboxProcess, get_json, put_json, start_sandbox
from cdcsync.demo.shop import Inventor, create
from cdcsync.demo.shop_config import SECRETS, VERSION_FIELDS, Places, write
from cdcsync.demo.verdict import KEYS, judge
from cdcsync.status import Snapshot
from cdcsync.status_json import from_json
from tests.polling import eventually


@dataclass(slots=True)
class Stage:
    """The parts, by name. The daemon is not running before ``start``."""

    directory: Path
    dsn: str
    children: Children
    sandboxes: Mapping[str, SandboxProcess]
    config: Path
    status_url: str
    daemon: subprocess.Popen[bytes] | None = None
    starts: int = field(default=0)
    name: str = "daemon"

    def start(self, *options: str) -> None:
        """Start the daemon."""
        arguments = ("cdcsync", "run", "-c", str(self.config), *options)
        self.daemon = self.children.start(f"{self.name}-{self.starts}", *arguments)
        self.starts += 1

    def kill(self) -> None:
        """Kill the daemon with -9, and wait until it is gone."""
        assert self.daemon is not None
        self.daemon.send_signal(signal.SIGKILL)
        self.daemon.wait()

    def stop(self) -> int:
        """Ask the daemon to end; returns its exit code."""
        assert self.daemon is not None
        self.daemon.terminate()
        return self.daemon.wait(60)

    def alive(self) -> bool:
        assert self.daemon is not None
        return self.daemon.poll() is None

    def log(self) -> str:
        """Return the end of the last daemon's log."""
        return self.children.tail(f"{self.name}-{self.starts - 1}")

    def second(self, *, machine: bool = True) -> Stage:
        """Return the same stage with another daemon: on a machine of its own, or beside the first with its config."""
        if not machine:
            return replace(self, daemon=None, starts=0, name="second")
        listen = f"127.0.0.1:{_free_port()}"
        text = self.config.read_text(encoding="utf-8").replace(self.status_url[7:-1], listen)
        config = self.directory / "second.toml"
        config.write_text(text.replace("/state.db", "/second.db"), encoding="utf-8")
        return replace(self, daemon=None, starts=0, name="second", config=config, status_url=f"http://{listen}/")

    def snapshot(self) -> Snapshot | None:
        """Return the daemon's status, None while it does not answer."""
        try:
            return from_json(get_json(f"{self.status_url}status.json", timeout=2.0))
        except (OSError, ValueError):
            return None

    def paused(self, mapping: str) -> str | None:
        """Return why a mapping is paused, as the daemon says; None if it is not, or the daemon does not answer."""
        snapshot = self.snapshot()
        return next((one.paused for one in snapshot.maps if one.name == mapping), None) if snapshot else None

    def cli(self, *arguments: str, code: int = 0) -> str:
        """Run a command, and return what it prints; its exit code must be ``code``."""
        command = [sys.executable, "-m", "cdcsync", *arguments, "-c", str(self.config)]
        done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **SECRETS}, check=False)
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout

    def execute(self, query: str, parameters: Sequence[object] | None = None) -> list[tuple[Any, ...]]:
        """Run SQL on the shop's database."""
        with psycopg.connect(self.dsn, autocommit=True) as connection:
            cursor = connection.execute(query.encode(), parameters)
            return cursor.fetchall() if cursor.description else []

    def state(self, query: str) -> Any:
        """Ask the state file for one value."""
        with contextlib.closing(sqlite3.connect(self.directory / "state.db")) as state:
            return state.execute(query).fetchone()[0]

    def fault(self, crm: str, *rules: Mapping[str, object]) -> None:
        """Add fault rules to a sandbox."""
        _send("POST", f"{self.sandboxes[crm].admin_url}/faults", list(rules))

    def mend(self, crm: str, *, drop: bool = False) -> None:
        """Take all fault rules away, and let held requests go (or drop them)."""
        _send("DELETE", f"{self.sandboxes[crm].admin_url}/faults")
        _send("POST", f"{self.sandboxes[crm].admin_url}/faults/release", {"drop": drop})

    def settings(self, crm: str, **settings: object) -> None:
        put_json(f"{self.sandboxes[crm].admin_url}/settings", settings)

    def admin(self, crm: str, path: str) -> Any:
        """Fetch something from a sandbox's admin port."""
        return get_json(f"{self.sandboxes[crm].admin_url}/{path}")

    def edit(self, crm: str, record: Mapping[str, Any], **fields: object) -> None:
        """Change a record as a person in the CRM would."""
        _send("PATCH", self._place(crm, record), fields)

    def remove(self, crm: str, record: Mapping[str, Any]) -> None:
        """Delete a record as a person in the CRM would."""
        _send("DELETE", self._place(crm, record))

    def merge(self, crm: str, record: Mapping[str, Any], other: Mapping[str, Any]) -> None:
        """Merge another record into one as a person in the CRM would."""
        _send("POST", f"{self._place(crm, record)}/merge", {"other": other["id"]})

    def record(self, crm: str, name: str, key: object) -> dict[str, Any]:
        """Return the one live record of an object with this external key."""
        (found,) = self.holders(crm, name, key)
        return found

    def holders(self, crm: str, name: str, key: object) -> list[dict[str, Any]]:
        """Return the live records of an object with this external key: one, or none."""
        return [record for record in self.records(crm, name) if record["key"].get(KEYS[crm, name]) == str(key)]

    def _place(self, crm: str, record: Mapping[str, Any]) -> str:
        return f"{self.sandboxes[crm].admin_url}/records/{record['object']}/{record['id']}"

    def records(self, crm: str, name: str) -> list[dict[str, Any]]:
        """Return the live records of an object."""
        return [record for record in self.admin(crm, f"records?object={name}") if not record["archived"]]

    def requests(self, crm: str, method: str, part: str) -> list[dict[str, Any]]:
        """Return the requests that a sandbox received, by method and a part of the path."""
        return [r for r in self.admin(crm, "requests") if r["method"] == method and part in r["path"]]

    def wait(self, condition: Callable[[], bool], what: str, timeout: float = 60.0) -> None:
        """Wait for a condition; the daemon's last words are in the failure."""

        def looked() -> bool:
            try:
                return condition()
            except OSError:
                return False

        try:
            eventually(looked, what=what, timeout=timeout)
        except TimeoutError as error:
            raise AssertionError(f"{error}\n{self.describe()}") from None

    def settled(self, timeout: float = 60.0) -> None:
        """Wait until everything committed so far is settled in every lane."""
        self.execute("UPDATE companies SET phone = phone WHERE id = (SELECT min(id) FROM companies)")
        ((target,),) = self.execute("SELECT (pg_current_wal_insert_lsn() - '0/0')::bigint")

        def quiet() -> bool:
            snapshot = self.snapshot()
            return (
                snapshot is not None
                and bool(snapshot.lanes)
                and snapshot.source.received_lsn >= target - 64
                and all(lane.pending == 0 for lane in snapshot.lanes)
                and all(entry.backfill.state in {"done", "none"} for entry in snapshot.maps)
            )

        self.wait(quiet, "the lanes did not settle", timeout)

    def assert_converged(self, rejects: int = 0) -> None:
        """Consult the oracle: the CRMs equal the database, nothing was doubled or put back, and the books balance."""
        snapshot = self.snapshot()
        assert snapshot is not None
        assert all(lane.missing == 0 for lane in snapshot.lanes), snapshot.lanes
        verdict = judge(self.dsn, {name: sandbox.admin_url for name, sandbox in self.sandboxes.items()})
        shown = "\n".join(str(difference) for difference in verdict.differences[:20])
        assert not verdict.differences, f"{len(verdict.differences)} differences\n{shown}\n{self.describe()}"
        assert verdict.total("double_creates") == 0, verdict.books
        assert verdict.total("steps_back") == 0, verdict.books
        assert sum(lane.rejected for lane in snapshot.lanes) == rejects, self.describe()

    def describe(self) -> str:
        """Say everything that helps to understand a failure, the stacks of a daemon that does not answer included."""
        if self.daemon is not None and self.alive() and self.snapshot() is None:
            self.daemon.send_signal(signal.SIGUSR1)
            time.sleep(1.0)
        return f"{self.snapshot()}\n{self.log()}"


@contextlib.contextmanager
def stage(directory: Path, dsn: str, *, seed: int = 0, changes: Mapping[str, str] | None = None) -> Iterator[Stage]:
    """Set the stage; ``changes`` replaces parts of the config's text."""
    children = Children(directory)
    try:
        sandboxes = {name: start_sandbox(children, name) for name in VERSION_FIELDS}
        with psycopg.connect(dsn, autocommit=True) as connection:
            create(connection, Inventor(seed))
        for name, sandbox in sandboxes.items():
            put_json(f"{sandbox.admin_url}/settings", {"version_field": VERSION_FIELDS[name]})
        listen = f"127.0.0.1:{_free_port()}"
        config = directory / "cdcsync.toml"
        places = Places(dsn, sandboxes["salesforce"].url, sandboxes["hubspot"].url, listen, directory / "state.db")
        write(config, places)
        text = config.read_text(encoding="utf-8").replace(f'dsn    = "{dsn}"', f'dsn = "{dsn}"\nslot = "{_slot(dsn)}"')
        for old, new in (changes or {}).items():
            assert old in text, f"{old!r} is not in the config"
            text = text.replace(old, new)
        config.write_text(text, encoding="utf-8")
        yield Stage(directory, dsn, children, sandboxes, config, f"http://{listen}/")
    finally:
        children.stop()


def _slot(dsn: str) -> str:
    """Slots belong to the cluster: name one after the test's database."""
    return str(psycopg.conninfo.conninfo_to_dict(dsn)["dbname"])


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def _send(method: str, url: str, document: object | None = None) -> None:
    body = None if document is None else json.dumps(document).encode()
    request = urllib.request.Request(url, body, {"Content-Type": "application/json"}, method=method)
    for attempt in range(3):
        try:
            with urllib.request.urlopen(request, timeout=30.0):
                return
        except urllib.error.URLError:
            if attempt == 2:
                raise
            time.sleep(0.2)
