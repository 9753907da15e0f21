"""Parents before children. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from cdcsync.config.mapping import MapConfig
from cdcsync.errors import ConfigError


def order(maps: Sequence[MapConfig]) -> list[MapConfig]:
    """Sort mappings so that each comes after those it refers to; otherwise they keep their places.

    Raises ConfigError for a cycle (a loaded config has none).
    """
    if cycle := find_cycle(maps):
        raise ConfigError(f"mappings refer to each other in a circle: {cycle}", hint="drop one of the references")
    done: dict[int, MapConfig] = {}

    def visit(index: int) -> None:
        if index in done:
            return
        for parent in _parents(maps, maps[index]):
            visit(parent)
        done[index] = maps[index]

    for index in range(len(maps)):
        visit(index)
    return list(done.values())


def find_cycle(maps: Sequence[MapConfig]) -> str | None:
    """Name the first cycle, as ``a → b → a``, or return None."""
    settled: set[int] = set()

    def walk(index: int, trail: list[int]) -> list[int] | None:
        if index in trail:
            return [*trail[trail.index(index) :], index]
        if index in settled:
            return None
        for parent in _parents(maps, maps[index]):
            if found := walk(parent, [*trail, index]):
                return found
        settled.add(index)
        return None

    for index in range(len(maps)):
        if found := walk(index, []):
            return " → ".join(maps[number].name for number in found)
    return None


def _parents(maps: Sequence[MapConfig], child: MapConfig) -> list[int]:
    """Numbers of the mappings that make the records ``child`` refers to, in the order of ``maps``."""
    objects = {(link.to_crm, link.to_object) for link in child.associate}
    refs = {field.ref for field in child.fields.values() if field.ref}
    return [
        number
        for number, one in enumerate(maps)
        if (one.crm, one.object) in objects or (one.crm, one.object, one.key_field) in refs
    ]
