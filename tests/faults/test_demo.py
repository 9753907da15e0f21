"""The demo as a newcomer runs it: from the command line, with the daemon killed on the way, to its verdict."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.polling import eventually

GOOD = "✓ The CRMs are equal to the database."


class Demo:
    """``cdcsync demo`` in a process, with its output so far."""

    def __init__(self, output: Path, *arguments: str) -> None:
        self._output = output
        with output.open("wb") as file:
            command = [sys.executable, "-m", "cdcsync", "demo", *arguments]
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=file, stderr=file)

    def said(self, pattern: str) -> re.Match[str]:
        """Wait until the output matches."""
        found = eventually(lambda: self._search(pattern), 60, f"the demo did not say {pattern!r}")
        assert found
        return found

    @property
    def text(self) -> str:
        """All output so far."""
        return self._output.read_text(encoding="utf-8")

    def end(self) -> int:
        """Wait for the end; returns the exit code."""
        return self.process.wait(200)

    def _search(self, pattern: str) -> re.Match[str] | None:
        ended = self.process.poll() is not None
        found = re.search(pattern, self.text)
        assert found or not ended, f"the demo ended with code {self.process.returncode}:\n{self.text}"
        return found


@pytest.fixture
def output(tmp_path: Path) -> Iterator[Path]:
    """Name the file that takes the demo's output; nothing of the demo is left over afterwards."""
    yield tmp_path / "output"
    directory = Path(re.findall(r"config +(\S+)", (tmp_path / "output").read_text(encoding="utf-8"))[0]).parent
    assert not directory.exists()
    mine = [process for process in psutil.process_iter(["cmdline"]) if _names(process, str(directory))]
    assert not mine


def _names(process: psutil.Process, text: str) -> bool:
    return any(text in argument for argument in process.info["cmdline"] or [])


def test_the_demo_ends_with_a_good_verdict_though_its_daemon_is_killed(output: Path) -> None:
    """After --seconds the CRMs equal the database, kill -9 or not, and the exit code says so."""
    demo = Demo(output, "--seconds", "15", "--seed", "7")
    pid = int(demo.said(r"daemon +process (\d+)")[1])
    demo.said(r"salesforce: [1-9]")
    os.kill(pid, signal.SIGKILL)
    demo.said("was killed by signal 9; started again as process")
    code = demo.end()
    assert GOOD in demo.text
    assert " 0 differ.\n" in demo.text
    assert "0 records doubled, 0 put back to an older state" in demo.text
    assert code == 0, demo.text


def test_ctrl_c_closes_the_shop_and_gives_the_verdict(output: Path) -> None:
    """Without --seconds the demo goes on until it is interrupted, and then ends in the same good way."""
    demo = Demo(output)
    demo.said(r"hubspot: [1-9]")
    demo.process.send_signal(signal.SIGINT)
    code = demo.end()
    assert "The shop is closed" in demo.text
    assert GOOD in demo.text, demo.text
    assert code == 0
