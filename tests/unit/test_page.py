"""The status page as a browser, a monitor and an attacker's web page see it: over a real socket."""

from __future__ import annotations

import dataclasses
import datetime as dt
import html.parser
import json
from collections.abc import AsyncIterator

import aiohttp
import pytest

from cdcsync.errors import ConfigError
from cdcsync.model import Lsn
from cdcsync.page import is_loopback, parse_listen, serve
from cdcsync.page_html import to_html
from cdcsync.status import (
    Backfill,
    Counters,
    Event,
    Job,
    LaneStatus,
    MapStatus,
    Quota,
    RejectGroup,
    Snapshot,
    SourceStatus,
)
from cdcsync.status_json import from_json

NOW = dt.datetime(2026, 11, 2, 12, 30, tzinfo=dt.UTC)
HEALTHY = Snapshot(
    version="0.1.0",
    generated=NOW,
    source=SourceStatus(
        connected=True,
        slot="cdcsync",
        received_lsn=Lsn(0x200),
        durable_lsn=Lsn(0x1F0),
        server_lsn=Lsn(0x200),
        retained_bytes=64 << 20,
        warn_bytes=1 << 30,
        wal_status="reserved",
    ),
    lanes=(
        LaneStatus(
            name="salesforce",
            kind="salesforce",
            state="running",
            applied_lsn=Lsn(0x1E0),
            pending=4,
            rejected=2,
            counters=Counters(changes_in=1234, applied=1000, suppressed=28, coalesced=200, requests=31),
            quotas=(Quota(name="daily", seconds=86400, limit=1000, remaining=969, budget=600, ours=30),),
            quota_lasts_until=NOW + dt.timedelta(hours=5),
            breaker="open",
            breaker_until=NOW + dt.timedelta(minutes=2),
            jobs=(Job(id="7501", object="Contact", op="upsert", state="uploaded", records=900),),
        ),
    ),
    maps=(
        MapStatus(
            name="customers",
            table="public.customers",
            lane="salesforce",
            target="salesforce.Contact",
            backfill=Backfill(state="copying", rows=50, estimate=200),
            rejects=(RejectGroup(code="INVALID_EMAIL_ADDRESS", field="Email", rows=2),),
        ),
    ),
    events=(Event(time=NOW, level="warning", text="slot created"),),
    pid=4711,
)


class Holder:
    """The present snapshot, which a test may replace while the page is served."""

    def __init__(self) -> None:
        self.snapshot = HEALTHY

    def __call__(self) -> Snapshot:
        """Give the present snapshot."""
        return self.snapshot


@pytest.fixture
def holder() -> Holder:
    """Give the snapshot that the page shows."""
    return Holder()


@pytest.fixture
async def client(holder: Holder) -> AsyncIterator[aiohttp.ClientSession]:
    """Serve the page on a free port and give a client of it."""
    async with serve("127.0.0.1:0", holder) as url, aiohttp.ClientSession(url) as session:
        yield session


