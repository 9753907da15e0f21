"""Which tables have a replica identity that lets them be published without breaking their applications."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, NamedTuple

from cdcsync.wal.catalog import VERSION_18, rows, server_version
from cdcsync.wal.connect import Connection

# One row per table that stores rows: the partitions of a partitioned one. A partition's own identity counts, not its
# root's. An index serves when it is unique, valid, not deferrable, not partial, without expressions and NULLs.
_LEAVES: Final = """
    SELECT n.nspname || '.' || c.relname AS root,
           ln.nspname || '.' || l.relname AS name,
           format('%%I.%%I', ln.nspname, l.relname) AS quoted,
           l.relpersistence::text AS persistence,
           l.relreplident::text AS identity,
           EXISTS (
               SELECT FROM pg_index i WHERE i.indrelid = l.oid AND i.indisvalid AND i.indimmediate
                 AND CASE l.relreplident WHEN 'd' THEN i.indisprimary ELSE i.indisreplident END
           ) AS indexed,
           (
               SELECT quote_ident(x.relname) FROM pg_index i JOIN pg_class x ON x.oid = i.indexrelid
               WHERE i.indrelid = l.oid AND i.indisunique AND i.indisvalid AND i.indimmediate
                 AND i.indpred IS NULL AND i.indexprs IS NULL
                 AND NOT EXISTS (
                     SELECT FROM pg_attribute a WHERE a.attrelid = l.oid AND NOT a.attnotnull
                       AND a.attnum = ANY ((string_to_array(i.indkey::text, ' ')::int2[])[1:i.indnkeyatts])
                 )
               ORDER BY i.indisprimary DESC, x.relname LIMIT 1
           ) AS fit_index,
           ARRAY(
               SELECT DISTINCT a.attgenerated::text FROM pg_attribute a
               WHERE a.attrelid = l.oid AND a.attgenerated <> '' AND NOT a.attisdropped
                 AND (l.relreplident = 'f' OR EXISTS (
                     SELECT FROM pg_index i WHERE i.indrelid = l.oid AND a.attnum = ANY (i.indkey::int2[])
                       AND CASE l.relreplident WHEN 'd' THEN i.indisprimary ELSE i.indisreplident END
                 ))
           ) AS generated
    FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    CROSS JOIN LATERAL (
        SELECT relid FROM pg_partition_tree(c.oid) WHERE isleaf AND c.relkind = 'p'
        UNION ALL SELECT c.oid WHERE c.relkind = 'r'
    ) AS leaf
    JOIN pg_class l ON l.oid = leaf.relid
    JOIN pg_namespace ln ON ln.oid = l.relnamespace
    WHERE n.nspname || '.' || c.relname = ANY (%s) AND l.relkind = 'r'
    ORDER BY 1, 2
"""


@dataclass(frozen=True, slots=True)
class _Leaf:
    root: str
    name: str
    quoted: str
    persistence: str
    identity: str
    indexed: bool
    fit_index: str | None
    generated: list[str]


class Unfit(NamedTuple):
    """A table (``schema.table``) that must not be published, and what mends it: SQL, perhaps with a choice, or ""."""

    table: str
    message: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.message}: {self.remedy}" if self.remedy else self.message


async def identity_problems(connection: Connection, tables: list[str], *, stored: bool = False) -> list[Unfit]:
    """Return those of ``tables`` that must not be published, each with the SQL to mend it.

    A partitioned table is judged by its partitions. ``stored``: the publication carries stored generated columns.
    """
    # Since 18 a generated column that is not published spoils an identity; a virtual one never can be.
    spoiling = set() if server_version(connection) < VERSION_18 else {"v"} if stored else {"s", "v"}
    leaves = [_Leaf(*row) for row in await rows(connection, _LEAVES, [tables])]
    return [problem for leaf in leaves if (problem := _problem(leaf, spoiling))]


def _problem(leaf: _Leaf, spoiling: set[str]) -> Unfit | None:
    if leaf.persistence != "p":
        kind = "unlogged" if leaf.persistence == "u" else "temporary"
        remedy = f"ALTER TABLE {leaf.quoted} SET LOGGED;" if leaf.persistence == "u" else ""
        return Unfit(leaf.root, f"{leaf.name} is not in the WAL, for it is {kind}", remedy)
    if spoiling.intersection(leaf.generated):
        return Unfit(
            leaf.root,
            f"{leaf.name}: its replica identity covers a generated column, so its UPDATE and DELETE would fail once it"
            " is published",
            f"ALTER TABLE {leaf.quoted} REPLICA IDENTITY DEFAULT; with a primary key of ordinary columns",
        )
    if leaf.identity == "f" or (leaf.identity in "di" and leaf.indexed):
        return None
    why = {"n": "REPLICA IDENTITY NOTHING", "d": "no primary key", "i": "lost its identity index"}[leaf.identity]
    return Unfit(
        leaf.root, f"{leaf.name} has {why}, so its UPDATE and DELETE would fail once it is published", _remedy(leaf)
    )


def _remedy(leaf: _Leaf) -> str:
    if leaf.fit_index is None:
        return f"ALTER TABLE {leaf.quoted} ADD PRIMARY KEY (…); or, at a price in WAL, REPLICA IDENTITY FULL"
    if leaf.identity == "d":
        return f"ALTER TABLE {leaf.quoted} REPLICA IDENTITY USING INDEX {leaf.fit_index};"
    return f"ALTER TABLE {leaf.quoted} REPLICA IDENTITY DEFAULT; or USING INDEX {leaf.fit_index}"
