"""``cdcsync check --print-sql``: the SQL is run as it stands, and the daemon works with the role that it makes."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from cdcsync.check import privileges
from cdcsync.check.source import check_source
from cdcsync.sandbox.server import SandboxThread
from tests.pg.piping import Pipe, execute, execute_first, mapping

TABLES = """
    CREATE SCHEMA "Odd ""schema";
    CREATE TABLE "Odd ""schema"."The Firms" (id int PRIMARY KEY, name text);
    CREATE TABLE keyed (id int NOT NULL UNIQUE, name text);
    CREATE TABLE plain (id int PRIMARY KEY, name text);
    ALTER TABLE plain ENABLE ROW LEVEL SECURITY;
    INSERT INTO plain VALUES (1, 'a'), (101, 'b');
    INSERT INTO "Odd ""schema"."The Firms" VALUES (2, 'c');
    CREATE TABLE private (id int);
"""


@pytest.fixture
def role(pg: str) -> Iterator[str]:
    """Give the name of a role that the script makes; it goes afterwards."""
    name = f"Role {uuid.uuid4().hex[:8]}"
    yield name
    execute_first(pg, f'DROP OWNED BY "{name}"; DROP ROLE "{name}"')


def pipe(pg: str, sandbox: SandboxThread, tmp_path: Path, role: str, *, create: bool) -> Pipe:
    """Make the tables, and a daemon that connects as the role."""
    execute_first(pg, TABLES)
    maps = [
        mapping("plain", where="id > 100"),
        mapping('Odd "schema.The Firms', name="firms"),
        mapping("keyed", name="keyed", backfill=False),
    ]
    return Pipe(make_conninfo(pg, user=role), sandbox, tmp_path / "state.db", maps, {"create": create})


async def set_up(pg: str, it: Pipe) -> str:
    """Print the SQL for the role, which does not exist yet, and again once it does; run both."""
    first = await privileges(it.config(), ask=True)
    assert first.startswith("-- The server was not asked: PostgreSQL refuses the login")
    for section in first.split("\n\n"):
        if section.startswith(("-- 2.", "-- 3.")):
            await execute(pg, section)
    second = await privileges(it.config(), ask=True)
    assert not second.startswith("-- The server was not asked")
    await execute(pg, second, second)
    return second


async def test_the_sql_is_enough_and_no_more(
    pg: str, hubspot_sandbox: SandboxThread, tmp_path: Path, role: str
) -> None:
    """Role, grants, replica identity and publication serve a whole run with create = false, and allow no writing."""
    it = pipe(pg, hubspot_sandbox, tmp_path, role, create=False)
    text = await set_up(pg, it)
    assert "ALTER TABLE public.keyed REPLICA IDENTITY USING INDEX keyed_id_key;" in text
    assert "BYPASSRLS" in text
    await it.make_slot()
    await it.once()
    assert it.records() == {"101": "b", "2": "c"}
    await execute(pg, "UPDATE plain SET name = 'B'", 'DELETE FROM "Odd ""schema"."The Firms"')
    await execute(
        pg, "INSERT INTO keyed VALUES (3, 'd'), (4, 'e'); UPDATE keyed SET name = 'E'; DELETE FROM keyed WHERE id = 3"
    )
    await it.once()
    assert it.records() == {"101": "B", "4": "E"}
    assert [finding for finding in await check_source(it.config()) if not finding.ok] == []
    await execute(pg, "REVOKE CREATE ON SCHEMA public FROM PUBLIC")  # which everyone has before 15
    for statement in (
        "INSERT INTO plain VALUES (5, 'x')",
        "UPDATE plain SET name = 'x'",
        "TRUNCATE plain",
        "SELECT FROM private",
        "SELECT FROM keyed",
        "CREATE TABLE mine (id int)",
        "CREATE PUBLICATION mine",
        "DROP PUBLICATION cdcsync",
        "CREATE ROLE another",
    ):
        with pytest.raises((psycopg.errors.InsufficientPrivilege, psycopg.errors.ObjectNotInPrerequisiteState)):
            await execute(it.dsn, statement)


async def test_ownership_serves_in_place_of_the_publication(
    pg: str, hubspot_sandbox: SandboxThread, tmp_path: Path, role: str
) -> None:
    """With the last section in place of the publication's, cdcsync makes and keeps it itself."""
    it = pipe(pg, hubspot_sandbox, tmp_path, role, create=True)
    owner = f"owner_{uuid.uuid4().hex[:8]}"
    database = str(conninfo_to_dict(pg)["dbname"])
    await execute(pg, f"CREATE ROLE {owner}", f"GRANT CREATE ON DATABASE {database} TO {owner}")
    try:
        await execute(pg, f"ALTER TABLE plain OWNER TO {owner}; ALTER TABLE keyed OWNER TO {owner}")
        await execute(pg, f'ALTER TABLE "Odd ""schema"."The Firms" OWNER TO {owner}')
        text = await set_up(pg, it)
        await execute(pg, "DROP PUBLICATION cdcsync")
        grants = [line.removeprefix("-- ") for line in text.splitlines() if line.startswith("-- GRANT")]
        assert [sql.Identifier(owner).as_string() in grant for grant in grants] == [False, True]
        await execute(pg, *grants)
        await it.once()
        assert it.records() == {"101": "b", "2": "c"}
    finally:
        await execute(pg, "DROP PUBLICATION IF EXISTS cdcsync", f"REASSIGN OWNED BY {owner} TO CURRENT_USER")
        await execute(pg, f"DROP OWNED BY {owner}", f"DROP ROLE {owner}")


