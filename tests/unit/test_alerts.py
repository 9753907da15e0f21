"""Alerts: one notice per opening and closing, whatever comes in between; and how they are told, to real parties."""

from __future__ import annotations

import asyncio
import contextlib
import http.server
import json
import stat
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st

from cdcsync import alert_sinks, alerting
from cdcsync.alert_sinks import AlertError, document, post, run_command
from cdcsync.alerting import Alerting
from cdcsync.alerts import CALM_SECONDS, Condition, Name, Notice, Watch, conditions, step
from cdcsync.clock import Clock, SystemClock
from cdcsync.config.alert import AlertConfig
from cdcsync.errors import SourceError
from cdcsync.state import State
from cdcsync.status import MapStatus, Pause, Snapshot
from tests.polling import eventually_async
from tests.unit.test_status import CONTACTS, SALESFORCE, make, with_rejects

PATIENCE = 60.0
DOWN = Condition(Name("crm-failing", "salesforce"), "salesforce fails", passing=True)
PAUSED = Condition(Name("mapping-paused", "companies"), "companies is paused")
SOURCE = make().source
LOG: structlog.typing.FilteringBoundLogger = structlog.get_logger()


def run(looks: list[tuple[float, list[Condition]]], *, restarts: bool = False) -> list[tuple[float, str, str]]:
    """Look at these times; returns what is told: when, the event, the kind."""
    watch = Watch()
    told: list[tuple[float, str, str]] = []
    for now, seen in looks:
        if restarts:
            watch = Watch.parse(watch.to_text(), now)
        after = step(watch, seen, now, patience=PATIENCE, sinks=("command",), young=False)
        told += [(notice.at, notice.event, notice.name.kind) for notice in after.due[len(watch.due) :]]
        watch = after
    return told


def seconds(start: int, end: int, *seen: Condition) -> list[tuple[float, list[Condition]]]:
    """Look once a second."""
    return [(float(now), list(seen)) for now in range(start, end)]


@pytest.mark.parametrize("restarts", [False, True])
def test_what_may_pass_has_to_last_and_the_rest_is_told_at_once(*, restarts: bool) -> None:
    """One opening and one closing of each, also when the daemon is a new one at each look."""
    looks = [*seconds(0, 10), *seconds(10, 100, DOWN, PAUSED), *seconds(100, 200)]
    told = run(looks) if not restarts else run(looks[:100], restarts=True)
    assert told[:2] == [(10.0, "opened", "mapping-paused"), (70.0, "opened", "crm-failing")]
    if not restarts:
        assert told[2:] == [(109.0, "closed", "crm-failing"), (109.0, "closed", "mapping-paused")]


def test_one_success_among_failures_neither_hides_nor_repeats() -> None:
    """Gaps that are shorter than the calm count as none; what passes sooner than the patience is never told."""
    flapping = [(float(now), [] if now % 5 == 0 else [DOWN]) for now in range(1, 200)]
    assert run([*flapping, *seconds(200, 300)]) == [(61.0, "opened", "crm-failing"), (209.0, "closed", "crm-failing")]
    assert run([*seconds(0, 50, DOWN), *seconds(50, 200)]) == []


def test_a_young_daemon_closes_nothing_and_opens_what_cannot_pass() -> None:
    """What the last daemon saw may be seen again only after a while, and no start has a connection at once."""
    watch = step(Watch(), [DOWN], 0.0, patience=PATIENCE, sinks=("command",), young=True)
    watch = step(watch, [DOWN], 100.0, patience=PATIENCE, sinks=("command",), young=True)
    assert watch.due == ()
    watch = step(Watch(), [PAUSED], 0.0, patience=PATIENCE, sinks=("command",), young=False)
    watch = step(watch, [], 100.0, patience=PATIENCE, sinks=("command",), young=True)
    assert [notice.event for notice in watch.due] == ["opened"]
    watch = step(watch, [], 101.0, patience=PATIENCE, sinks=("command",), young=False)
    assert [notice.event for notice in watch.due] == ["opened", "closed"]


