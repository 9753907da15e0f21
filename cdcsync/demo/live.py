"""What the demo shows while it runs: a table that redraws itself on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Protocol, Self

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from cdcsync.demo.workload import Tally
from cdcsync.status import LaneStatus, Snapshot, duration

LINE_SECONDS = 2.0
TONES = {"running": "green", "backing off": "yellow", "paused": "yellow", "stopped": "red"}


@dataclass(frozen=True, slots=True)
class Frame:
    """One moment of the demo. ``snapshot`` is None while the daemon does not answer; ``requests`` are by CRM."""

    elapsed: float
    tally: Tally
    pid: int
    restarts: int
    snapshot: Snapshot | None
    requests: Mapping[str, int]


class View(Protocol):
    """Shows frames, between ``__enter__`` and ``__exit__``."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def show(self, frame: Frame) -> None:
        """Show the present frame."""

    def say(self, text: str) -> None:
        """Tell something once."""


def view(console: Console) -> View:
    """Choose the view that suits where the output goes."""
    return TableView(console) if console.is_terminal else LineView(console)


class TableView:
    """Redraws a table in place; what is said scrolls by above it."""

    def __init__(self, console: Console) -> None:
        self._live = Live(console=console, auto_refresh=False, transient=False)

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.stop()

    def show(self, frame: Frame) -> None:
        """Redraw."""
        self._live.update(draw(frame), refresh=True)

    def say(self, text: str) -> None:
        """Print above the table."""
        self._live.console.print(Text(text, style="bold"))


class LineView:
    """Prints a line now and then, for logs and pipes."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._due = 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass

    def show(self, frame: Frame) -> None:
        """Print a line if the last one is old enough."""
        if time.monotonic() >= self._due:
            self._due = time.monotonic() + LINE_SECONDS
            self.say(line(frame))

    def say(self, text: str) -> None:
        """Print a line."""
        self._console.print(text, soft_wrap=True, markup=False, highlight=False)


def line(frame: Frame) -> str:
    """Put a frame into one line."""
    words = [f"{frame.elapsed:4.0f} s  {frame.tally.changes:,} row changes written"]
    if frame.snapshot is None:
        words.append("the daemon does not answer yet")
    else:
        words += [_lane_words(lane) for lane in frame.snapshot.lanes]
    return "  |  ".join(words)


def _lane_words(lane: LaneStatus) -> str:
    books = lane.counters
    saved = books.coalesced + books.suppressed
    lag = duration(lane.lag_seconds)
    trouble = "" if lane.state == "running" else f" ({lane.state}: {lane.last_error})"
    rejected = f", {lane.rejected:,} rejected" if lane.rejected else ""
    words = f"{books.applied:,} sent, {saved:,} saved, {lane.pending:,} pending{rejected}, {lag} behind"
    return f"{lane.name}: {words}{trouble}"


def draw(frame: Frame) -> Group:
    """Lay a frame out: the sentence, the table, the workload."""
    if frame.snapshot is None:
        return Group(Text("The daemon does not answer yet.", style="yellow"), _workload(frame))
    table = Table(title=None, expand=False, header_style="dim", border_style="dim")
    table.add_column("")
    for lane in frame.snapshot.lanes:
        table.add_column(lane.name, justify="right", min_width=12)
    for title, cells in rows(frame.snapshot, frame.requests):
        table.add_row(Text(title), *cells)
    tone = "green" if frame.snapshot.in_step else "yellow"
    return Group(Text(frame.snapshot.sentence, style=f"bold {tone}"), table, _workload(frame))


def rows(snapshot: Snapshot, requests: Mapping[str, int]) -> list[tuple[str, list[Text]]]:
    """Give the table's rows: a title, and a cell for each lane."""

    def numbers(title: str, attribute: str, style: str = "") -> tuple[str, list[Text]]:
        return title, [Text(f"{getattr(lane.counters, attribute):,}", style=style) for lane in snapshot.lanes]

    return [
        ("state", [Text(lane.state, style=TONES[lane.state]) for lane in snapshot.lanes]),
        numbers("row changes in", "changes_in"),
        numbers("  folded into another", "coalesced", "cyan"),
        numbers("  would change nothing", "suppressed", "cyan"),
        numbers("  sent and applied", "applied", "green"),
        ("    created / deleted", [Text(_created(lane)) for lane in snapshot.lanes]),
        ("  pending", [Text(f"{lane.pending:,}") for lane in snapshot.lanes]),
        ("  rejected", [Text(f"{lane.rejected:,}", style="red" if lane.rejected else "") for lane in snapshot.lanes]),
        ("HTTP requests", [Text(f"{requests[lane.name]:,}") for lane in snapshot.lanes]),
        ("row changes per request", [Text(_ratio(lane, requests), style="bold") for lane in snapshot.lanes]),
        ("behind", [Text(duration(lane.lag_seconds)) for lane in snapshot.lanes]),
    ]


def _created(lane: LaneStatus) -> str:
    return f"{lane.counters.created:,} / {lane.counters.deleted:,}"


def _ratio(lane: LaneStatus, requests: Mapping[str, int]) -> str:
    return f"{lane.counters.changes_in / requests[lane.name]:,.1f}" if requests[lane.name] else "-"


def _workload(frame: Frame) -> Text:
    tally = frame.tally
    text = (
        f"{frame.elapsed:.0f} s: {tally.transactions:,} transactions wrote {tally.inserted:,} inserts, "
        f"{tally.updated:,} updates, {tally.deleted:,} deletes; {tally.rolled_back:,} rolled back."
    )
    killed = f" Started again so far: {frame.restarts}." if frame.restarts else ""
    return Text(f"{text}\nThe daemon is process {frame.pid}: kill -9 {frame.pid} and see.{killed}", style="dim")
