"""Adapter, limiter and sandbox together: writing as fast as HubSpot allows, and no faster."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from cdcsync.apply.limiter import Limiter
from cdcsync.apply.rate import RateController
from cdcsync.errors import RateLimitedError
from cdcsync.model import Batch, Op, Record
from cdcsync.sandbox.server import SandboxThread
from tests.crm.hubspot_account import CONTACTS, Account, ids


@pytest.fixture
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    """Give an event loop that runs in a thread."""
    running = asyncio.new_event_loop()
    thread = threading.Thread(target=running.run_forever)
    thread.start()
    yield running
    running.call_soon_threadsafe(running.stop)
    thread.join(10)
    running.close()


def test_five_threads_are_never_refused(hubspot_sandbox: SandboxThread, loop: asyncio.AbstractEventLoop) -> None:
    """The first answer's headers teach the limit; more requests than a window holds pass without one refusal."""
    account = Account(hubspot_sandbox)
    account.settings(ten_secondly=40)
    limiter = Limiter(loop, RateController(ceiling=19, now=loop.time()), "hubspot")
    crm = account.connect(gate=limiter)
    try:
        with ThreadPoolExecutor(5) as pool:
            batches = [Batch(CONTACTS, Op.UPSERT, (Record(str(n)),)) for n in range(45)]
            assert len({crm_id for sent in pool.map(crm.send, batches) for crm_id in ids(sent)}) == 45
        assert account.books()["refused_429"] == 0
        assert limiter.status().ceiling == pytest.approx(3.6)
    finally:
        limiter.close()
        crm.close()
        account.close()


def test_a_refusal_slows_down_and_the_next_request_waits_for_it(
    hubspot_sandbox: SandboxThread, loop: asyncio.AbstractEventLoop
) -> None:
    """After a 429 the rate is halved and a pause is in force; when it is over, the same batch passes."""
    account = Account(hubspot_sandbox)
    limiter = Limiter(loop, RateController(ceiling=10, now=loop.time()), "hubspot")
    crm = account.connect(gate=limiter)
    batch = Batch(CONTACTS, Op.UPSERT, (Record("1"),))
    try:
        account.fault(kind="refuse", status=429, match={"path": "/batch/upsert"})
        with pytest.raises(RateLimitedError):
            crm.send(batch)
        ids(crm.send(batch))
        assert limiter.status().rate < 6
        assert account.books()["refused_429"] == 1
    finally:
        limiter.close()
        crm.close()
        account.close()
