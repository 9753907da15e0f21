"""What the state file holds about pauses: of mappings, of whole CRMs, and what a person let go by lifting one.

Commands write here beside a running daemon, which follows with its next tick.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import NamedTuple

from cdcsync.entries import Pause
from cdcsync.state_file import StateFile

BY_HAND = "paused by hand"
"""The reason where a person gave none."""

_BY, _CRM, _GRANTED = "paused_by:", "paused_crm:", "granted:"


class Standing(NamedTuple):
    """All pauses in force, by the name of the mapping or of the CRM."""

    maps: Mapping[str, Pause] = {}
    crms: Mapping[str, Pause] = {}

    def of(self, mapping: str, crm: str) -> str | None:
        """Say why a mapping is paused, be it with its whole CRM; None if it is not."""
        if mapping in self.maps:
            return self.maps[mapping].reason
        return f"{crm} is paused: {self.crms[crm].reason}" if crm in self.crms else None


class StoredPauses:
    """The pauses in an open state file."""

    def __init__(self, file: StateFile) -> None:
        self._db = file

    def standing(self) -> Standing:
        """Return the pauses in force."""
        by = {name: json.loads(text) for name, text in self._with_prefix(_BY)}
        maps = {
            name: Pause(reason, since, *by.get(name, ("person" if reason == BY_HAND else "daemon", "")))
            for name, reason, since in self._db.execute("SELECT mapping, reason, since FROM pause").fetchall()
        }
        crms = {name: Pause(**json.loads(text)) for name, text in self._with_prefix(_CRM)}
        return Standing(maps, crms)

    def pause(self, mapping: str, pause: Pause) -> bool:
        """Pause a mapping; returns False if it is already, which stays as it is."""
        with self._db.transaction():
            if self._db.execute("SELECT 1 FROM pause WHERE mapping = ?", (mapping,)).fetchone() is not None:
                return False
            self.write(mapping, pause)
        return True

    def write(self, mapping: str, pause: Pause) -> None:
        """Pause a mapping, within a transaction; an older pause gives way."""
        self._db.execute("INSERT OR REPLACE INTO pause VALUES (?, ?, ?)", (mapping, pause.reason, pause.since))
        self._db.set_meta(_BY + mapping, json.dumps([pause.by, pause.who]))

    def retell(self, mapping: str, reason: str) -> bool:
        """Say anew why a mapping is paused; returns False if it is not any more."""
        with self._db.transaction():
            statement = "UPDATE pause SET reason = ? WHERE mapping = ?"
            return self._db.execute(statement, (reason, mapping)).rowcount > 0

    def resume(self, mapping: str) -> bool:
        """Lift a mapping's pause; returns whether there was one.

        Where deletes were withheld, those that the file knows of may go then, and no later ones; where a copy asked at
        its end, all that it found may go.
        """
        pause = self.standing().maps.get(mapping)
        with self._db.transaction():
            if pause is not None and pause.by == "deletes":
                self._db.set_meta(_GRANTED + mapping, self._db.meta("position") or "[0, 0]")
            if pause is not None and pause.by == "sweep":
                self._db.execute(
                    "UPDATE copy SET asker = 'person' WHERE mapping = ? AND read AND sweep AND finished IS NULL",
                    (mapping,),
                )
            self._forget(_BY + mapping)
            return self._db.execute("DELETE FROM pause WHERE mapping = ?", (mapping,)).rowcount > 0

    def pause_crm(self, crm: str, pause: Pause) -> bool:
        """Pause a whole CRM; returns False if it is already, which stays as it is."""
        with self._db.transaction():
            if self._db.meta(_CRM + crm) is not None:
                return False
            self._db.set_meta(_CRM + crm, json.dumps(dataclasses.asdict(pause)))
        return True

    def resume_crm(self, crm: str) -> bool:
        """Lift a CRM's pause; returns whether there was one. Mappings that are paused themselves stay so."""
        with self._db.transaction():
            was = self._db.meta(_CRM + crm) is not None
            self._forget(_CRM + crm)
        return was

    def _forget(self, key: str) -> None:
        self._db.execute("DELETE FROM meta WHERE key = ?", (key,))

    def _with_prefix(self, prefix: str) -> list[tuple[str, str]]:
        rows = self._db.execute(
            "SELECT substr(key, ?), value FROM meta WHERE substr(key, 1, ?) = ?", (len(prefix) + 1, len(prefix), prefix)
        )
        return rows.fetchall()