@given(st.lists(st.tuples(st.integers(0, 40), st.sets(st.sampled_from([DOWN, PAUSED])), st.booleans()), max_size=60))
def test_openings_and_closings_alternate(looks: list[tuple[int, set[Condition], bool]]) -> None:
    """Whatever is seen, and whenever the daemon is started anew, no alert opens twice in a row, nor closes so."""
    now, watch = 0.0, Watch()
    for pause, seen, restart in looks:
        now += pause
        if restart:
            watch = Watch.parse(watch.to_text(), now)
        watch = step(watch, seen, now, patience=PATIENCE, sinks=("command",), young=False)
    for condition in (DOWN, PAUSED):
        events = [notice.event for notice in watch.due if notice.name == condition.name]
        assert events == ["opened", "closed"] * (len(events) // 2) + ["opened"] * (len(events) % 2)
    assert len({notice.id for notice in watch.due}) == watch.told == len(watch.due)


def test_a_notice_is_due_until_it_was_told_on_each_way() -> None:
    """A webhook that is down does not have the command run again."""
    watch = step(Watch(), [PAUSED], 0.0, patience=PATIENCE, sinks=("command", "webhook"), young=False)
    (notice,) = watch.due
    watch = Watch.parse(watch.told_on(notice, "command").to_text(), 1.0)
    assert [one.sinks for one in watch.due] == [("webhook",)]
    assert watch.told_on(notice, "webhook").due == ()


def names(snapshot: Snapshot, rejects: int | None = None) -> set[Name]:
    """Name what is wrong."""
    return {condition.name for condition in conditions(snapshot, {}, rejects)}


def test_each_condition_is_found_in_the_snapshot() -> None:
    """And a snapshot of a daemon that does its work has none."""
    assert names(make()) == set()
    assert names(make(source=replace(SOURCE, connected=False))) == {Name("postgres-unreachable")}
    lost = replace(SOURCE, wal_status="lost", retained_bytes=5 << 30, warn_bytes=1 << 30, reading_paused=True)
    assert names(make(source=lost)) == {Name("slot-lost"), Name("slot-lag"), Name("reading-paused")}
    for changes, kind in (
        ({"failing": True, "last_error": "503"}, "crm-failing"),
        ({"failing": True, "last_error": "no", "last_error_code": "crm-credentials"}, "crm-refused"),
        ({"held_back": "our budget of 10 calls a day is used up (10 made)"}, "crm-quota"),
        ({"pending": SALESFORCE.pending + 1}, "books"),
    ):
        assert names(make(lanes=(replace(SALESFORCE, **changes),))) == {Name(kind, "salesforce")}
    refused = make(lanes=(with_rejects(3),))
    assert (names(refused), names(refused, rejects=4)) == (set(), set())
    assert names(refused, rejects=3) == {Name("rejects", "salesforce")}
    assert names(make(maps=(_paused("person", make()),))) == set()
    assert names(make(maps=(_paused("deletes", make()),))) == {Name("mapping-paused", CONTACTS.name)}


def _paused(by: str, snapshot: Snapshot) -> MapStatus:
    return replace(CONTACTS, paused="why", pause=Pause(reason="why", since=snapshot.generated, by=by))


# --- telling


@dataclass
class Receiver:
    """A webhook. ``answers`` are the status codes of the next answers, 204 then."""

    url: str = ""
    answers: list[int] = field(default_factory=list)
    received: list[dict[str, object]] = field(default_factory=list)


@contextlib.contextmanager
def receiver() -> Iterator[Receiver]:
    """Run a webhook on a port of this machine."""
    kept = Receiver()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            assert self.headers["Content-Type"] == "application/json"
            code = kept.answers.pop(0) if kept.answers else 204
            if code < 300:
                kept.received.append(body)
            self.send_response(code)
            self.send_header("Location", kept.url)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    kept.url = f"http://127.0.0.1:{server.server_port}/hook/secret"
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield kept
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def script(path: Path, text: str) -> str:
    """Write a shell script; returns its path."""
    path.write_text(f"#!/bin/sh\n{text}\n", encoding="utf-8")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


NOTICE = Notice("7", "opened", Name("crm-failing", "salesforce"), "salesforce fails: 503", 1e9, 1e9 + 60, ("command",))


def test_a_command_gets_json_and_variables(tmp_path: Path) -> None:
    """Without a shell: an argument with a blank stays one, and nothing is expanded."""
    command = script(tmp_path / "tell", 'cat > "$1"; env | grep CDCSYNC_ALERT > "$1.env"')
    asyncio.run(run_command(f"{command} '{tmp_path}/$HOME x'", NOTICE))
    told = json.loads((tmp_path / "$HOME x").read_text(encoding="utf-8"))
    assert told == document(NOTICE)
    assert told == {
        "format": 1,
        "id": "7",
        "event": "opened",
        "alert": "crm-failing",
        "subject": "salesforce",
        "text": "salesforce fails: 503",
        "since": "2001-09-09T01:46:40.000+00:00",
        "at": "2001-09-09T01:47:40.000+00:00",
    }
    variables = (tmp_path / "$HOME x.env").read_text(encoding="utf-8").splitlines()
    assert sorted(variables) == [
        "CDCSYNC_ALERT_EVENT=opened",
        "CDCSYNC_ALERT_ID=7",
        "CDCSYNC_ALERT_NAME=crm-failing",
        "CDCSYNC_ALERT_SINCE=2001-09-09T01:46:40.000+00:00",
        "CDCSYNC_ALERT_SUBJECT=salesforce",
        "CDCSYNC_ALERT_TEXT=salesforce fails: 503",
    ]


def test_a_command_that_fails_hangs_or_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each says so in a sentence; one that hangs is ended with all that it has started."""
    with pytest.raises(AlertError, match="ended with 3: no such list"):
        asyncio.run(run_command(script(tmp_path / "fails", "echo no such list >&2; exit 3"), NOTICE))
    with pytest.raises(AlertError, match="cannot be run: No such file"):
        asyncio.run(run_command(str(tmp_path / "nothing"), NOTICE))
    monkeypatch.setattr(alert_sinks, "COMMAND_SECONDS", 0.3)
    hangs = script(tmp_path / "hangs", f"sleep 60 & echo $! > {tmp_path}/pid; wait")
    with pytest.raises(AlertError, match="did not end within"):
        asyncio.run(run_command(hangs, NOTICE))
    child = Path("/proc") / (tmp_path / "pid").read_text(encoding="utf-8").strip()
    deadline = time.monotonic() + 10
    while child.exists() and "(sleep) Z" not in (child / "stat").read_text(encoding="utf-8"):
        assert time.monotonic() < deadline, "what the command has started goes on"
        time.sleep(0.05)


def test_a_webhook_gets_json_and_its_failures_do_not_show_its_url() -> None:
    """A redirect is followed nowhere; what is refused or out of reach is a sentence without the URL's token."""
    with receiver() as hook:
        config = AlertConfig(webhook=hook.url)
        asyncio.run(post(config, NOTICE))
        assert hook.received == [document(NOTICE)]
        for code in (302, 403, 500):
            hook.answers = [code]
            with pytest.raises(AlertError, match=f"answered {code}") as refused:
                asyncio.run(post(config, NOTICE))
            assert "secret" not in str(refused.value)
        assert len(hook.received) == 1
    with pytest.raises(AlertError, match="cannot be reached") as unreachable:
        asyncio.run(post(config, NOTICE))
    assert "secret" not in str(unreachable.value)


class Around:
    """A state file, and the time."""

    clock: Clock = SystemClock()

    def __init__(self, state: State) -> None:
        self.state = state

    async def on_file(self, work):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN201 — as the pipeline's
        return work(self.state)


def test_over_restarts_each_notice_is_told_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The webhook fails at first, the daemon is stopped in between: one opening, one closing, on each of two ways."""
    monkeypatch.setattr(alerting, "RETRY_SECONDS", (0.05, 0.05))
    log = tmp_path / "told"
    command = script(tmp_path / "tell", f'echo "$CDCSYNC_ALERT_ID $CDCSYNC_ALERT_EVENT" >> {log}')
    bad, good = replace(make(maps=(_paused("sweep", make()),)), uptime=999.0), replace(make(), uptime=999.0)

    async def daemon(config: AlertConfig, *snapshots: Snapshot, told: int) -> None:
        state = State.open(tmp_path / "state.db")
        alerts = Alerting(config, Around(state), LOG)
        task = asyncio.create_task(alerts.run())
        for snapshot in snapshots:
            await alerts.look(snapshot)
            await alerts.look(snapshot)
        await eventually_async(lambda: len(hook.received) == told and len(_lines(log)) == told)
        # At once: a stop waits for what is being told.
        task.cancel()
        await asyncio.wait([task])
        state.close()

    monkeypatch.setattr("cdcsync.alerts.CALM_SECONDS", 0.0)
    with receiver() as hook:
        config = AlertConfig(command=command, webhook=hook.url)
        hook.answers = [500, 503]
        asyncio.run(daemon(config, bad, told=1))
        asyncio.run(daemon(config, bad, told=1))
        asyncio.run(daemon(config, good, told=2))
        asyncio.run(daemon(config, good, told=2))
        assert [told["event"] for told in hook.received] == ["opened", "closed"]
    assert _lines(log) == ["1 opened", "2 closed"]


def test_the_end_by_an_error_is_told_and_the_next_start_closes_it(tmp_path: Path) -> None:
    """Once, before the process is gone; alerts that are open stay so."""
    log = tmp_path / "told"
    command = script(tmp_path / "tell", f'echo "$CDCSYNC_ALERT_NAME $CDCSYNC_ALERT_EVENT $CDCSYNC_ALERT_TEXT" >> {log}')
    state = State.open(tmp_path / "state.db")

    async def ends() -> None:
        alerts = Alerting(AlertConfig(command=command), Around(state), LOG)
        await alerts.ended(SourceError("the slot is gone"))

    asyncio.run(ends())
    assert _lines(log) == ["daemon-ended opened cdcsync has ended: the slot is gone"]
    watch = Watch.parse(state.alerts(), 0.0)
    assert watch.due == ()
    after = step(watch, [], CALM_SECONDS, patience=PATIENCE, sinks=("command",), young=False)
    assert [notice.event for notice in after.due] == ["closed"]
    state.close()


def _lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines() if path.exists() else []
