"""What the catalogs show of a published table now: under which name, in which shape, and whether it is published.

The stream is silent on all of this until the next row comes, and on some of it for ever.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from cdcsync.errors import SourceError
from cdcsync.model import Relation
from cdcsync.wal.catalog import load_relation, rows
from cdcsync.wal.connect import Connection
from cdcsync.wal.identity import identity_problems
from cdcsync.wal.published import load_publication

_NAMES: Final = """
    SELECT n.nspname, c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE c.relkind IN ('r', 'p') AND (n.nspname || '.' || c.relname = %s OR c.oid = %s)
    ORDER BY n.nspname || '.' || c.relname = %s DESC LIMIT 1
"""

# The rows' own transaction ids tell apart a membership that was taken away and given back.
_MEMBERSHIP: Final = """
    SELECT concat_ws(' ', p.oid, p.xmin, (
        SELECT string_agg(concat_ws(' ', r.oid, r.xmin), ' ' ORDER BY r.oid) FROM pg_publication_rel r
        WHERE r.prpubid = p.oid AND r.prrelid IN (
            SELECT %(oid)s::oid UNION SELECT relid FROM pg_partition_tree(%(oid)s)
            UNION SELECT relid FROM pg_partition_ancestors(%(oid)s) AS above (relid)
        )
    ))
    FROM pg_publication p WHERE p.pubname = %(name)s
"""

_DEFINITIONS: Final = """
    SELECT attname, concat_ws(' ', attnum, xmin) FROM pg_attribute
    WHERE attrelid = %s AND attnum > 0 AND NOT attisdropped
"""

_POSITION: Final = """
    SELECT (CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_insert_lsn() END
            - '0/0')::int8
"""

# Vacuum and statistics leave these rows as they are; every other change gives them another transaction id.
_FINGERPRINT: Final = """
    WITH tables AS (
        SELECT c.oid FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
        WHERE c.relkind IN ('r', 'p') AND (n.nspname || '.' || c.relname = ANY (%s) OR c.oid = ANY (%s))
    ), stored AS (
        SELECT oid FROM tables UNION SELECT relid FROM tables, pg_partition_tree(oid)
    ), parts AS (
        SELECT concat_ws(' ', 'c', c.oid, c.xmin) AS part FROM pg_class c JOIN stored USING (oid)
        UNION ALL SELECT concat_ws(' ', 'a', a.attrelid, a.attnum, a.xmin)
        FROM pg_attribute a JOIN stored ON stored.oid = a.attrelid WHERE a.attnum > 0
        UNION ALL SELECT concat_ws(' ', 'i', i.indexrelid, i.xmin)
        FROM pg_index i JOIN stored ON stored.oid = i.indrelid
        UNION ALL SELECT concat_ws(' ', 'p', p.oid, p.xmin) FROM pg_publication p WHERE p.pubname = %s
        UNION ALL SELECT concat_ws(' ', 'r', r.oid, r.xmin)
        FROM pg_publication_rel r JOIN pg_publication p ON p.oid = r.prpubid WHERE p.pubname = %s
    )
    SELECT md5(string_agg(part, ',' ORDER BY part)) FROM parts
"""


@dataclass(frozen=True, slots=True)
class TableSight:
    """A table as it is. ``relation`` is None if there is none of that name, nor of the oid known before.

    ``unfit`` says why publishing it breaks its applications, with the remedy. ``publication`` identifies its
    membership in the publication: None without one, another text after each change of it. So do ``columns`` for the
    definition of each. ``lsn``: what was committed before it may have had another shape.
    """

    relation: Relation | None
    unfit: str | None = None
    publication: str | None = None
    columns: Mapping[str, str] = field(default_factory=dict)
    lsn: int = 0


async def look(connection: Connection, publication: str, table: str, oid: int = 0) -> TableSight:
    """Look for ``table`` (``schema.name``), else for the table that ``oid`` is. Raises psycopg's errors."""
    found = await rows(connection, _NAMES, [table, oid, table])
    if not found:
        return TableSight(None)
    ((schema, name),) = found
    try:
        relation = await load_relation(connection, schema, name, publication)
    except SourceError:  # it went away between the two looks
        return TableSight(None)
    current = await load_publication(connection, publication)
    stored = current is not None and current.generated
    problems = await identity_problems(connection, [relation.table], stored=stored)
    unfit = "; ".join(map(str, problems)) or None
    covered = current is not None and relation.table in current.tables
    membership = await rows(connection, _MEMBERSHIP, {"oid": relation.oid, "name": publication}) if covered else []
    columns = dict(await rows(connection, _DEFINITIONS, [relation.oid]))
    ((lsn,),) = await rows(connection, _POSITION)
    return TableSight(relation, unfit, membership[0][0] if membership else None, columns, lsn)


async def fingerprint(connection: Connection, publication: str, tables: list[str], oids: list[int]) -> str:
    """Return what stays the same as long as none of the tables, nor the publication, changes in the catalogs."""
    ((text,),) = await rows(connection, _FINGERPRINT, [tables, oids, publication, publication])
    return str(text)
