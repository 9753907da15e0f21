"""How many deletes of a mapping may go: those within a sliding span, against the records that there are. Pure.

The span is counted in slices, so that what is kept is small however many deletes there are; a delete counts until the
whole of its slice is out of the span, so at most a sixtieth longer than it has to.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import NamedTuple

from cdcsync.config.units import Allowance, format_allowance
from cdcsync.model import START, Position

FLOOR = 100
"""Where the allowance is a share: so many may go whatever the share is, so that a small table can be worked on."""
SLICES = 60


class Slice(NamedTuple):
    """Deletes of one part of the span. ``end`` is its end (Unix time); ``records`` the most that were known in it."""

    end: float
    deletes: int
    records: int


@dataclass(frozen=True, slots=True)
class Spent:
    """The deletes of one mapping that were sent, or were about to be, by slice, oldest first."""

    slices: tuple[Slice, ...] = ()

    def within(self, allowance: Allowance, now: float) -> Spent:
        """Forget what is out of the span. A slice of the future, of a clock that was put back, stays."""
        return Spent(tuple(one for one in self.slices if one.end + allowance.seconds > now))

    @property
    def deletes(self) -> int:
        """The number of deletes."""
        return sum(one.deletes for one in self.slices)

    def records(self, now: int) -> int:
        """Return the most records that were known in the span; ``now`` are known now."""
        return max([now, *(one.records for one in self.slices)])

    def left(self, allowance: Allowance, records: int) -> int:
        """Say how many more may go, where ``records`` are known now."""
        return max(0, most(allowance, self.records(records)) - self.deletes)

    def add(self, allowance: Allowance, deletes: int, records: int, now: float) -> Spent:
        """Count deletes that are about to be sent."""
        width = allowance.seconds / SLICES
        end = (now // width + 1) * width
        last = self.slices[-1] if self.slices else None
        if last is not None and last.end >= end:
            merged = Slice(last.end, last.deletes + deletes, max(last.records, records))
            return Spent((*self.slices[:-1], merged))
        return Spent((*self.slices, Slice(end, deletes, records)))

    def to_text(self) -> str:
        """Print for the state file."""
        return json.dumps(self.slices)

    @classmethod
    def parse(cls, text: str | None) -> Spent:
        """Read what ``to_text`` printed; nothing was spent where there is no text."""
        return cls(tuple(Slice(*one) for one in json.loads(text))) if text else cls()


@dataclass(frozen=True, slots=True)
class Account:
    """What the state file knows of a mapping's deletes.

    ``records`` are known to be in the CRM and not deleted. ``granted``: a person let all go that were taken in up to
    here. ``swept``: so did one those that sweeps found, each of which has one of these positions.
    """

    spent: Spent = Spent()
    records: int = 0
    granted: Position = START
    swept: frozenset[Position] = frozenset()

    def may_go(self, last: Position) -> bool:
        """Whether a person has let a delete go whose last change has this position."""
        return last <= self.granted or last in self.swept


def most(allowance: Allowance, records: int) -> int:
    """Return how many deletes an allowance is of so many records."""
    return allowance.most if isinstance(allowance.most, int) else max(FLOOR, int(allowance.most * records))


def question(mapping: str, waiting: int, records: int, spent: Spent, allowance: Allowance) -> str:
    """Say why a mapping is paused whose deletes are too many."""
    gone = f"; {spent.deletes:,} went in that time" if spent.deletes else ""
    limit = f'max_deletes = "{format_allowance(allowance)}"'
    return (
        f"{waiting:,} deletes wait, of {records:,} records: more than {limit} lets go unasked "
        f"({most(allowance, records):,}{gone}); cdcsync resume {mapping} lets these go, and no later ones"
    )
