"""What no single table of the config can know: whether the mappings and the CRMs fit together. Pure."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

from cdcsync.config.mapping import MapConfig, RefConfig


class Mistake(NamedTuple):
    """One thing that is wrong: the path of the key in the file, and a sentence."""

    path: tuple[str | int, ...]
    message: str


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`` (did you mean x?)``, or nothing if no known word is close."""
    by_folded = {one.lower(): one for one in known}
    close = difflib.get_close_matches(word.lower(), by_folded, n=1)
    return f" (did you mean {by_folded[close[0]]}?)" if close else ""


def crosscheck(maps: Mapping[int, MapConfig], kinds: Mapping[str, str | None], *, complete: bool) -> Iterator[Mistake]:
    """Check the mappings (by their place in the file) against each other and against the CRMs (name → kind).

    With ``complete`` false some mappings of the file could not be read, and a missing target is not a mistake yet.
    """
    for place, one in maps.items():
        path = ("map", place)
        yield from unknown_crm(place, one.crm, kinds)
        yield from _features(path, one, kinds.get(one.crm))
        yield from _targets(path, one, maps, complete=complete)
    yield from _repeated(maps)
    yield from _filters(maps)


def unknown_crm(place: int, crm: str, kinds: Mapping[str, str | None]) -> Iterator[Mistake]:
    """Check that the CRM a mapping names is there; a mapping that could not be read can be asked for that much."""
    if crm not in kinds:
        yield Mistake(("map", place, "to"), f"there is no [crm.{crm}]{did_you_mean(crm, kinds)}")


def _features(path: tuple[str | int, ...], one: MapConfig, kind: str | None) -> Iterator[Mistake]:
    """Find what this kind of CRM does not have."""
    key = one.key_field.lower()
    for name, field in one.fields.items():
        if name.lower() == key:
            yield Mistake((*path, "fields", name), "the key field is set by key already: drop it here")
        if field.ref and kind == "hubspot":
            yield Mistake((*path, "fields", name, "ref"), "HubSpot has no references by key: use associate")
    if one.associate and kind == "salesforce":
        yield Mistake((*path, "associate"), "Salesforce has no associations: use a field with ref")
    if one.given_on_delete == "archive" and kind == "salesforce":
        yield Mistake((*path, "on_delete"), 'Salesforce does not archive: use "delete" or "ignore"')


def _targets(
    path: tuple[str | int, ...], one: MapConfig, maps: Mapping[int, MapConfig], *, complete: bool
) -> Iterator[Mistake]:
    for name, field in one.fields.items():
        if field.ref:
            yield from _ref_target((*path, "fields", name, "ref"), one, field.ref, maps, complete=complete)
    for number, link in enumerate(one.associate):
        place = (*path, "associate", number, "to")
        if link.to_crm != one.crm:
            yield Mistake(place, f"{link.to} is in another CRM than the mapping's own, {one.crm}")
            continue
        found = [other for other in maps.values() if (other.crm, other.object) == (link.to_crm, link.to_object)]
        if not found and complete:
            yield Mistake(place, f"no mapping writes to {link.to}{did_you_mean(link.to, _targets_of(maps))}")
        if len(found) > 1:
            yield Mistake(
                place, f"several mappings write to {link.to}, by different keys: it is not clear which is meant"
            )


def _ref_target(
    path: tuple[str | int, ...], one: MapConfig, ref: RefConfig, maps: Mapping[int, MapConfig], *, complete: bool
) -> Iterator[Mistake]:
    if ref.crm != one.crm:
        yield Mistake(path, f"{ref} is in another CRM than the mapping's own, {one.crm}")
        return
    keys = [other.key_field for other in maps.values() if (other.crm, other.object) == (ref.crm, ref.object)]
    if ref.key_field in keys or not complete:
        return
    if keys:
        message = f"the key field of {ref.crm}.{ref.object} is {' or '.join(keys)}, not {ref.key_field}"
    else:
        target = f"{ref.crm}.{ref.object}"
        message = f"no mapping writes to {target}{did_you_mean(target, _targets_of(maps))}"
    yield Mistake(path, message)


def _targets_of(maps: Mapping[int, MapConfig]) -> list[str]:
    return [one.to for one in maps.values()]


def _repeated(maps: Mapping[int, MapConfig]) -> Iterator[Mistake]:
    names: dict[str, int] = {}
    targets: dict[tuple[str, str], int] = {}
    for place, one in maps.items():
        target = (one.to.lower(), one.key_field.lower())
        first = targets.setdefault(target, place)
        if first != place:
            yield Mistake(
                ("map", place, "to"),
                f"the mapping {maps[first].name} writes to {one.to} by {one.key_field} already: "
                "two would undo each other's work",
            )
        elif names.setdefault(one.name, place) != place:
            yield Mistake(("map", place, "name"), f"another mapping is called {one.name} already")


def _filters(maps: Mapping[int, MapConfig]) -> Iterator[Mistake]:
    """Find tables with several row filters: a publication has one per table."""
    first: dict[str, int] = {}
    for place, one in maps.items():
        other = maps[first.setdefault(one.table, place)]
        if one.where != other.where:
            yield Mistake(
                ("map", place, "where"),
                f"the mapping {other.name} reads {one.table} with another where: mappings of one table share it",
            )
