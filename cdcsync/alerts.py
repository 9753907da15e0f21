"""Which alerts are open, and what is to be told: from what is wrong now, one notice per opening and closing. Pure.

A condition that may pass by itself opens an alert when it has lasted for the configured patience; an alert closes when
its condition has been away for ``CALM_SECONDS``, so that one success among failures neither hides nor repeats it.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeAlias

from cdcsync.status import LaneStatus, Snapshot, SourceStatus, count, size

CALM_SECONDS = 10.0
LAG_RELIEF = 0.8
"""Of ``postgres.warn_lag``: down to here an alert about it stays open."""

Sink: TypeAlias = Literal["command", "webhook"]


class Name(NamedTuple):
    """What identifies an alert: its kind, and the CRM or mapping that it is about (empty: the source)."""

    kind: str
    subject: str = ""


class Condition(NamedTuple):
    """Something that is wrong now. ``passing``: it may mend itself soon, so it has to last before it is told."""

    name: Name
    text: str
    passing: bool = False


@dataclass(frozen=True, slots=True)
class Alert:
    """A condition that was seen: ``since`` and ``seen`` (the last time) in Unix time; ``opened`` once it was told."""

    name: Name
    text: str
    since: float
    seen: float
    opened: bool = False


@dataclass(frozen=True, slots=True)
class Notice:
    """An opening or a closing that is to be told, with the ways on which it has not been yet."""

    id: str
    event: Literal["opened", "closed"]
    name: Name
    text: str
    since: float
    at: float
    sinks: tuple[Sink, ...]


@dataclass(frozen=True, slots=True)
class Watch:
    """All that has to be remembered, also over a restart."""

    alerts: Mapping[Name, Alert] = dataclasses.field(default_factory=dict)
    due: tuple[Notice, ...] = ()
    told: int = 0
    """Notices so far; the number of each is its id."""

    def told_on(self, notice: Notice, sink: Sink) -> Watch:
        """Take note that a notice was delivered on one way, or given up there."""
        due = []
        for one in self.due:
            left = tuple(other for other in one.sinks if one.id != notice.id or other != sink)
            if left:
                due.append(dataclasses.replace(one, sinks=left))
        return dataclasses.replace(self, due=tuple(due))

    def worth_a_write(self, before: Watch) -> bool:
        """Whether something would be missed after a crash; what changes with every look is not worth a write."""
        opened = {name: alert.opened for name, alert in self.alerts.items()}
        return (self.due, self.told, opened) != (
            before.due,
            before.told,
            {name: alert.opened for name, alert in before.alerts.items()},
        )

    def to_text(self) -> str:
        """Print for the state file."""
        alerts = [(*one.name, one.text, one.since, one.opened) for one in self.alerts.values()]
        due = [dataclasses.asdict(notice) for notice in self.due]
        return json.dumps({"alerts": alerts, "due": due, "told": self.told})

    @classmethod
    def parse(cls, text: str | None, now: float) -> Watch:
        """Read what ``to_text`` printed; ``now`` counts as the time when the conditions were seen last."""
        if not text:
            return cls()
        document = json.loads(text)
        alerts = [
            Alert(Name(kind, subject), words, since, now, opened)
            for kind, subject, words, since, opened in document["alerts"]
        ]
        due = [{**one, "name": Name(*one["name"]), "sinks": tuple(one["sinks"])} for one in document["due"]]
        return cls({one.name: one for one in alerts}, tuple(Notice(**one) for one in due), document["told"])


def step(
    before: Watch, conditions: Iterable[Condition], now: float, *, patience: float, sinks: tuple[Sink, ...], young: bool
) -> Watch:
    """Compare what is wrong now with what is known; returns what is known then, new notices included.

    ``young``: the daemon has just started. What it has not seen yet may still be so, and what may pass by itself is
    often so at a start: neither closes, or opens, anything.
    """
    seen = {condition.name: condition for condition in conditions}
    alerts: dict[Name, Alert] = {}
    due, told = list(before.due), before.told

    def tell(event: Literal["opened", "closed"], alert: Alert) -> None:
        nonlocal told
        told += 1
        due.append(Notice(str(told), event, alert.name, alert.text, alert.since, now, sinks))

    for name in (*before.alerts, *(name for name in seen if name not in before.alerts)):
        alert, condition = before.alerts.get(name), seen.get(name)
        if condition is not None:
            alert = Alert(name, condition.text, alert.since if alert else now, now, opened=bool(alert and alert.opened))
            lasts = now - alert.since >= patience and not young
            if not alert.opened and (lasts or not condition.passing):
                alert = dataclasses.replace(alert, opened=True)
                tell("opened", alert)
        elif alert is not None and not young and now - alert.seen >= CALM_SECONDS:
            if alert.opened:
                tell("closed", alert)
            continue
        if alert is not None:
            alerts[name] = alert
    return Watch(alerts, tuple(due), told)


def conditions(snapshot: Snapshot, known: Mapping[Name, Alert], rejects: int | None) -> Iterator[Condition]:
    """Say what is wrong; ``known`` are the alerts so far, ``rejects`` the parked rows of a CRM that are too many."""
    yield from _of_source(snapshot.source, known)
    for lane in snapshot.lanes:
        yield from _of_lane(lane, rejects)
    for entry in snapshot.maps:
        if entry.pause is not None and entry.pause.by != "person":
            yield Condition(Name("mapping-paused", entry.name), f"{entry.name} is paused: {entry.pause.reason}")


def _of_source(source: SourceStatus, known: Mapping[Name, Alert]) -> Iterator[Condition]:
    if not source.connected:
        why = f": {source.last_error}" if source.last_error else ""
        yield Condition(Name("postgres-unreachable"), f"PostgreSQL is not connected{why}", passing=True)
    if source.wal_status == "lost":
        yield Condition(Name("slot-lost"), f"the slot {source.slot} is lost: cdcsync slot show says why")
    retained, most = source.retained_bytes, source.warn_bytes
    name = Name("slot-lag")
    if retained is not None and most is not None and retained > most * (LAG_RELIEF if name in known else 1.0):
        text = f"PostgreSQL keeps {size(retained)} of WAL for the slot {source.slot}, more than warn_lag ({size(most)})"
        yield Condition(name, text, passing=True)
    if source.reading_paused:
        text = "reading is paused: rows that wait fill max_memory or max_journal"
        yield Condition(Name("reading-paused"), text, passing=True)


def _of_lane(lane: LaneStatus, rejects: int | None) -> Iterator[Condition]:
    waiting = f", {count(lane.pending, 'row')} waiting" if lane.pending else ""
    if lane.last_error_code == "crm-credentials":
        yield Condition(Name("crm-refused", lane.name), f"{lane.name} refuses the login: {lane.last_error}{waiting}")
    elif lane.failing:
        words = lane.last_error or "some of its mappings are tried again and again"
        yield Condition(Name("crm-failing", lane.name), f"{lane.name} fails: {words}{waiting}", passing=True)
    if lane.held_back is not None:
        yield Condition(Name("crm-quota", lane.name), f"{lane.name}: {lane.held_back}{waiting}", passing=True)
    if not lane.balanced:
        text = f"the books of {lane.name} do not balance: {count(abs(lane.missing), 'change')} unaccounted for"
        yield Condition(Name("books", lane.name), text)
    if rejects is not None and lane.rejected >= rejects:
        yield Condition(Name("rejects", lane.name), f"{lane.name} has refused {count(lane.rejected, 'row')}")
