"""The verdict on a history: each CRM is what the database maps to, and nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from tests.simulation.crm import NOTE, Held
from tests.simulation.database import Database, Row, is_bad
from tests.simulation.plot import OBJECTS, OWNED, PLAIN, Plot
from tests.simulation.side import Side

Place: TypeAlias = tuple[str, str]
"""A table's name and a key in it."""


class Wrong(AssertionError):  # noqa: N818 — not an error of the program's, but a finding about it
    """A history ended badly, or did on its way what must never be done."""


@dataclass(frozen=True, slots=True)
class Difference:
    """A record that is not what its row maps to."""

    side: int
    place: Place
    words: str


def differences(database: Database, side: Side) -> list[Difference]:
    """Say where a CRM is not what the database maps to."""
    found = []
    records = {(held.object, held.key): held for held in side.crm.records.values()}
    for table in side.plot.tables:
        name, rows = OBJECTS[table], database.tables[table]
        for key in {key for which, key in records if which == name} - rows.keys():
            held = records[name, key]
            found.append(Difference(side.number, (table, key), f"{name} {key} ({held.uid}) should not be there"))
        for key, row in rows.items():
            held_or_none = records.get((name, key))
            words = _difference(row, _wanted(records, side.plot, side.number, table, row), held_or_none, side)
            if words:
                found.append(Difference(side.number, (table, key), f"{name} {key} {words}"))
    return found


def _difference(row: Row, wanted: tuple[Mapping[str, Any], Mapping[str, str]], held: Held | None, side: Side) -> str:
    if held is None:
        return "is not there"
    fields = {name: value for name, value in held.fields.items() if name not in {NOTE, OWNED}}
    if (fields, held.links) != wanted:
        return f"is {fields} {held.links}, not {wanted}"
    if is_bad(row) and not side.crm.tolerant:
        return "should be parked"
    if side.plot.owned and row["phone"] is not None and held.fields.get(OWNED) is None:
        return "has an empty field that was to be filled"
    return ""


def _wanted(
    records: Mapping[Place, Held], plot: Plot, side: int, table: str, row: Row
) -> tuple[dict[str, Any], dict[str, str]]:
    fields: dict[str, Any] = {name: row[column] for name, column in PLAIN.items()}
    links: dict[str, str] = {}
    for one in plot.references:
        if one.table != table:
            continue
        key = row[one.column]
        there = None if key is None else records.get((OBJECTS[one.parent], key))
        crm_id = None if there is None else there.crm_id
        if not plot.terms[side].linked:
            fields[one.field] = crm_id
        elif crm_id is not None:
            links[one.link] = crm_id
    return fields, links
