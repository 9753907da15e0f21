"""``cdcsync sandbox``: one process per CRM, started together and ended together."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable, Collection, Mapping

STOP_SECONDS = 5.0


def run_processes(ports: Mapping[str, int], say: Callable[[str], None]) -> int:
    """Serve the CRMs named in ``ports`` until SIGINT or SIGTERM, or until one of them ends; returns an exit code.

    A CRM's admin port is the one above its own (both free ones for port 0). ``say`` gets a line for each CRM.
    """
    processes = {crm: _start(crm, port) for crm, port in ports.items()}
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _leave)
    try:
        for crm, process in processes.items():
            say(_announcement(crm, process))
        return _wait(processes)
    except KeyboardInterrupt:
        return 0
    finally:
        _stop(processes.values())


def _start(crm: str, port: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "cdcsync.sandbox", crm]
    if port:
        command += ["--port", str(port), "--admin-port", str(port + 1)]
    # A group of its own, so that Ctrl-C ends it through us, and once.
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)  # noqa: S603 — our own program


def _announcement(crm: str, process: subprocess.Popen[str]) -> str:
    line = process.stdout.readline() if process.stdout is not None else ""
    if not line:
        return f"{crm}: did not start"
    ready = json.loads(line)
    return f"{crm}: {ready['url']}   admin: {ready['admin_url']} (records, requests, books, faults, settings)"


def _wait(processes: Mapping[str, subprocess.Popen[str]]) -> int:
    while True:
        for process in processes.values():
            try:
                return process.wait(timeout=0.2)
            except subprocess.TimeoutExpired:
                continue


def _leave(_number: int, _frame: object) -> None:
    raise KeyboardInterrupt


def _stop(processes: Collection[subprocess.Popen[str]]) -> None:
    for process in processes:
        process.terminate()
    for process in processes:
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
