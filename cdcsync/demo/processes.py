"""The demo's child processes: two sandbox CRMs and the daemon, which is started again whenever it is killed."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cdcsync.demo.shop_config import SECRETS
from cdcsync.errors import CdcsyncError
from cdcsync.status import Snapshot
from cdcsync.status_json import from_json

STOP_SECONDS = 20.0
START_FAILURES = 3
"""So often may the daemon end by itself before the demo gives up; being killed does not count."""


class DemoError(CdcsyncError):
    """A part of the demo did not start or did not survive."""

    code = "demo"


class Children:
    """Processes that end with the demo. Each has its own session, so that Ctrl-C reaches the demo alone."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._processes: list[subprocess.Popen[bytes]] = []

    def start(self, name: str, *arguments: str, pipe: bool = False) -> subprocess.Popen[bytes]:
        """Run ``python -m arguments`` in the demo's directory; standard error goes to ``<name>.log`` there."""
        with self.log(name).open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-P", "-m", *arguments],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE if pipe else log,
                stderr=log,
                cwd=self._directory,
                env={name: value for name, value in os.environ.items() if not name.startswith("PG")} | SECRETS,
                start_new_session=True,
            )
        self._processes.append(process)
        return process

    def log(self, name: str) -> Path:
        """Name the file that a process's messages go to."""
        return self._directory / f"{name}.log"

    def tail(self, name: str) -> str:
        """Give the last lines of a process's log."""
        with contextlib.suppress(OSError):
            return "\n".join(self.log(name).read_text(errors="replace").splitlines()[-15:])
        return ""

    def stop(self) -> None:
        """Ask all to end, newest first, and kill those that do not."""
        for process in reversed(self._processes):
            _stop(process)
        self._processes.clear()


def _stop(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError):
        process.terminate()
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    if process.stdout:
        process.stdout.close()


@dataclass(frozen=True, slots=True)
class SandboxProcess:
    """A sandbox CRM being served: the API's URL, and the admin port's."""

    name: str
    url: str
    admin_url: str


def start_sandbox(children: Children, name: str) -> SandboxProcess:
    """Start a sandbox CRM and wait until it serves. Raises DemoError."""
    process = children.start(name, "cdcsync.sandbox", name, pipe=True)
    line = process.stdout.readline() if process.stdout else b""
    if not line:
        raise DemoError(f"the sandbox {name} did not start:\n{children.tail(name)}")
    ready = json.loads(line)
    return SandboxProcess(name, ready["url"].rstrip("/"), ready["admin_url"].rstrip("/"))


class Daemon:
    """``cdcsync run`` as a child that is started again when it ends. ``restarts`` counts that."""

    def __init__(self, children: Children, config: Path, status_url: str) -> None:
        self._children = children
        self._config = config
        self._status_url = f"{status_url.rstrip('/')}/status.json"
        self._failures = 0
        self.restarts = 0
        self._process = self._start()

    @property
    def pid(self) -> int:
        """The present process."""
        return self._process.pid

    def revive(self) -> str | None:
        """Start the daemon again if it has ended, and say so. Raises DemoError if it will not stay."""
        code = self._process.poll()
        if code is None:
            return None
        self._failures += code != -signal.SIGKILL
        if self._failures >= START_FAILURES:
            raise DemoError(f"the daemon ended with code {code}:\n{self._children.tail('daemon')}")
        self.restarts += 1
        self._process = self._start()
        ended = f"was killed by signal {-code}" if code < 0 else f"ended with code {code}"
        return f"The daemon {ended}; started again as process {self.pid}."

    def snapshot(self) -> Snapshot | None:
        """Ask for the status, None while there is no answer."""
        try:
            return from_json(get_json(self._status_url, timeout=2.0))
        except (OSError, ValueError):
            return None

    def _start(self) -> subprocess.Popen[bytes]:
        return self._children.start("daemon", "cdcsync", "run", "-c", str(self._config))


def get_json(url: str, timeout: float = 30.0) -> Any:
    """Fetch a JSON document from one of the demo's own servers. Raises OSError or ValueError."""
    with urllib.request.urlopen(url, timeout=timeout) as answer:  # noqa: S310 - URLs of our own, on loopback
        return json.loads(answer.read())


def put_json(url: str, document: Mapping[str, object]) -> None:
    """Send a JSON document to one of the demo's own servers. Raises OSError."""
    body = json.dumps(document).encode()
    request = urllib.request.Request(url, body, {"Content-Type": "application/json"}, method="PUT")  # noqa: S310 - as above
    with urllib.request.urlopen(request, timeout=30.0):  # noqa: S310 - as above
        pass
