"""The plot of a history: everything that is drawn from its seed before it begins."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias

from cdcsync.apply.base import Limits
from cdcsync.config import MapConfig
from cdcsync.model import Op
from tests.simulation.database import COMPANIES, DEALS, PEOPLE, Habits

ACCOUNT, CONTACT, DEAL = "Account", "Contact", "Deal"
OBJECTS = {COMPANIES: ACCOUNT, PEOPLE: CONTACT, DEALS: DEAL}
TABLES = {name: table for table, name in OBJECTS.items()}
KEY = "Key"
PLAIN = {"Name": "name", "Big": "big", "Uid": "uid", "Version": "version"}
"""What every record has: CRM field = column."""
OWNED = "Phone"
"""The field that is the CRM's own once it is filled."""

Priority: TypeAlias = Literal["high", "normal", "low"]


@dataclass(frozen=True, slots=True)
class Reference:
    """How a table refers to another one: by a field of this name, or with a link of this type."""

    table: str
    column: str
    field: str
    link: str
    parent: str


WORKS_AT = Reference(PEOPLE, "company", "Account", "works_at", COMPANIES)
REPORTS_TO = Reference(PEOPLE, "manager", "Manager", "reports_to", PEOPLE)
OWNED_BY = Reference(COMPANIES, "owner", "Owner", "owned_by", PEOPLE)
DEAL_OF = Reference(DEALS, "contact", "Contact", "deal_of", PEOPLE)
FIELDS = frozenset(one.field for one in (WORKS_AT, REPORTS_TO, OWNED_BY, DEAL_OF))


@dataclass(frozen=True, slots=True)
class Weather:
    """What may happen to a request, each with its probability; ``slow`` is the longest way there or back (seconds)."""

    unreachable: float = 0.0
    refused: float = 0.0
    lost: float = 0.0
    partly: float = 0.0
    locked: float = 0.0
    fatal: float = 0.0
    unsaid: float = 0.0
    """An answer that leaves out the record's id."""
    slow: float = 0.2

    @property
    def fair(self) -> Weather:
        """The same network on a quiet day."""
        return Weather(slow=self.slow)


@dataclass(frozen=True, slots=True)
class Terms:
    """One CRM: its network, its paths, its quotas."""

    weather: Weather
    linked: bool
    """Whether references are links of their own, and not fields."""
    limits: Limits
    whole_batches: bool
    """Whether a value that it does not take is refused with the whole batch, without a word on which it was."""
    quota: int
    """Requests in ten seconds."""
    daily: int | None
    """Our share of the day: calls in 24 hours."""
    outage: float
    """Seconds at the beginning of the last life in which it cannot be reached."""


@dataclass(frozen=True, slots=True)
class People:
    """What people do beside the daemon: how often (a second, on average), and what."""

    often: float = 0.0
    pauses: float = 0.0
    retries: float = 0.0
    discards: float = 0.0
    edits: float = 0.0
    removals: float = 0.0
    jumps: float = 0.0
    """Of the wall clock."""


@dataclass(frozen=True, slots=True)
class Plot:
    """What a history is made of."""

    seed: int
    habits: Habits
    terms: tuple[Terms, ...]
    references: tuple[Reference, ...]
    owned: bool
    """Whether there is a field that is the CRM's own once filled."""
    backfill: bool
    priorities: tuple[Priority, Priority, Priority]
    """Of the mappings of companies, people and deals."""
    max_wait: float
    max_memory: int
    seconds: float
    pace: float
    """Transactions a second."""
    kills: float
    """Seconds that the daemon lives, on average."""
    graceful: float
    """How many of its lives end with a stop, rather than a kill."""
    slot_losses: float
    """How many of the stops are followed by the loss of the slot."""
    disk: float
    """Seconds that the state file's thread takes at most."""
    people: People
    judges: tuple[int, int]
    """So many verdicts say that a mapping is wrong, of so many that are remembered."""
    patient: bool
    """Whether at the end the CRM changes its mind, and the ladder has to take up what it refused."""

    @property
    def tables(self) -> list[str]:
        """The tables that are mapped, parents first."""
        return [COMPANIES, PEOPLE, *([DEALS] if DEAL_OF in self.references else [])]

    @property
    def calm(self) -> bool:
        """Whether nothing can go wrong: then nothing may be sent that changes nothing."""
        return (
            all(terms.weather == terms.weather.fair and not terms.outage for terms in self.terms)
            and self.kills > self.seconds
            and not self.people.often
        )

    def names(self, side: int) -> dict[str, str]:
        """Return the names of a CRM's mappings by table."""
        return {table: f"{table}{side or ''}" for table in self.tables}

    def mappings(self, side: int) -> list[MapConfig]:
        """Return the config's mappings to one CRM, parents first."""
        crm, linked = f"crm{side}", self.terms[side].linked
        configs = []
        for (table, name), priority in zip(self.names(side).items(), self.priorities, strict=False):
            fields: dict[str, Any] = dict(PLAIN)
            links = []
            if self.owned:
                fields[OWNED] = {"column": "phone", "only_if_empty": True}
            for one in (one for one in self.references if one.table == table):
                parent = f"{crm}.{OBJECTS[one.parent]}"
                if linked:
                    links.append({"to": parent, "column": one.column, "type": one.link})
                else:
                    fields[one.field] = {"column": one.column, "ref": f"{parent}.{KEY}"}
            given: dict[str, Any] = {"name": name, "table": table, "to": f"{crm}.{OBJECTS[table]}", "key": {KEY: "id"}}
            given |= {"fields": fields, "associate": links, "backfill": self.backfill, "priority": priority}
            configs.append(MapConfig.model_validate(given))
        return configs


