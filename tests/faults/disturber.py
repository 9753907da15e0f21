"""What happens to cdcsync in a bad hour, drawn at random from a seed: kills, restarts, networks, failing CRMs.

Disturbances overlap. What lasts (a stall, a server that is not reached, a CRM that refuses everything) is undone at its
time, and at the end in any case. The faults of ``shopkeeper.FAULTS`` are in force all the while.

A daemon that cannot reach PostgreSQL at its start ends, and is started again, as a service manager would.

One thing is left out on purpose: a request that the network or the CRM keeps back, and that is carried out after a
later one of another connection. Nothing in either CRM's API would refuse it (see docs/chaos.md).
"""

from __future__ import annotations

import contextlib
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from cdcsync.demo.postgres import EmbeddedPostgres
from cdcsync.errors import EXIT_UNREACHABLE
from tests.faults.shopkeeper import FAULTS
from tests.faults.stage import Stage
from tests.proxy import Proxy, Relay

FULL_PACE = 1200.0
"""Seconds of a run from which on disturbances have their full length; a shorter one gets them faster and shorter."""
KILL_EVERY = (10.0, 60.0)
NEXT_AFTER = (0.5, 15.0)
LASTS = (0.5, 30.0)
SHORTEST = 0.4
STORMS: Mapping[str, Mapping[str, Mapping[str, object]]] = {
    "salesforce": {
        "down": {"kind": "refuse", "status": 503, "match": {}, "times": None},
        "limits the rate": {"kind": "refuse", "status": 429, "match": {"path": "/composite/"}, "times": 5},
        "loses answers": {"kind": "do_then_fail", "status": 500, "match": {"path": "/(composite|jobs)/"}, "times": 10},
        "is slow": {"kind": "slow", "seconds": 2.0, "match": {"path": "/composite/"}, "times": 10},
        "locks rows": {"kind": "lock", "match": {}, "probability": 0.5, "times": None},
        "rotates its tokens": {"kind": "expire_token", "match": {}, "times": 2},
        "has a stuck job": {"kind": "stuck_job", "match": {}, "times": 1},
        "answers garbage": {"kind": "garbage", "match": {"path": "/composite/"}, "times": 3},
    },
    "hubspot": {
        "down": {"kind": "refuse", "status": 502, "match": {}, "times": None},
        "limits the rate": {"kind": "refuse", "status": 429, "match": {"path": "/crm/"}, "times": 5},
        "loses answers": {"kind": "do_then_fail", "status": 504, "match": {"path": "/batch/"}, "times": 10},
        "is slow": {"kind": "slow", "seconds": 2.0, "match": {"path": "/batch/"}, "times": 10},
        "is locked": {"kind": "refuse", "status": 423, "match": {"path": "/batch/"}, "times": 5},
        "rotates its tokens": {"kind": "expire_token", "match": {"path": "/crm/"}, "times": 2},
        "is moved": {"kind": "refuse", "status": 477, "match": {}, "headers": {"Retry-After": "1"}, "times": 3},
        "answers garbage": {"kind": "garbage", "match": {"path": "/batch/"}, "times": 3},
    },
}


