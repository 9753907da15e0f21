"""Partitioned tables whose changes come under their root's name, and under their partitions' own."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest

from cdcsync.errors import SourceError
from cdcsync.sandbox.server import SandboxThread
from cdcsync.state import State
from cdcsync.wal.catalog import load_relation
from cdcsync.wal.connect import connect
from cdcsync.wal.publication import ensure_publication
from tests.pg.piping import Pipe, execute, execute_first, mapping
from tests.polling import eventually_async
from tests.servers import needs

ROOT = """
    CREATE TABLE root (id int, area int, name text, PRIMARY KEY (id, area)) PARTITION BY LIST (area);
    CREATE TABLE north PARTITION OF root FOR VALUES IN (1);
    CREATE TABLE south (name text, gone int, area int NOT NULL, id int NOT NULL, PRIMARY KEY (id, area));
    ALTER TABLE south DROP COLUMN gone;
    ALTER TABLE root ATTACH PARTITION south FOR VALUES IN (2);
    CREATE TABLE far PARTITION OF root FOR VALUES IN (3, 4) PARTITION BY LIST (area);
    CREATE TABLE far3 PARTITION OF far FOR VALUES IN (3);
    CREATE TABLE far4 PARTITION OF far FOR VALUES IN (4);
    CREATE UNIQUE INDEX north_id ON north (id); CREATE UNIQUE INDEX south_id ON south (id);
"""


def pipe(pg: str, sandbox: SandboxThread, tmp_path: Path, *tables: str, via_root: bool) -> Pipe:
    """Publish the root by hand, and map it and perhaps others."""
    execute_first(pg, ROOT, f"CREATE PUBLICATION cdcsync FOR TABLE root WITH (publish_via_partition_root = {via_root})")
    execute_first(pg, "INSERT INTO root VALUES (1, 1, 'a'), (2, 2, 'b'), (3, 3, 'c')")
    maps = [mapping(table) for table in tables]
    return Pipe(pg, sandbox, tmp_path / "state.db", maps, {"create": False})


@pytest.mark.parametrize("via_root", [True, False])
async def test_all_that_happens_to_partitions(
    pg: str, hubspot_sandbox: SandboxThread, tmp_path: Path, *, via_root: bool
) -> None:
    """Whatever name the changes come under: copy, writes, moves between partitions, new, attached and detached ones.

    The columns of partitions stand in other orders, and one level of partitions is below another.
    """
    # Through the root, 13 and 14 go on sending a detached partition's rows under its name for a while.
    needs(pg, 15 if via_root else 14)
    it = pipe(pg, hubspot_sandbox, tmp_path, "root", via_root=via_root)
    await it.make_slot()
    async with it.running():
        await it.shows({"1": "a", "2": "b", "3": "c"})
        await execute(
            pg,
            "INSERT INTO root VALUES (4, 4, 'd'), (5, 2, 'e')",
            "UPDATE root SET name = name || '!' WHERE id IN (2, 3)",
            "DELETE FROM root WHERE id = 1",
        )
        await it.shows({"2": "b!", "3": "c!", "4": "d", "5": "e"})
        await execute(pg, "UPDATE root SET area = 2, name = 'moved' WHERE id = 4")  # from far4 to south
        await it.shows({"2": "b!", "3": "c!", "4": "moved", "5": "e"})
        await execute(
            pg,
            "CREATE TABLE new PARTITION OF root FOR VALUES IN (5); INSERT INTO root VALUES (6, 5, 'f')",
            "CREATE TABLE late (area int NOT NULL, name text, id int NOT NULL, PRIMARY KEY (id, area))",
            "ALTER TABLE root ATTACH PARTITION late FOR VALUES IN (6); INSERT INTO root VALUES (7, 6, 'g')",
        )
        await it.shows({"2": "b!", "3": "c!", "4": "moved", "5": "e", "6": "f", "7": "g"})
        await execute(
            pg,
            "ALTER TABLE root DETACH PARTITION new; UPDATE new SET name = 'alone'; INSERT INTO new VALUES (8, 5, 'h')",
            "INSERT INTO root VALUES (9, 3, 'i')",
        )
        await it.shows({"2": "b!", "3": "c!", "4": "moved", "5": "e", "6": "f", "7": "g", "9": "i"})
    await execute(pg, "UPDATE root SET name = 'while down' WHERE id = 7; DROP TABLE north")
    await it.once()
    await it.shows({"2": "b!", "3": "c!", "4": "moved", "5": "e", "6": "f", "7": "while down", "9": "i"})
    books = it.books()
    assert (books["double_creates"], books["steps_back"]) == (0, 0)


def known_name(it: Pipe) -> str:
    """Return the name by which the mapping knows its table."""
    with contextlib.closing(State.read(it.state)) as state:
        seen = state.seen("root:hubspot.companies")
    return seen.table if seen is not None else ""


@pytest.mark.parametrize("via_root", [True, False])
async def test_a_root_that_is_renamed(
    pg: str, hubspot_sandbox: SandboxThread, tmp_path: Path, *, via_root: bool
) -> None:
    """Its partitions' rows are its own under any name, those of partitions made since, and after a restart."""
    it = pipe(pg, hubspot_sandbox, tmp_path, via_root=via_root)
    it.maps = [mapping("root", on_drift="warn")]
    await it.make_slot()
    async with it.running():
        await it.shows({"1": "a", "2": "b", "3": "c"})
        await execute(pg, "UPDATE root SET name = 'B' WHERE id = 2")
        await it.shows({"1": "a", "2": "B", "3": "c"})
        await execute(pg, "ALTER TABLE root RENAME TO trunk", "INSERT INTO trunk VALUES (4, 2, 'd')")
        await eventually_async(lambda: known_name(it) == "public.trunk")
        await execute(pg, "UPDATE trunk SET name = upper(name) || '!'")
        await it.shows({"1": "A!", "2": "B!", "3": "C!", "4": "D!"})
        await execute(pg, "CREATE TABLE new PARTITION OF trunk FOR VALUES IN (5); INSERT INTO trunk VALUES (6, 5, 'f')")
        await it.shows({"1": "A!", "2": "B!", "3": "C!", "4": "D!", "6": "f"})
    await execute(pg, "INSERT INTO trunk VALUES (7, 2, 'g')")
    async with it.running():
        await it.shows({"1": "A!", "2": "B!", "3": "C!", "4": "D!", "6": "f", "7": "g"})


