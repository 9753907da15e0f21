"""What a lane knows and the state file does not yet: ledger, rejects, links and counters since the last tick. Pure.

Reading goes through the books first and to the state file second; a tick takes everything, and only when it is on
disk do the books forget it.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from cdcsync.entries import Known, Reject, Tick


@dataclass(slots=True)
class Books:
    """One lane's unwritten knowledge; None as a value means that the entry is gone."""

    lane: str
    counters: Counter[str] = field(default_factory=Counter)
    ledger: dict[tuple[str, str], Known | None] = field(default_factory=dict)
    rejects: dict[tuple[str, str], Reject | None] = field(default_factory=dict)
    sent_links: dict[tuple[str, str], dict[str, set[str]]] = field(default_factory=dict)
    """(mapping, key) → slot → CRM ids that a request may have linked and that no answer has settled."""
    linked: set[tuple[str, str]] = field(default_factory=set)

    @property
    def dirty(self) -> bool:
        """Whether a tick has anything to write."""
        return bool(self.ledger or self.rejects or self.linked)

    def link_sent(self, mapping: str, key: str, slot: str, crm_id: str) -> bool:
        """Note that a link is about to be made; returns False if that was noted already."""
        ids = self.sent_links.setdefault((mapping, key), {}).setdefault(slot, set())
        new = crm_id not in ids
        ids.add(crm_id)
        self.linked.discard((mapping, key))  # else the next tick would drop this note with those that were settled
        return new

    def links_settled(self, mapping: str, key: str) -> None:
        """Forget the links under way: the ledger knows them now."""
        if self.sent_links.pop((mapping, key), None) is not None:
            self.linked.add((mapping, key))

    def collect(self, tick: Tick) -> None:
        """Add everything to a tick."""
        tick.ledger.extend((mapping, key, known) for (mapping, key), known in self.ledger.items())
        tick.rejects.extend((mapping, key, reject) for (mapping, key), reject in self.rejects.items())
        tick.linked.extend(self.linked)
        tick.counters.extend((self.lane, name, value) for name, value in self.counters.items())

    def written(self, tick: Tick) -> None:
        """Forget what a tick has put on disk, unless it changed meanwhile."""
        for mapping, key, known in tick.ledger:
            if (mapping, key) in self.ledger and self.ledger[mapping, key] is known:
                del self.ledger[mapping, key]
        for mapping, key, reject in tick.rejects:
            if (mapping, key) in self.rejects and self.rejects[mapping, key] is reject:
                del self.rejects[mapping, key]
        self.linked.difference_update(tick.linked)