@dataclass(slots=True)
class Disturber:
    """Disturbs ``shop``, whose daemon talks to PostgreSQL and the CRMs through ``source`` and ``crms``."""

    shop: Stage
    server: EmbeddedPostgres
    source: Proxy
    crms: Mapping[str, Relay]
    random: random.Random
    seconds: float
    done: Counter[str] = field(default_factory=Counter)
    diary: list[str] = field(default_factory=list)
    _lasting: list[tuple[float, Callable[[], None]]] = field(default_factory=list)
    _began: float = 0.0

    def run(self) -> None:
        """Disturb until the time is over, and leave everything in working order, the daemon running."""
        self._began = now = time.monotonic()
        kill_at, next_at = now + self._draw(*KILL_EVERY), now
        try:
            while (now := time.monotonic()) < self._began + self.seconds:
                self._undo(now)
                self._revive()
                if now >= kill_at:
                    self._kill()
                    kill_at = time.monotonic() + self._draw(*KILL_EVERY)
                if now >= next_at:
                    self._disturb()
                    next_at = time.monotonic() + self._draw(*NEXT_AFTER)
                time.sleep(0.05)
        finally:
            self._undo(float("inf"))
        self.shop.wait(self._reads, "the daemon does not read the stream again")

    def _draw(self, least: float, most: float) -> float:
        pace = min(1.0, self.seconds / FULL_PACE)
        return self.random.uniform(max(SHORTEST, least * pace), max(4 * SHORTEST, most * pace))

    def _note(self, what: str) -> None:
        self.done[what] += 1
        self.diary.append(f"{time.monotonic() - self._began:8.2f} {what}")

    def _undo(self, now: float) -> None:
        due = [entry for entry in self._lasting if entry[0] <= now]
        self._lasting = [entry for entry in self._lasting if entry[0] > now]
        for _, undo in due:
            undo()

    def _last(self, undo: Callable[[], None]) -> None:
        self._lasting.append((time.monotonic() + self._draw(*LASTS), undo))

    def _kill(self) -> None:
        self._note("kill -9")
        self.shop.kill()
        self.shop.start()

    def _revive(self) -> None:
        """Start a daemon again that did not get as far as running; anything else that ends it is a failure."""
        assert self.shop.daemon is not None
        code = self.shop.daemon.poll()
        if code is None:
            return
        assert code == EXIT_UNREACHABLE, f"the daemon has ended with {code}\n{self.shop.log()}"
        self._note("the daemon is started again")
        self.shop.start()

    def _reads(self) -> bool:
        self._revive()
        snapshot = self.shop.snapshot()
        return snapshot is not None and snapshot.source.connected

    def _disturb(self) -> None:
        kinds = [self._restart, self._stall, self._cut, self._half_close, self._refuse, self._storm, self._storm]
        self.random.choice(kinds)()

    def _restart(self) -> None:
        """Restart the server; the line to it flows then.

        A fast stop waits for a walsender whose client is out of reach: as long as its time limit says, a minute.
        """
        self.source.flow()
        mode = self.random.choice(("fast", "immediate"))
        self._note(f"PostgreSQL is restarted ({mode})")
        self.server.restart("fast" if mode == "fast" else "immediate")

    def _line(self) -> tuple[str, Relay]:
        lines: list[tuple[str, Relay]] = [("PostgreSQL", self.source), *self.crms.items()]
        return self.random.choice(lines)

    def _stall(self) -> None:
        """Hold answers back, towards PostgreSQL both directions (towards a CRM see the module's note)."""
        name, line = self._line()
        if line is self.source and self.random.random() < 0.5:
            line.stall_both()
        else:
            line.stall()
        self._note(f"the line to {name} stalls")
        self._last(line.flow)

    def _cut(self) -> None:
        name, line = self._line()
        line.cut()
        self._note(f"the line to {name} is cut")

    def _half_close(self) -> None:
        name, line = self._line()
        line.half_close()
        self._note(f"the line to {name} is half closed")

    def _refuse(self) -> None:
        name, line = self._line()
        line.refuse()
        line.cut()
        self._note(f"{name} is not reached")
        self._last(line.accept)

    def _storm(self) -> None:
        crm = self.random.choice(sorted(STORMS))
        name = self.random.choice(sorted(STORMS[crm]))
        self.shop.fault(crm, STORMS[crm][name])
        self._note(f"{crm} {name}")
        self._last(lambda: self._calm(crm))

    def _calm(self, crm: str) -> None:
        self.shop.mend(crm)
        self.shop.fault(crm, *FAULTS[crm])


@contextlib.contextmanager
def lines(shop: Stage) -> Iterator[tuple[Proxy, Mapping[str, Relay]]]:
    """Put proxies between the daemon, not yet started, and everything that it talks to."""
    with contextlib.ExitStack() as stack:
        source = stack.enter_context(Proxy(shop.dsn))
        text = shop.config.read_text(encoding="utf-8").replace(f'"{shop.dsn}"', f'"{source.dsn}"')
        crms: dict[str, Relay] = {}
        for name, sandbox in shop.sandboxes.items():
            place = urlsplit(sandbox.url)
            crms[name] = stack.enter_context(Relay((place.hostname or "", place.port or 0)))
            text = text.replace(f'"{sandbox.url}"', f'"http://127.0.0.1:{crms[name].port}"')
        shop.config.write_text(text, encoding="utf-8")
        yield source, crms
