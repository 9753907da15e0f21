"""Order between mappings that the config leaves open, taken from the database's foreign keys.

A row then goes after the row that it refers to in the database, and that one's delete after its own, although the
record says nothing of the other: automation in a CRM may look it up. It is an order only. A parent that is rejected, or
is not mapped at all, keeps nobody waiting.
"""

from __future__ import annotations

from collections.abc import Sequence

from cdcsync.route import Follow, Route
from cdcsync.wal import catalog
from cdcsync.wal.connect import Connection


async def follow(connection: Connection, routes: Sequence[Route], oids: dict[str, int]) -> None:
    """Let mappings follow the foreign keys between their tables (``oids`` by mapping) to mappings of the same CRM.

    Where the config refers from one mapping to another already, that says it all.
    """
    keys = await catalog.load_foreign_keys(connection, list(set(oids.values())))
    for child in routes:
        for parent in routes:
            if child.config.crm != parent.config.crm or _refers(child, parent):
                continue
            child.follows += [
                Follow(key.column, parent)
                for key in keys
                if (key.table, key.parent, key.parent_column)
                == (oids.get(child.name), oids.get(parent.name), parent.config.key_column)
                and (key.table != key.parent or child is parent)
            ]


def in_order(routes: Sequence[Route]) -> list[Route]:
    """Sort mappings so that each comes after those that it follows; otherwise they keep their places."""
    done: dict[str, Route] = {}
    begun: set[str] = set()

    def visit(route: Route) -> None:
        if route.name in begun:
            return
        begun.add(route.name)
        for one in route.follows:
            visit(one.parent)
        done[route.name] = route

    for route in routes:
        visit(route)
    return list(done.values())


def _refers(child: Route, parent: Route) -> bool:
    refs = [field.ref for field in child.config.fields.values() if field.ref is not None]
    named = any((ref.object, ref.key_field) == (parent.config.object, parent.config.key_field) for ref in refs)
    return named or any(link.to_object == parent.config.object for link in child.config.associate)
