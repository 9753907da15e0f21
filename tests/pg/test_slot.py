"""The slot's life on a real server."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator

import pytest
from psycopg.conninfo import make_conninfo

from cdcsync.demo.postgres import EmbeddedPostgres
from cdcsync.errors import SourceError, SourceUnavailableError
from cdcsync.wal.catalog import rows, server_version
from cdcsync.wal.connect import Connection, connect
from cdcsync.wal.health import diagnose, examine
from cdcsync.wal.slot import (
    SlotInfo,
    advance,
    check_wal_level,
    create_slot,
    drop_slot,
    identify_system,
    sessions,
    show_slot,
)
from tests.polling import eventually_async


@pytest.fixture
async def connection(pg: str) -> AsyncIterator[Connection]:
    """Give a connection to the test's database."""
    async with await connect(pg) as it:
        yield it


@pytest.fixture
def slot() -> str:
    """Give a slot name of the test's own: names are the whole server's."""
    return f"s_{uuid.uuid4().hex[:12]}"


async def test_a_slot_is_created_and_shown(pg: str, connection: Connection, slot: str) -> None:
    """A new slot is what a checkpoint can be bound to, and the view says the same of it."""
    assert await show_slot(connection, slot) == SlotInfo(slot, exists=False)
    identity = await create_slot(pg, slot)
    async with await connect(pg, replication=True) as replication:
        system = await identify_system(replication)
    ((database,),) = await rows(connection, "SELECT current_database()")
    assert (identity.system_id, identity.timeline, identity.database) == (system.system_id, system.timeline, database)
    assert identity.slot == slot
    info = await show_slot(connection, slot)
    assert (info.exists, info.plugin, info.database, info.active_pid) == (True, "pgoutput", database, None)
    assert info.confirmed_flush_lsn == identity.consistent_point
    assert info.restart_lsn is not None
    assert info.restart_lsn <= identity.consistent_point <= system.lsn
    assert (info.wal_status, info.lost, info.temporary) == ("reserved", False, False)
    assert info.two_phase is (False if server_version(connection) >= 140000 else None)
    assert info.retained_bytes is not None
    assert info.lag_bytes is not None
    assert 0 <= info.lag_bytes <= info.retained_bytes
    assert info.failover is (True if server_version(connection) >= 170000 else None)


async def test_failover_slots_where_there_are_some(pg: str, connection: Connection, slot: str) -> None:
    """Failover is refused where the server lacks it, and can be declined where it has it."""
    if server_version(connection) < 170000:
        with pytest.raises(SourceError, match="failover"):
            await create_slot(pg, slot, failover=True)
        return
    await create_slot(pg, slot, failover=False)
    assert (await show_slot(connection, slot)).failover is False


async def test_creation_names_who_it_waits_for(pg: str, connection: Connection, slot: str) -> None:
    """A writing transaction holds up a new slot; after the deadline its process is named, and nothing is left."""
    await connection.execute("CREATE TABLE t (id int)")
    async with await connect(pg) as writer, writer.transaction():
        await writer.execute("INSERT INTO t VALUES (1)")
        with pytest.raises(SourceUnavailableError, match=f"pid {writer.info.backend_pid}"):
            await create_slot(pg, slot, deadline=0.3)
    assert not (await show_slot(connection, slot)).exists
    assert (await create_slot(pg, slot)).slot == slot


async def test_creation_names_prepared_transactions(own_pg_server: EmbeddedPostgres) -> None:
    """A forgotten prepared transaction holds up a new slot for ever, and has no process to name."""
    own_pg_server.settings["max_prepared_transactions"] = "1"
    own_pg_server.restart()
    dsn = own_pg_server.dsn()
    async with await connect(dsn) as connection:
        await connection.execute("CREATE TABLE t (id int)")
        await connection.execute("BEGIN; INSERT INTO t VALUES (1); PREPARE TRANSACTION 'forgotten'")
    with pytest.raises(SourceUnavailableError, match="pg_prepared_xacts"):
        await create_slot(dsn, "s", deadline=0.3)


async def test_a_slot_exists_once(pg: str, slot: str) -> None:
    """A second slot of the name is refused."""
    await create_slot(pg, slot)
    with pytest.raises(SourceError, match="exists"):
        await create_slot(pg, slot)


