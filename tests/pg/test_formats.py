"""Whatever stands between: values are read as they are printed, or the stream does not start."""

from __future__ import annotations

import asyncio

import pytest

from cdcsync.errors import SourceError
from cdcsync.wal.catalog import rows
from cdcsync.wal.connect import connect
from cdcsync.wal.formats import verify_formats
from cdcsync.wal.tuples import split_tuple
from tests.pg.reading import Reader, Setup, reading
from tests.proxy import Proxy

ADVERSE = {
    "datestyle": "German, DMY",
    "intervalstyle": "iso_8601",
    "bytea_output": "escape",
    "extra_float_digits": "-10",
    "timezone": "Asia/Kolkata",
    "client_encoding": "LATIN1",
}


async def make_adverse(db: Setup, *names: str) -> None:
    """Set what would change the texts, for the whole database."""
    ((name,),) = await rows(db.connection, "SELECT current_database()")
    for setting in names:
        await db.execute(f"ALTER DATABASE \"{name}\" SET {setting} = '{ADVERSE[setting]}'")


async def test_pins_outweigh_every_setting_of_the_database(db: Setup) -> None:
    """With all of them set against us, both kinds of connection print what is expected, and so do rows."""
    await make_adverse(db, *ADVERSE)
    async with await connect(db.dsn) as ordinary, await connect(db.dsn, replication=True) as replication:
        await verify_formats(ordinary, "ordinary")
        await verify_formats(replication, "replication")
    async with reading(db) as reader:
        await db.execute("INSERT INTO t VALUES (1, 'Größe €')")
        await reader.commits_reach(1)
    assert split_tuple(reader.changes[0].new or b"")[1] == "Größe €".encode()


@pytest.mark.parametrize("setting", ADVERSE)
async def test_dropped_options_are_noticed(db: Setup, setting: str) -> None:
    """A proxy that drops the connection's options is refused at the first connection, and the setting is named."""
    await make_adverse(db, setting)
    with Proxy(db.dsn) as proxy:
        proxy.drop_parameters("options", "client_encoding")
        reader = Reader(proxy.dsn, db.slot)
        with pytest.raises(SourceError, match=f"{setting} is not as cdcsync sets it") as caught:
            await asyncio.wait_for(reader.source.run(db.start, db.identity), 20)
        assert "pooler" in caught.value.hint
    assert reader.connections == 0


async def test_the_replication_connection_is_asked_too(db: Setup) -> None:
    """The walsender's own texts are looked at, not only those of ordinary sessions."""
    await make_adverse(db, "bytea_output")
    with Proxy(db.dsn) as proxy:
        proxy.drop_parameters("options")
        async with await connect(proxy.dsn, replication=True) as replication:
            with pytest.raises(SourceError, match="the replication connection prints decode"):
                await verify_formats(replication, "replication")


async def test_dropped_options_that_change_nothing_are_fine(db: Setup) -> None:
    """What counts is what is printed: a server whose own settings are as ours needs no pins."""
    await db.execute(
        "DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET timezone = ''UTC''', current_database()); END $$"
    )
    with Proxy(db.dsn) as proxy:
        proxy.drop_parameters("options")
        async with reading(db, dsn=proxy.dsn) as reader:
            await db.execute("INSERT INTO t VALUES (1)")
            await reader.commits_reach(1)
    assert reader.keys == [b"1"]