async def test_a_partitions_truncate_empties_nothing(pg: str, hubspot_sandbox: SandboxThread, tmp_path: Path) -> None:
    """Under its own name a partition's TRUNCATE pauses the mapping, and says which table it was; no record goes."""
    it = pipe(pg, hubspot_sandbox, tmp_path, "root", via_root=False)
    await it.make_slot()
    async with it.running():
        await it.shows({"1": "a", "2": "b", "3": "c"})
        await execute(pg, "TRUNCATE south", "INSERT INTO root VALUES (4, 1, 'd')")

        def paused() -> dict[str, str]:
            state = State.read(it.state)
            reasons = state.paused()
            state.close()
            return reasons

        await eventually_async(paused, timeout=5, what="no pause")
        assert paused() == {"root:hubspot.companies": "public.south was truncated; the CRM still holds its records"}
    assert it.records() == {"1": "a", "2": "b", "3": "c"}


async def test_a_partitions_truncate_is_not_sent_through_the_root(
    pg: str, hubspot_sandbox: SandboxThread, tmp_path: Path
) -> None:
    """PostgreSQL sends nothing then: the records stay, which the manual says; a TRUNCATE of the root pauses."""
    it = pipe(pg, hubspot_sandbox, tmp_path, "root", via_root=True)
    await it.make_slot()
    async with it.running():
        await it.shows({"1": "a", "2": "b", "3": "c"})
        await execute(pg, "TRUNCATE south; INSERT INTO root VALUES (4, 1, 'd')")
        await it.shows({"1": "a", "2": "b", "3": "c", "4": "d"})


async def test_a_partition_can_be_mapped_itself(pg: str, hubspot_sandbox: SandboxThread, tmp_path: Path) -> None:
    """Alone, and beside its root's mapping, where both get its rows."""
    it = pipe(pg, hubspot_sandbox, tmp_path, "south", via_root=False)
    it.maps.append(mapping("far", key={"company_id": "id"}, name="far", fields={"domain": "name"}))
    await it.make_slot()
    async with it.running():
        await it.shows({"2": "b", "3": None})
        await execute(pg, "INSERT INTO root VALUES (4, 2, 'd'), (5, 1, 'e'), (6, 4, 'f')", "UPDATE root SET name = 'B'")
        await it.shows({"2": "B", "3": None, "4": "B", "6": None})
        assert it.records("domain") == {"2": None, "3": "B", "4": None, "6": "B"}


async def test_a_partition_published_through_its_root_cannot_be_mapped(pg: str) -> None:
    """Its changes come under the root's name, and nobody could tell them apart: that is said, not waited for."""
    await execute(pg, ROOT, "CREATE PUBLICATION cdcsync FOR TABLE root WITH (publish_via_partition_root = true)")
    async with await connect(pg) as connection:
        with pytest.raises(SourceError, match=r"sends the changes of public\.south as those of public\.root"):
            await ensure_publication(connection, "cdcsync", {"public.south": None}, create=False)


async def test_partitions_published_one_by_one_are_not_their_root(pg: str) -> None:
    """A new partition would be missing without a word; the SQL given publishes the root."""
    await execute(pg, ROOT, "CREATE PUBLICATION cdcsync FOR TABLE north, south, far3, far4")
    async with await connect(pg) as connection:
        with pytest.raises(SourceError, match=r"does not cover public\.root") as caught:
            await ensure_publication(connection, "cdcsync", {"public.root": None}, create=False)
        await connection.execute(caught.value.hint.encode())
        found = await ensure_publication(connection, "cdcsync", {"public.root": None}, create=False)
        assert not found.via_root
        assert await load_relation(connection, "public", "root", "cdcsync") == await load_relation(
            connection, "public", "root"
        )


@pytest.mark.parametrize("scope", ["ALL TABLES", "TABLES IN SCHEMA public"])
async def test_wider_publications_cover_roots(pg: str, scope: str) -> None:
    """FOR ALL TABLES and for schemas, without publish_via_partition_root, too."""
    needs(pg, 15 if "SCHEMA" in scope else 13)
    await execute(pg, ROOT, f"CREATE PUBLICATION cdcsync FOR {scope}")
    async with await connect(pg) as connection:
        found = await ensure_publication(connection, "cdcsync", {"public.root": None}, create=False)
    assert {"public.root", "public.far", "public.south"} <= found.tables.keys()
