"""Parents before children. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from cdcsync.config.mapping import MapConfig


def order(maps: Sequence[MapConfig]) -> list[MapConfig]:
    """Sort mappings so that each comes after those it refers to; otherwise they keep their places.

    Of those that refer to each other in a circle, the first one in the file comes last.
    """
    done: dict[int, MapConfig] = {}
    begun: set[int] = set()

    def visit(index: int) -> None:
        if index in begun:
            return
        begun.add(index)
        for parent in _parents(maps, maps[index]):
            visit(parent)
        done[index] = maps[index]

    for index in range(len(maps)):
        visit(index)
    return list(done.values())


def _parents(maps: Sequence[MapConfig], child: MapConfig) -> list[int]:
    """Numbers of the mappings that make the records ``child`` refers to, in the order of ``maps``."""
    objects = {(link.to_crm, link.to_object) for link in child.associate}
    refs = {field.ref for field in child.fields.values() if field.ref}
    return [
        number
        for number, one in enumerate(maps)
        if (one.crm, one.object) in objects or (one.crm, one.object, one.key_field) in refs
    ]
