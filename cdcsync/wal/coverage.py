"""Whether a publication sends what the mappings read, and by which SQL it would.

A publication may be somebody else's: made by hand, with column lists and row filters of its own, without
``publish_via_partition_root``. It serves when nothing that is read is missing from it, and nothing else comes.
"""

from __future__ import annotations

from typing import NamedTuple

import psycopg
from psycopg import sql

from cdcsync.wal.catalog import (
    VERSION_15,
    VERSION_18,
    generated_columns,
    load_ancestors,
    load_leaves,
    load_relation,
    published_columns,
    rows,
    server_version,
)
from cdcsync.wal.connect import Connection
from cdcsync.wal.published import GENERATED, KINDS, VIA_ROOT, Columns, Publication, Tables, listing, quoted


class Gap(NamedTuple):
    """What a publication lacks, as a phrase that follows its name, and what to do: SQL, or a sentence."""

    message: str
    remedy: str


async def gaps(connection: Connection, publication: Publication, tables: Tables, columns: Columns) -> list[Gap]:
    """Return everything in which the publication does not send the rows and columns that are read.

    ``tables`` gives each table's ``where``; ``columns`` those columns that the mappings use.
    """
    name = sql.Identifier(publication.name).as_string(connection)
    found = []
    if not publication.complete:
        found.append(Gap("leaves out some kinds of changes", f"ALTER PUBLICATION {name} SET ({KINDS});"))
    found += await _uncovered(connection, publication, tables)
    covered = {table: where for table, where in tables.items() if table in publication.tables}
    return found + await _differences(connection, publication, covered, columns)


def row_filters(version: int, tables: Tables) -> Tables:
    """Return the tables with the row filters that a publication can have: before 15 none, see ``row_filter``."""
    return tables if version >= VERSION_15 else dict.fromkeys(tables)


def generated_problems(version: int, kinds: dict[str, dict[str, str]], columns: Columns) -> list[str]:
    """Return a sentence for each generated column that is read, and that a server of this version never sends.

    ``kinds`` is what ``catalog.generated_columns`` says.
    """
    problems = []
    for table, names in sorted(columns.items()):
        for column in sorted(names & kinds.get(table, {}).keys()):
            remedy = "map the columns that it is made of (a template, say), or keep it in a column that a trigger fills"
            if kinds[table][column] == "v":
                problems.append(f"{table}: column {column} is VIRTUAL, and is never sent: make it STORED, or {remedy}")
            elif version < VERSION_18:
                problems.append(
                    f"{table}: column {column} is generated, which is sent from PostgreSQL 18 on, and this is"
                    f" {version // 10000}: {remedy}"
                )
    return problems


async def needs_generated(connection: Connection, columns: Columns) -> bool:
    """Whether one of the columns is a stored generated one, and the server (18 and later) can publish those."""
    if server_version(connection) < VERSION_18:
        return False
    kinds = await generated_columns(connection, columns.keys())
    return any(kinds.get(table, {}).get(column) == "s" for table, names in columns.items() for column in names)


async def _uncovered(connection: Connection, publication: Publication, tables: Tables) -> list[Gap]:
    found = []
    missing = sorted(tables.keys() - publication.tables.keys())
    above = await _published_above(connection, publication, missing)
    for table, root in above.items():
        found.append(
            Gap(
                f"sends the changes of {table} as those of {root}",
                f"Map {root}, or give cdcsync a publication of its own (postgres.publication).",
            )
        )
    if rest := [table for table in missing if table not in above]:
        listed = ", ".join(listing(connection, table, tables[table]) for table in rest)
        name = sql.Identifier(publication.name).as_string(connection)
        remedy = f"ALTER PUBLICATION {name} ADD TABLE {listed};"
        if not publication.own_list:
            remedy = "It is made for whole schemas: give cdcsync one of its own (postgres.publication)."
        found.append(Gap(f"does not cover {', '.join(rest)}", remedy))
    return found


async def _published_above(connection: Connection, publication: Publication, tables: list[str]) -> dict[str, str]:
    """Return for partitions the partitioned table whose name their changes come under."""
    if not publication.via_root or not tables:
        return {}
    oids = dict(
        await rows(
            connection,
            "SELECT c.oid, n.nspname || '.' || c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace"
            " WHERE n.nspname || '.' || c.relname = ANY (%s) AND c.relispartition",
            [tables],
        )
    )
    ancestors = await load_ancestors(connection, oids.keys())
    return {
        oids[oid]: above.table
        for oid, ancestry in ancestors.items()
        for above in ancestry
        if above.table in publication.tables
    }