class Outline(html.parser.HTMLParser):
    """Checks that tags nest, and collects the text."""

    VOID = frozenset({"meta", "link", "br", "hr", "img"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text = ""
        self.attributes: list[tuple[str, str | None]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Remember an open tag."""
        self.attributes += attrs
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Remember the attributes of an empty tag."""
        del tag
        self.attributes += attrs

    def handle_endtag(self, tag: str) -> None:
        """Check that the innermost tag is closed first."""
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        """Collect text."""
        self.text += data


def outline(page: str) -> Outline:
    """Parse a page to its end."""
    parsed = Outline()
    parsed.feed(page)
    parsed.close()
    assert not parsed.open
    return parsed


async def test_the_page_says_everything_in_one_place(client: aiohttp.ClientSession) -> None:
    """The sentence, the flow's counts, mappings, rejects, bars, jobs and events are all on it, in sound HTML."""
    async with client.get("/") as answer:
        assert answer.status == 200
        page = outline(await answer.text())
    words = ("Copying public.customers to salesforce.Contact (25%); 2 rejected rows.", "1,234", "200 folded")
    for word in (
        *words,
        "31 requests",
        "INVALID_EMAIL_ADDRESS",
        "64.0 MB of 1.0 GB",
        "7501",
        "slot created",
        "our share 600, of it used 30, lasts until 17:30 UTC",
        "salesforce: breaker open until 12:32 UTC",
    ):
        assert word in page.text


async def test_the_page_needs_nothing_that_its_policy_forbids(client: aiohttp.ClientSession) -> None:
    """No inline style or handler, no address elsewhere, and the nonce of the header is that of the document."""
    async with client.get("/") as answer:
        policy, text = answer.headers["Content-Security-Policy"], await answer.text()
    attributes = outline(text).attributes
    assert not [name for name, _ in attributes if name == "style" or name.startswith("on")]
    nonces = {value for name, value in attributes if name == "nonce"}
    assert len(nonces) == 1
    assert f"script-src 'nonce-{nonces.pop()}'" in policy
    assert policy.startswith("default-src 'none'")
    assert not [
        value for name, value in attributes if name in ("src", "href") and (value or "").startswith(("http", "//"))
    ]


async def test_every_answer_carries_the_security_headers(client: aiohttp.ClientSession) -> None:
    """Also the ones that aiohttp writes by itself, and none tells the server's software."""
    for path in ("/", "/status.json", "/metrics", "/healthz", "/nothing-here"):
        async with client.get(path) as answer:
            assert answer.headers["X-Content-Type-Options"] == "nosniff"
            assert answer.headers["Cache-Control"] == "no-store"
            assert answer.headers["X-Frame-Options"] == "DENY"
            assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
            assert answer.headers["Server"] == "cdcsync"


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "localhost.evil.example", "10.0.0.1", ""])
async def test_names_that_are_not_loopback_get_nothing(client: aiohttp.ClientSession, host: str) -> None:
    """A web page that lets its own name point to loopback cannot read the status."""
    for path in ("/", "/status.json", "/metrics"):
        async with client.get(path, headers={"Host": host}) as answer:
            assert answer.status == 421
            assert "cdcsync_" not in await answer.text()


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:1", "127.0.0.1:80", "127.9.9.9", "[::1]:9187"])
async def test_loopback_names_are_answered(client: aiohttp.ClientSession, host: str) -> None:
    """Whatever port a tunnel has given the page."""
    async with client.get("/healthz", headers={"Host": host}) as answer:
        assert answer.status == 200


async def test_json_and_metrics_follow_the_snapshot(client: aiohttp.ClientSession, holder: Holder) -> None:
    """Each request renders the present state."""
    holder.snapshot = dataclasses.replace(HEALTHY, uptime=77.0)
    async with client.get("/status.json") as answer:
        assert answer.content_type == "application/json"
        assert from_json(json.loads(await answer.text())) == holder.snapshot
    async with client.get("/metrics") as answer:
        assert answer.headers["Content-Type"].startswith("text/plain; version=0.0.4")
        assert "cdcsync_uptime_seconds 77.0\n" in await answer.text()


async def test_ready_means_that_the_daemon_does_its_work(client: aiohttp.ClientSession, holder: Holder) -> None:
    """A CRM that is down is no reason to restart us; a lost source, a stopped lane or wrong books are."""
    lane = HEALTHY.lanes[0]
    stopped = dataclasses.replace(lane, state="stopped")
    backing_off = dataclasses.replace(lane, state="backing off")
    unbalanced = dataclasses.replace(lane, pending=5)
    for state, status in ((lane, 200), (backing_off, 200), (stopped, 503), (unbalanced, 503)):
        holder.snapshot = dataclasses.replace(HEALTHY, lanes=(state,))
        async with client.get("/readyz") as answer:
            assert answer.status == status
            assert await answer.text() == f"{holder.snapshot.sentence}\n"
    holder.snapshot = dataclasses.replace(HEALTHY, source=dataclasses.replace(HEALTHY.source, connected=False))
    async with client.get("/readyz") as answer, client.get("/healthz") as alive:
        assert (answer.status, alive.status) == (503, 200)


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH"])
async def test_nothing_can_be_done_from_the_page(client: aiohttp.ClientSession, method: str) -> None:
    """It only reads."""
    async with client.request(method, "/") as answer:
        assert answer.status == 405


def test_texts_of_others_are_escaped() -> None:
    """A CRM's error text or a table's name cannot become markup."""
    evil = "</script><script>alert(1)</script>"
    lane = dataclasses.replace(HEALTHY.lanes[0], last_error=evil, name=evil, state="backing off")
    entry = dataclasses.replace(HEALTHY.maps[0], table=evil, rejects=(RejectGroup(code=evil, field=evil, rows=1),))
    event = Event(time=NOW, level="error", text=evil)
    page = to_html(dataclasses.replace(HEALTHY, lanes=(lane,), maps=(entry,), events=(event,)), "nonce")
    assert "<script>" not in page
    assert page.count("</script>") == 1


def test_unknown_figures_do_not_break_the_page() -> None:
    """Before Postgres was ever reached, nearly everything is unknown."""
    bare = SourceStatus(connected=False, slot="cdcsync", received_lsn=Lsn(0), durable_lsn=Lsn(0))
    page = outline(to_html(Snapshot(version="0", generated=NOW, source=bare, lanes=(), maps=()), "n"))
    assert "Postgres is not connected." in page.text


@pytest.mark.parametrize(
    "listen", ["0.0.0.0:9187", "192.168.1.5:80", "example.com:80", "127.0.0.1", "127.0.0.1:x", ":80"]
)
async def test_only_loopback_addresses_are_served(listen: str, holder: Holder) -> None:
    """The page has no login, so it is not offered to the network by mistake."""
    with pytest.raises(ConfigError, match="loopback"):
        async with serve(listen, holder):
            pass


def test_addresses_in_both_notations() -> None:
    """IPv6 comes in brackets, names in any case."""
    assert parse_listen("[::1]:80") == ("::1", 80)
    assert parse_listen("localhost:0") == ("localhost", 0)
    assert is_loopback("LocalHost.")
    assert not is_loopback("")


async def test_a_taken_port_is_a_mistake_in_the_config(holder: Holder) -> None:
    """The message names the setting and what to do."""
    async with serve("127.0.0.1:0", holder) as url:
        with pytest.raises(ConfigError, match=r"status\.listen: cannot listen") as caught:
            async with serve(url.removeprefix("http://").rstrip("/"), holder):
                pass
        assert "free port" in caught.value.hint
