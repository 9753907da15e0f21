"""Up to where a CRM is known to be as the database was, and which rows are excepted from that. Pure.

Everything that was committed before ``as_of`` is settled. Rows that are parked do not hold it back: they are the
exceptions. Rows that wait do, those of paused mappings included. It says nothing of a mapping whose rows are still to
be copied, or were passed over while its table was not understood.
"""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass
from typing import Final

from cdcsync.model import Lsn, format_lsn
from cdcsync.status import LaneStatus, Snapshot, count

PARENT_MISSING: Final = "parent-missing"
"""The code of rows that are parked until the record that they refer to is there (``rejects``)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Proof:
    """What is known of one CRM.

    ``rejected`` and ``waiting`` (for a parent) rows are parked; ``paused`` rows are pending in paused mappings, of all
    ``pending`` ones. ``incomplete`` names the mappings of which more may be missing. ``unaccounted`` changes, if they
    are not 0, make all of it worthless.
    """

    crm: str
    as_of: Lsn
    time: dt.datetime | None = None
    rejected: int = 0
    waiting: int = 0
    paused: int = 0
    pending: int = 0
    incomplete: tuple[str, ...] = ()
    unaccounted: int = 0

    @property
    def excepted(self) -> int:
        """Rows that the claim leaves out."""
        return self.rejected + self.waiting

    def covers(self, lsn: int) -> bool:
        """Whether all that was committed before ``lsn`` is settled, parked rows aside."""
        return self.as_of >= lsn and not self.incomplete and not self.unaccounted

    @property
    def sentence(self) -> str:
        """The claim in words, without the CRM's name."""
        if self.unaccounted:
            return f"not known to be current: {count(abs(self.unaccounted), 'change')} unaccounted for"
        time = "" if self.time is None else f" ({self.time:%Y-%m-%d %H:%M:%S} UTC)"
        words = f"current as of LSN {format_lsn(self.as_of)}{time}"
        exceptions = [self.exceptions] if self.excepted else []
        exceptions += [f"what is still to be copied of {', '.join(self.incomplete)}"] if self.incomplete else []
        if exceptions:
            words += f", except {' and '.join(exceptions)}"
        return words + (f"; {count(self.paused, 'paused row')} hold it there" if self.paused else "")

    @property
    def exceptions(self) -> str:
        """The rows that are left out, in words."""
        parts = [f"{self.rejected:,} rejected"] if self.rejected else []
        parts += [f"{self.waiting:,} waiting for a parent"] if self.waiting else []
        return f"{count(self.excepted, 'row')} ({', '.join(parts)})"

    @property
    def obstacles(self) -> str:
        """What keeps the CRM from being current further on, in words."""
        parts = [f"{count(self.pending, 'row')} pending" + (f", {self.paused:,} paused" if self.paused else "")]
        if self.incomplete:
            parts.append(f"{', '.join(self.incomplete)} still to be copied")
        return "; ".join(parts)


def prove(snapshot: Snapshot, lane: LaneStatus) -> Proof:
    """Say what a snapshot proves of one CRM."""
    maps = [entry for entry in snapshot.maps if entry.lane == lane.name]
    waiting = sum(group.rows for entry in maps for group in entry.rejects if group.code == PARENT_MISSING)
    return Proof(
        crm=lane.name,
        as_of=lane.applied_lsn,
        time=lane.applied_time,
        rejected=lane.rejected - waiting,
        waiting=waiting,
        paused=sum(entry.pending for entry in maps if entry.paused is not None),
        pending=lane.pending,
        incomplete=tuple(entry.name for entry in maps if entry.incomplete),
        unaccounted=lane.missing,
    )