async def test_a_table_without_identity_holds_the_publication_back(
    pg: str, hubspot_sandbox: SandboxThread, tmp_path: Path
) -> None:
    """The SQL never breaks an application: what needs a decision stands as a comment, and the publication with it."""
    it = pipe(pg, hubspot_sandbox, tmp_path, "postgres", create=False)
    it.maps.append(mapping("private", name="third"))
    text = await privileges(it.config(), ask=True)
    assert "-- public.private has no primary key" in text
    assert 'CREATE ROLE "cdcsync" NOSUPERUSER' in text  # a superuser's connection is answered with a role of its own
    await execute(pg, text)
    with psycopg.connect(pg) as connection:
        assert connection.execute("SELECT FROM pg_publication").fetchall() == []
    await execute(pg, 'DROP OWNED BY "cdcsync"; DROP ROLE "cdcsync"')


async def test_offline_the_config_alone_speaks(pg: str, hubspot_sandbox: SandboxThread, tmp_path: Path) -> None:
    """Without a server the same SQL comes, with general advice where the server would be asked."""
    it = pipe(pg, hubspot_sandbox, tmp_path, "reader", create=False)
    text = await privileges(it.config(), ask=False)
    assert 'GRANT SELECT ON "Odd ""schema"."The Firms" TO "reader";' in text
    assert "WHERE (id > 100)" in text
    assert "a server that was not asked" in text


@pytest.mark.parametrize("marker", ["rds_superuser", "neon_superuser"])
async def test_managed_services_are_known_by_their_roles(
    pg: str, hubspot_sandbox: SandboxThread, tmp_path: Path, marker: str
) -> None:
    """Check and the SQL speak of the service's own switches."""
    it = pipe(pg, hubspot_sandbox, tmp_path, "postgres", create=False)
    await execute(pg, f"CREATE ROLE {marker}")
    try:
        text = await privileges(it.config(), ask=True)
        findings = {finding.subject: finding for finding in await check_source(it.config())}
    finally:
        await execute(pg, f"DROP ROLE {marker}")
    assert ("rds_replication" in text) == (marker == "rds_superuser")
    assert ("cannot be switched off again" in text) == (marker == "neon_superuser")
    assert findings["provider"].ok