def draw(seed: int) -> Plot:
    """Draw the plot of a seed."""
    rng = random.Random(seed)
    stormy = rng.choice((0.0, 0.5, 1.0, 1.0, 3.0))
    seconds = rng.choice((4.0, 10.0, 20.0))
    kills = rng.choice((1e9, 3.0, 10.0))
    backfill = rng.random() < 0.4
    busy = rng.random() < 0.015
    terms = [_busy(_terms(rng, 0.0)) if busy else _terms(rng, stormy)]
    if rng.random() < 0.15:
        terms.append(_terms(rng, rng.choice((0.0, 1.0, 3.0))))
    references = [WORKS_AT]
    references += [one for one in (REPORTS_TO, OWNED_BY, DEAL_OF) if rng.random() < 0.35]
    daily = any(one.daily for one in terms)
    people = _people(rng, daily=daily)
    return Plot(
        seed=seed,
        habits=_habits(rng, references),
        terms=tuple(terms),
        references=tuple(references),
        owned=rng.random() < 0.3,
        backfill=backfill,
        priorities=(_priority(rng), _priority(rng), _priority(rng)),
        max_wait=rng.choice((0.0, 0.1, 1.0)),
        # With more rows than memory holds, in a circle, some may wait for each other until the load ends.
        max_memory=1 << 30 if busy else rng.choice((1 << 30, 1 << 30, 40_000)),
        seconds=90.0 if busy else seconds,
        pace=4.0 if busy else rng.choice((0.5, 2.0, 4.0)),
        kills=1e9 if busy else kills,
        graceful=rng.choice((0.0, 0.5)),
        slot_losses=rng.choice((0.0, 0.0, 0.7)) if backfill else 0.0,
        disk=rng.choice((0.01, 0.01, 0.3)),
        people=people,
        judges=rng.choice(((100, 200), (100, 200), (8, 16))),
        patient=rng.random() < 0.3 and not daily,
    )


def _priority(rng: random.Random) -> Priority:
    return rng.choice(("normal", "normal", "high", "low"))


def _habits(rng: random.Random, references: list[Reference]) -> Habits:
    return Habits(
        identity=rng.choice("fd"),
        keys=rng.choice((3, 6, 6, 15)),
        bad=1.0 if rng.random() < 0.04 else rng.choice((0.0, 0.05, 0.2)),
        cascade=rng.random() < 0.5,
        insert=rng.choice((1, 3)),
        touch=rng.choice((0, 1)),
        rename=rng.choice((0, 1, 3)),
        delete=rng.choice((0, 1, 2)),
        replace=rng.choice((0, 0.5)),
        swap=rng.choice((0, 0, 0.5)),
        hire=rng.choice((1, 2)) if REPORTS_TO in references else 0,
        own=rng.choice((1, 2)) if OWNED_BY in references else 0,
        truncate=0.2 if rng.random() < 0.08 else 0,
        deals=DEAL_OF in references,
    )


def _terms(rng: random.Random, stormy: float) -> Terms:
    def chance(most: float) -> float:
        return rng.choice((0.0, 0.3, 1.0)) * most * stormy

    linked = rng.random() < 0.4
    weather = Weather(
        unreachable=chance(0.05),
        refused=chance(0.03),
        lost=chance(0.1),
        partly=chance(0.05),
        locked=chance(0.05),
        fatal=chance(0.01),
        unsaid=chance(0.03),
        slow=rng.choice((0.02, 0.3, 2.0)),
    )
    limits = Limits(
        dict.fromkeys(Op, rng.choice((1, 3, 5))),
        rng.choice((1, 2, 4)),
        bulk_from=rng.choice((None, 4)) if not linked else None,  # associations do not go by bulk
        bulk_records=8,
    )
    return Terms(
        weather=weather,
        linked=linked,
        limits=limits,
        whole_batches=rng.random() < 0.2,
        quota=rng.choice((30, 100, 1000)),
        daily=rng.choice((20, 50)) if rng.random() < 0.1 else None,
        outage=rng.choice((600.0, 7_200.0)) if rng.random() < 0.1 else 0.0,
    )


def _busy(terms: Terms) -> Terms:
    """Return terms under which there is always more to send than can go."""
    limits = replace(terms.limits, batch=dict.fromkeys(Op, 1), bulk_from=None)
    return replace(terms, limits=limits, quota=30, daily=None, outage=0.0)


def _people(rng: random.Random, *, daily: bool) -> People:
    if rng.random() < 0.6:
        return People()
    jumps = 0 if daily else rng.choice((0, 0, 1))  # a budget that is kept over a restart goes by the wall clock
    return People(
        often=rng.choice((0.2, 1.0)),
        pauses=rng.choice((0, 1)),
        retries=rng.choice((0, 1)),
        discards=0 if jumps else rng.choice((0, 1)),  # a request is for what was refused before it, by the wall clock
        edits=rng.choice((0, 1)),
        removals=rng.choice((0, 1)),
        jumps=jumps,
    )
