"""What the sandbox remembers of writes and requests, so that tests can ask if anything was doubled or put back.

* **double create**: a record is created for a key that a live record still holds;
* **step back**: a write lowers a record's version, or lands a version below the highest ever seen for its key;
* **no-op write**: a write that changes no stored value.

Counters are exact; lists of details keep the last 100, the request ledger the last 20,000 entries.
Writes by a person (the admin API) or by the CRM itself (cascades) are not counted, but their keys are known.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from decimal import Decimal
from typing import Any, Literal

DETAILS = 100
LEDGER = 20_000

Action = Literal["create", "update", "delete"]


@dataclass(frozen=True, slots=True)
class Write:
    """One effect on one record. Keys are {external-key field: value}, without empty values; None where there is none.

    ``changed`` names the fields whose stored value changed. ``version_*`` is None where the record has no version.
    """

    time: float
    action: Action
    object: str
    id: str
    key_before: Mapping[str, str]
    key_after: Mapping[str, str]
    version_before: Decimal | None = None
    version_after: Decimal | None = None
    changed: tuple[str, ...] = ()
    by_person: bool = False


@dataclass(slots=True)
class Entry:
    """One request in the ledger. ``duration`` is in seconds, None while unanswered; ``status`` 0: never answered."""

    n: int
    time: float
    method: str
    path: str
    status: int | None = None
    records: int = 0
    fault: str | None = None
    duration: float | None = None


@dataclass(slots=True)
class _Key:
    """What is known about one external key: who holds it now, and the highest version that was ever stored for it."""

    holders: set[str] = field(default_factory=set)
    highest: Decimal | None = None


def _detail(write: Write, **more: object) -> dict[str, Any]:
    return {
        "time": write.time,
        "action": write.action,
        "object": write.object,
        "id": write.id,
        "key": dict(write.key_after or write.key_before),
        **more,
    }


class Books:
    """The books of one CRM."""

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """Start empty books."""
        self.counts: Counter[str] = Counter()
        self.statuses: Counter[int] = Counter()
        self.writes_per_record: Counter[tuple[str, str]] = Counter()
        self.double_creates: deque[dict[str, Any]] = deque(maxlen=DETAILS)
        self.steps_back: deque[dict[str, Any]] = deque(maxlen=DETAILS)
        self.noop_writes: deque[dict[str, Any]] = deque(maxlen=DETAILS)
        self._keys: dict[tuple[str, str, str], _Key] = {}
        self._ledger: deque[Entry] = deque(maxlen=LEDGER)
        self._requests = 0

    def record(self, write: Write) -> None:
        """Enter one effect on one record."""
        if not write.by_person:
            self._count(write)
            self._check_version(write)
        if write.action == "create" and not write.by_person:
            self._check_double(write)
        self._remember(write)

    def record_all(self, writes: Iterable[Write]) -> None:
        """Enter the effects of one transaction, in order."""
        for write in writes:
            self.record(write)

    def _count(self, write: Write) -> None:
        self.counts[f"{write.action}s"] += 1
        self.writes_per_record[write.object, write.id] += 1
        if write.action == "update" and not write.changed:
            self.counts["noop_writes"] += 1
            self.noop_writes.append(_detail(write, version=write.version_after))
        if write.action == "create" and not write.key_after:
            self.counts["keyless_creates"] += 1

    def _check_double(self, write: Write) -> None:
        for name, value in write.key_after.items():
            known = self._keys.get((write.object, name, value))
            others = sorted(known.holders - {write.id}) if known else []
            if others:
                self.counts["double_creates"] += 1
                self.double_creates.append(_detail(write, field=name, others=others[:10]))
                return

    def _check_version(self, write: Write) -> None:
        if write.action == "delete" or write.version_after is None:
            return
        reached = [write.version_before] if write.version_before is not None else []
        for name, value in write.key_after.items():
            known = self._keys.get((write.object, name, value))
            if known and known.highest is not None:
                reached.append(known.highest)
        highest = max(reached, default=write.version_after)
        if write.version_after < highest:
            self.counts["steps_back"] += 1
            self.steps_back.append(_detail(write, version=write.version_after, highest=highest))

    def _remember(self, write: Write) -> None:
        for name, value in write.key_before.items():
            if write.action == "delete" or name in write.key_after:  # an emptied key still belongs to its record
                self._key(write.object, name, value).holders.discard(write.id)
        for name, value in write.key_after.items():
            key = self._key(write.object, name, value)
            key.holders.add(write.id)
            if write.version_after is not None:
                key.highest = max(key.highest or write.version_after, write.version_after)

    def _key(self, object_name: str, name: str, value: str) -> _Key:
        return self._keys.setdefault((object_name, name, value), _Key())

    def request(self, time: float, method: str, path: str) -> Entry:
        """Open a ledger entry; the server fills it in when the answer leaves."""
        self._requests += 1
        entry = Entry(self._requests, time, method, path)
        self._ledger.append(entry)
        return entry

    def answered(self, entry: Entry, *, status: int, limited: bool, time: float) -> None:
        """Close a ledger entry. ``status`` 0 means that the connection was cut without an answer."""
        entry.status = status
        entry.duration = time - entry.time
        self.statuses[status] += 1
        if limited:
            self.counts["refused_429"] += 1

    def requests(self, since: int = 0) -> list[dict[str, Any]]:
        """List the ledger's entries with a number above ``since``."""
        return [asdict(entry) for entry in self._ledger if entry.n > since]

    def summary(self) -> dict[str, Any]:
        """Everything at a glance, as ``GET /books`` answers it."""
        counted = ("creates", "updates", "deletes", "noop_writes", "double_creates", "keyless_creates", "steps_back")
        most = self.writes_per_record.most_common(20)
        return {
            **{name: self.counts[name] for name in (*counted, "refused_429")},
            "requests": self._requests,
            "statuses": {str(status): count for status, count in sorted(self.statuses.items())},
            "writes": self.counts["creates"] + self.counts["updates"] + self.counts["deletes"],
            "records_written": len(self.writes_per_record),
            "most_written": [{"object": name, "id": key, "writes": count} for (name, key), count in most],
            "details": {
                "double_creates": list(self.double_creates),
                "steps_back": list(self.steps_back),
                "noop_writes": list(self.noop_writes),
            },
        }