async def test_a_slot_is_dropped_when_nobody_uses_it(pg: str, connection: Connection, slot: str) -> None:
    """A slot in use is not dropped, and its user is named; a free one is; a missing one is an error."""
    await create_slot(pg, slot)
    await connection.execute("CREATE PUBLICATION p")
    reader = await connect(pg, replication=True)
    start = f"START_REPLICATION SLOT {slot} LOGICAL 0/0 (proto_version '1', publication_names 'p')"
    await reader.execute(start.encode())
    holder = reader.info.backend_pid
    assert (await show_slot(connection, slot)).active_pid == holder
    assert "cdcsync of postgres" in await sessions(connection, [holder])
    with pytest.raises(SourceError, match=f"in use: pid {holder}"):
        await drop_slot(connection, slot)
    await reader.close()
    await connection.execute(b"SELECT pg_terminate_backend(%d)" % holder)

    async def let_go() -> bool:
        return (await show_slot(connection, slot)).active_pid is None

    await eventually_async(let_go)
    await drop_slot(connection, slot)
    with pytest.raises(SourceError, match="no slot"):
        await drop_slot(connection, slot)


async def test_a_slot_is_advanced(pg: str, connection: Connection, slot: str) -> None:
    """Advancing gives up what lies before the position."""
    identity = await create_slot(pg, slot)
    await connection.execute("CREATE TABLE t AS SELECT generate_series(1, 100)")
    async with await connect(pg, replication=True) as replication:
        tip = (await identify_system(replication)).lsn
    assert tip > identity.consistent_point
    reached = await advance(connection, slot, tip)
    assert reached == (await show_slot(connection, slot)).confirmed_flush_lsn == tip
    with pytest.raises(SourceError, match="no slot"):
        await advance(connection, "missing", tip)


async def test_wal_level_is_checked(own_pg_server: EmbeddedPostgres, pg: str) -> None:
    """A server without logical WAL is refused with the remedy, before it is asked for a slot."""
    async with await connect(pg) as connection:
        await check_wal_level(connection)
    own_pg_server.settings["wal_level"] = "replica"
    own_pg_server.restart()
    with pytest.raises(SourceError, match="wal_level is replica") as caught:
        await create_slot(own_pg_server.dsn(), "s")
    assert "ALTER SYSTEM SET wal_level" in caught.value.hint


async def test_a_full_server_is_told_apart(own_pg_server: EmbeddedPostgres) -> None:
    """When no slot is left the remedy is named."""
    own_pg_server.settings["max_replication_slots"] = "1"
    own_pg_server.restart()
    await create_slot(own_pg_server.dsn(), "first")
    with pytest.raises(SourceError, match="no slot can be added") as caught:
        await create_slot(own_pg_server.dsn(), "second")
    assert "max_replication_slots" in caught.value.hint


async def test_roles_need_the_right(pg: str, connection: Connection, slot: str) -> None:
    """A role without REPLICATION is told which statement gives it."""
    await connection.execute(f"CREATE ROLE {slot} LOGIN".encode())
    try:
        with pytest.raises((SourceError, SourceUnavailableError), match=r"(?i)replication"):
            await create_slot(make_conninfo(pg, user=slot), slot)
    finally:
        await connection.execute(f"DROP ROLE {slot}".encode())


async def test_an_invalidated_slot_is_seen(own_pg_server: EmbeddedPostgres) -> None:
    """A slot whose WAL was removed shows as lost."""
    own_pg_server.settings |= {"max_slot_wal_keep_size": "1MB", "max_wal_size": "32MB", "min_wal_size": "32MB"}
    own_pg_server.restart()
    dsn = own_pg_server.dsn()
    await create_slot(dsn, "s")
    async with await connect(dsn) as connection:
        assert not (await show_slot(connection, "s")).lost
        await connection.execute("CREATE TABLE t (id int)")
        for number in range(4):
            await connection.execute(b"INSERT INTO t VALUES (%d)" % number)
            await connection.execute("SELECT pg_switch_wal()")
        await connection.execute("CHECKPOINT")
        info = await show_slot(connection, "s")
        assert info.lost
        with pytest.raises(SourceError):
            await advance(connection, "s", 1 << 40)


async def test_a_slot_that_nobody_reads_for_too_long_is_lost(own_pg_server: EmbeddedPostgres) -> None:
    """PostgreSQL 18 can give up idle slots: seen as lost, with cause and remedy."""
    if own_pg_server.version < 18:
        pytest.skip("idle_replication_slot_timeout came with PostgreSQL 18 (CDCSYNC_TEST_PG=18)")
    own_pg_server.settings["idle_replication_slot_timeout"] = "1s"
    own_pg_server.restart()
    await create_slot(own_pg_server.dsn(), "s")
    async with await connect(own_pg_server.dsn()) as connection:

        async def lost() -> bool:
            await connection.execute("CHECKPOINT")
            return (await show_slot(connection, "s")).lost

        await eventually_async(lost)
        (note,) = diagnose(await examine(connection, "s"), 1 << 30)
        assert note.level == "lost"
        assert "idle_replication_slot_timeout" in note.text
        assert "slot reset" in note.remedy