async def _differences(connection: Connection, publication: Publication, tables: Tables, columns: Columns) -> list[Gap]:
    """Compare row filters and columns of the tables that are covered."""
    if server_version(connection) < VERSION_15:
        return []
    found = []
    sent = await published_columns(connection, publication.name, tables.keys())
    kinds = await generated_columns(connection, tables.keys())
    for table, where in sorted(tables.items()):
        unsent = await _needed(connection, publication, table, columns.get(table, frozenset()), kinds.get(table, {}))
        unsent -= sent.get(table, unsent)
        phrases = [f"leaves out column {column} of {table}" for column in sorted(unsent)]
        phrase = await _filter_phrase(connection, table, where, publication.tables[table])
        if phrase:
            phrases.append(phrase)
        if phrases:
            found.append(Gap("; ".join(phrases), _remedy(connection, publication, table, where, unsent, kinds)))
    return found


async def _needed(
    connection: Connection, publication: Publication, table: str, read: frozenset[str], generated: dict[str, str]
) -> frozenset[str]:
    """Return the columns of a table that have to be sent: those that are read, and those of its identities.

    A column list without an identity's column makes the applications' own UPDATE and DELETE fail.
    """
    schema, _, name = table.partition(".")
    relation = await load_relation(connection, schema, name)
    shapes = [relation, *(await load_leaves(connection, schema, name) if publication.lists else [])]
    existing = {column.name for column in relation.columns} | generated.keys()
    identity = {column.name for shape in shapes for column in shape.columns if column.in_identity}
    return frozenset((read & existing) | identity)


async def _filter_phrase(connection: Connection, table: str, mine: str | None, theirs: str | None) -> str:
    if mine is None:
        return "" if theirs is None else f"sends only rows of {table} with {theirs}, which the mapping does not say"
    if theirs is None:
        return f"sends all rows of {table}, and not only those of the mapping's where"
    if mine == theirs or await _same(connection, table, mine, theirs):
        return ""
    return f"sends the rows of {table} with {theirs}, and the mapping's where is {mine}"


async def _same(connection: Connection, table: str, mine: str, theirs: str) -> bool:
    """Whether two conditions are one to the server, which alone can read its SQL: it prints how it understands them.

    Nothing is run or written, so that a standby can be asked too. They stand for columns, not for a filter, of which
    it would leave out what a table's constraints say.
    """
    plans = []
    try:
        for condition in (mine, theirs):
            query = f"EXPLAIN (VERBOSE, FORMAT JSON) SELECT ({condition}\n) FROM {quoted(connection, table)}"  # noqa: S608 - the config's own SQL
            plans.append(await rows(connection, query))
    except (psycopg.ProgrammingError, psycopg.NotSupportedError, psycopg.DataError):
        return False
    return plans[0] == plans[1]


def _remedy(  # noqa: PLR0917 - the parts of one table's entry
    connection: Connection,
    publication: Publication,
    table: str,
    where: str | None,
    unsent: frozenset[str],
    kinds: dict[str, dict[str, str]],
) -> str:
    theirs = publication.tables[table]
    if theirs is not None and not unsent:
        return f"Write {theirs!r} as the mapping's where, or change the publication."
    if not publication.own_list and where is not None:
        return "It is not a list of tables, and cannot filter: give cdcsync one of its own (postgres.publication)."
    name = sql.Identifier(publication.name).as_string(connection)
    listed = publication.lists.get(table, ())
    statements = []
    if not listed and unsent & kinds.get(table, {}).keys():
        statements.append(f"ALTER PUBLICATION {name} SET ({GENERATED});")
    if not publication.via_root and where is not None:
        statements.append(f"ALTER PUBLICATION {name} SET ({VIA_ROOT});")
    if listed or where != theirs:
        entry = listing(connection, table, where, (*listed, *sorted(unsent)) if listed else ())
        statements += [
            "BEGIN;",
            f"ALTER PUBLICATION {name} DROP TABLE ONLY {quoted(connection, table)};",
            f"ALTER PUBLICATION {name} ADD TABLE {entry};",
            "COMMIT;",
        ]
    return " ".join(statements)
