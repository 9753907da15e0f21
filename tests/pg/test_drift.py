"""Tables that change under their mappings, while streaming and while down, under each policy; one real daemon each."""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import psycopg
import pytest
import structlog

from cdcsync.config import Config
from cdcsync.demo.processes import get_json
from cdcsync.entries import CopyState, Tick
from cdcsync.errors import ConfigError, SourceError
from cdcsync.sandbox.server import SandboxThread
from cdcsync.service import Service
from cdcsync.slot_life import make_slot
from cdcsync.state import State
from tests.polling import eventually_async
from tests.servers import needs

TABLE = "CREATE TABLE t (id text PRIMARY KEY, name text, domain text, note text)"
OTHER = "CREATE TABLE u (id text PRIMARY KEY, email text)"
FIELDS = {"name": "name", "domain": "domain"}


@dataclass
class Scene:
    """A database with two mapped tables, a sandbox HubSpot, and a daemon that is run in this process."""

    dsn: str
    sandbox: SandboxThread
    directory: Path
    policy: str = "pause"
    fields: dict[str, Any] = field(default_factory=lambda: dict(FIELDS))
    table: str = "t"
    key: str = "id"
    create: bool = True

    def config(self) -> Config:
        slot = psycopg.conninfo.conninfo_to_dict(self.dsn)["dbname"]
        document = {
            "postgres": {"dsn": self.dsn, "slot": slot, "create": self.create},
            "batch": {"max_wait": "10ms"},
            "state": {"path": str(self.directory / "state.db")},
            "status": {"listen": "off"},
            "crm": {"hubspot": {"token": {"env": "TOKEN"}, "base_url": self.sandbox.url}},
            "map": [
                {
                    "name": "t",
                    "table": self.table,
                    "to": "hubspot.companies",
                    "key": {"company_id": self.key},
                    "fields": self.fields,
                    "on_drift": self.policy,
                },
                {"name": "u", "table": "u", "to": "hubspot.contacts", "key": {"customer_id": "id"},
                 "fields": {"email": "email"}},
            ],
        }  # fmt: skip
        return Config.model_validate(document, context={"environ": {"TOKEN": "pat-na1-tests"}})

    async def execute(self, *statements: str) -> None:
        """Run statements, in a thread: the daemon in this one may hold locks that they wait for."""
        await asyncio.to_thread(self.execute_first, *statements)

    def execute_first(self, *statements: str) -> None:
        with psycopg.connect(self.dsn, autocommit=True) as connection:
            for statement in statements:
                connection.execute(statement.encode())

    def records(self, name: str = "companies") -> dict[str, dict[str, Any]]:
        """Return the live records by external key."""
        key = {"companies": "company_id", "contacts": "customer_id"}[name]
        found = get_json(f"{self.sandbox.admin_url}/records?object={name}")
        return {one["fields"][key]: one["fields"] for one in found if not one["archived"]}

    def values(self, field: str) -> dict[str, str | None]:
        return {key: record.get(field) for key, record in self.records().items()}

    def paused(self) -> str | None:
        with contextlib.closing(State.read(self.directory / "state.db")) as state:
            return state.paused().get("t")

    def copies(self) -> list[CopyState]:
        with contextlib.closing(State.read(self.directory / "state.db")) as state:
            return state.copies()

    def resume(self) -> None:
        with contextlib.closing(State.beside(self.directory / "state.db")) as state:
            assert state.resume("t")

    async def until_paused(self, words: str) -> None:
        await eventually_async(lambda: words in (self.paused() or ""), what=f"no pause for {words!r}: {self.paused()}")

    async def until(self, field: str, **expected: str | None) -> None:
        await eventually_async(lambda: self.values(field) == expected, what=f"{self.records()} is not {expected}")

    async def the_others_go_on(self) -> None:
        """See that the other mapping is served."""
        key = uuid.uuid4().hex
        await self.execute(f"INSERT INTO u VALUES ('{key}', '{key}@example.com')")
        await eventually_async(lambda: key in self.records("contacts"), what="the other mapping stands still")

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[asyncio.Task[None]]:
        """Run the daemon; it is stopped in good order, unless it has ended by itself."""
        service = Service(self.config(), structlog.get_logger())
        task = asyncio.ensure_future(service.run())
        try:
            yield task
        finally:
            service.stopping.set()
            await asyncio.wait([task], timeout=30)
        if not task.cancelled():
            task.result()


@pytest.fixture
def scene(pg: str, hubspot_sandbox: SandboxThread, tmp_path: Path) -> Scene:
    """Give a scene whose table has two rows."""
    scene = Scene(pg, hubspot_sandbox, tmp_path)
    scene.execute_first(TABLE, OTHER, "INSERT INTO t VALUES ('1', 'One', 'one.com', 'x'), ('2', 'Two', 'two.com', 'x')")
    return scene


async def in_step(scene: Scene) -> None:
    """Wait until the first copy is in the CRM."""
    await scene.until("name", **{"1": "One", "2": "Two"})


async def test_what_is_not_mapped_is_nothing_to_talk_about(scene: Scene) -> None:
    """Columns come, go and change their types beside the mapping: rows go on, nothing is paused."""
    async with scene.running():
        await in_step(scene)
        await scene.execute(
            "ALTER TABLE t DROP COLUMN note",
            "UPDATE t SET name = 'A' WHERE id = '1'",
            "ALTER TABLE t ADD COLUMN extra int DEFAULT 5",
            "UPDATE t SET name = 'B' WHERE id = '2'",
            "ALTER TABLE t RENAME COLUMN extra TO more",
            "INSERT INTO t (id, name) VALUES ('3', 'C')",
        )
        await scene.until("name", **{"1": "A", "2": "B", "3": "C"})
    assert scene.paused() is None


LOST_COLUMN = {
    "dropped": "ALTER TABLE t DROP COLUMN domain",
    "renamed": "ALTER TABLE t RENAME COLUMN domain TO site",
    "binary": "ALTER TABLE t ALTER COLUMN domain TYPE bytea USING domain::bytea",
}


@pytest.mark.parametrize("change", LOST_COLUMN.values(), ids=LOST_COLUMN)
async def test_a_mapped_column_that_vanishes_pauses_its_mapping_alone(scene: Scene, change: str) -> None:
    """The others go on; what changed, came and went meanwhile arrives once the mapping is corrected and resumed."""
    async with scene.running():
        await in_step(scene)
        await scene.execute(change, "UPDATE t SET name = 'A' WHERE id = '1'")
        await scene.until_paused("domain")
        await scene.execute("DELETE FROM t WHERE id = '2'", "INSERT INTO t (id, name) VALUES ('3', 'C')")
        await scene.the_others_go_on()
        assert scene.values("name") == {"1": "One", "2": "Two"}
    scene.fields = {"name": "name"}
    async with scene.running():
        await scene.the_others_go_on()
        assert scene.values("name") == {"1": "One", "2": "Two"}
        scene.resume()
        await scene.until("name", **{"1": "A", "3": "C"})
        await scene.until("domain", **{"1": "one.com", "3": None})


async def test_a_mended_table_is_taken_up_without_a_restart(scene: Scene) -> None:
    """When the column is back, resume is all it takes; resumed too early the mapping is paused again."""
    async with scene.running():
        await in_step(scene)
        await scene.execute("ALTER TABLE t RENAME COLUMN domain TO site", "UPDATE t SET name = 'A' WHERE id = '1'")
        await scene.until_paused("domain")
        scene.resume()
        await scene.until_paused("domain")
        await scene.execute("ALTER TABLE t RENAME COLUMN site TO domain", "DELETE FROM t WHERE id = '2'")
        scene.resume()
        await scene.until("name", **{"1": "A"})
        await scene.execute("UPDATE t SET domain = 'new.com'")
        await scene.until("domain", **{"1": "new.com"})


async def test_with_warn_the_mapping_goes_on_with_what_is_left(scene: Scene) -> None:
    """The field of a vanished column is left alone, while streaming and after a restart."""
    scene.policy = "warn"
    async with scene.running():
        await in_step(scene)
        await scene.execute("ALTER TABLE t DROP COLUMN domain", "UPDATE t SET name = 'A' WHERE id = '1'")
        await scene.until("name", **{"1": "A", "2": "Two"})
        assert scene.values("domain") == {"1": "one.com", "2": "two.com"}
    async with scene.running():
        await scene.execute("UPDATE t SET name = 'B' WHERE id = '1'")
        await scene.until("name", **{"1": "B", "2": "Two"})
        assert scene.values("domain") == {"1": "one.com", "2": "two.com"}
    assert scene.paused() is None


@pytest.mark.parametrize("down", [False, True], ids=["streaming", "down"])
async def test_with_fail_the_daemon_ends(scene: Scene, down: bool) -> None:  # noqa: FBT001 - a parameter of the test
    """A sentence names mapping and column."""
    scene.policy = "fail"
    with pytest.raises(SourceError, match=r"map t: .*domain"):
        await ended_by(scene, "ALTER TABLE t DROP COLUMN domain", "UPDATE t SET name = 'A' WHERE id = '1'", down=down)


@contextlib.asynccontextmanager
async def altered_by(scene: Scene, *statements: str, down: bool) -> AsyncIterator[None]:
    """Run the daemon on a table that was altered beside it, or while it was down."""
    async with scene.running():
        await in_step(scene)
        if not down:
            await scene.execute(*statements)
            yield
    if down:
        await scene.execute(*statements)
        async with scene.running():
            yield


async def ended_by(scene: Scene, *statements: str, down: bool) -> None:
    """Wait for the daemon to end by itself after this was done beside it, or while it was down."""
    async with scene.running() as task:
        await in_step(scene)
        if not down:
            await scene.execute(*statements)
            await asyncio.wait([task], timeout=30)
    await scene.execute(*statements)
    async with scene.running() as task:
        await asyncio.wait([task], timeout=30)


@pytest.mark.parametrize("policy", ["pause", "warn"])
async def test_a_lost_key_column_pauses_whatever_the_policy(scene: Scene, policy: str) -> None:
    """Without its key no row is anybody's."""
    scene.policy = policy
    async with scene.running():
        await in_step(scene)
        await scene.execute("ALTER TABLE t RENAME COLUMN id TO code", "UPDATE t SET name = 'A' WHERE code = '1'")
        await scene.until_paused("id")
        await scene.the_others_go_on()


async def test_a_column_of_another_type_pauses_and_keeps_its_rows(scene: Scene) -> None:
    """Rows that still mean something wait, and go when the mapping is resumed, without a copy of the table."""
    async with scene.running():
        await in_step(scene)
        await scene.execute("ALTER TABLE t ALTER COLUMN name TYPE int USING 7")
        await scene.until_paused("another type")
        await scene.execute("UPDATE t SET name = 8 WHERE id = '1'", "DELETE FROM t WHERE id = '2'")
        await scene.the_others_go_on()
        assert scene.values("name") == {"1": "One", "2": "Two"}
        scene.resume()
        await scene.until("name", **{"1": "8"})
        await scene.execute("UPDATE t SET name = 9")
        await scene.until("name", **{"1": "9"})
    assert scene.paused() is None


async def test_a_type_of_the_same_kind_is_no_drift(scene: Scene) -> None:
    """A varchar is text to a CRM."""
    async with scene.running():
        await in_step(scene)
        await scene.execute(
            "ALTER TABLE t ALTER COLUMN name TYPE varchar(80)", "UPDATE t SET name = 'A' WHERE id = '1'"
        )
        await scene.until("name", **{"1": "A", "2": "Two"})
    assert scene.paused() is None


@pytest.mark.parametrize("down", [False, True], ids=["streaming", "down"])
@pytest.mark.parametrize("policy", ["pause", "warn"])
async def test_a_renamed_table_is_the_same_table(scene: Scene, policy: str, *, down: bool) -> None:
    """Its changes are kept while the mapping is paused, and go on at once with warn."""
    scene.policy = policy
    rename = ["ALTER TABLE t RENAME TO t2", "UPDATE t2 SET name = 'A' WHERE id = '1'", "DELETE FROM t2 WHERE id = '2'"]
    async with scene.running():
        await in_step(scene)
        if not down:
            await scene.execute(rename[0])
            if policy == "pause":
                await scene.until_paused("renamed to public.t2")
            await scene.execute(*rename[1:])
            await _after_rename(scene, policy)
    if down:
        await scene.execute(*rename)
        async with scene.running():
            await _after_rename(scene, policy)
    scene.table = "t2"
    async with scene.running():
        await scene.execute("UPDATE t2 SET name = 'B'")
        await scene.until("name", **{"1": "B"})


async def _after_rename(scene: Scene, policy: str) -> None:
    if policy == "pause":
        await scene.until_paused("renamed to public.t2")
        await scene.the_others_go_on()
        assert scene.values("name") == {"1": "One", "2": "Two"}
        scene.resume()
    await scene.until("name", **{"1": "A"})


@pytest.mark.parametrize("down", [False, True], ids=["streaming", "down"])
async def test_a_dropped_table_pauses_and_deletes_nothing(scene: Scene, *, down: bool) -> None:
    """Its records stay; a new table of the name is compared when a person says so, and only then."""
    async with scene.running():
        await in_step(scene)
        if not down:
            await scene.execute("DROP TABLE t")
            await scene.until_paused("was dropped")
            await scene.the_others_go_on()
    if down:
        await scene.execute("DROP TABLE t")
    async with scene.running():
        await scene.until_paused("was dropped")
        await scene.execute(TABLE, "INSERT INTO t VALUES ('1', 'New', 'new.com', '')")
        await scene.the_others_go_on()
        assert scene.values("name") == {"1": "One", "2": "Two"}
        scene.resume()
        await scene.until("name", **{"1": "New"})
        await scene.execute("INSERT INTO t VALUES ('3', 'Three', 'three.com', '')")
        await scene.until("name", **{"1": "New", "3": "Three"})


@pytest.mark.parametrize("down", [False, True], ids=["streaming", "down"])
@pytest.mark.parametrize("policy", ["pause", "warn"])
async def test_a_table_made_anew_is_compared(scene: Scene, policy: str, *, down: bool) -> None:
    """A table of another birth is published again and compared: at once with warn, when resumed else."""
    scene.policy = policy
    anew = f"BEGIN; DROP TABLE t; {TABLE}; INSERT INTO t VALUES ('1', 'New', 'new.com', ''); COMMIT"
    async with altered_by(scene, anew, down=down):
        await _after_made_anew(scene, policy)


async def _after_made_anew(scene: Scene, policy: str) -> None:
    if policy == "pause":
        await scene.until_paused("another table")
        assert scene.values("name") == {"1": "One", "2": "Two"}
        scene.resume()
    await scene.until("name", **{"1": "New"})
    await scene.execute("INSERT INTO t VALUES ('3', 'Three', 'three.com', '')")
    await scene.until("name", **{"1": "New", "3": "Three"})


UNFIT = {"nothing": "ALTER TABLE t REPLICA IDENTITY NOTHING", "no key": "ALTER TABLE t DROP CONSTRAINT t_pkey"}


@pytest.mark.parametrize("down", [False, True], ids=["streaming", "down"])
@pytest.mark.parametrize("change", UNFIT.values(), ids=UNFIT)
async def test_a_lost_identity_does_not_break_the_application(scene: Scene, change: str, *, down: bool) -> None:
    """The table is taken out of our publication, so its UPDATE works; resumed with an identity, it is compared."""
    async with scene.running():
        await in_step(scene)
        if not down:
            await scene.execute(change)
            await scene.until_paused("UPDATE and DELETE would fail")
    if down:
        await scene.execute(change)
    async with scene.running():
        await scene.until_paused("UPDATE and DELETE would fail")
        await eventually_async(lambda: _updates(scene), what="the application's UPDATE fails")
        await scene.execute("DELETE FROM t WHERE id = '2'")
        await scene.the_others_go_on()
        await scene.execute(
            "ALTER TABLE t REPLICA IDENTITY DEFAULT",
            "ALTER TABLE t DROP CONSTRAINT IF EXISTS t_pkey",
            "ALTER TABLE t ADD PRIMARY KEY (id)",
        )
        scene.resume()
        await scene.until("name", **{"1": "A"})
        await scene.execute("UPDATE t SET name = 'B'")
        await scene.until("name", **{"1": "B"})


async def _updates(scene: Scene) -> bool:
    try:
        await scene.execute("UPDATE t SET name = 'A' WHERE id = '1'")
    except psycopg.errors.ObjectNotInPrerequisiteState:
        return False
    return True


async def test_a_full_or_index_identity_goes_on(scene: Scene) -> None:
    """Identities that hold the key are as good as a primary key."""
    async with scene.running():
        await in_step(scene)
        await scene.execute("ALTER TABLE t REPLICA IDENTITY FULL", "UPDATE t SET name = 'A' WHERE id = '1'")
        await scene.until("name", **{"1": "A", "2": "Two"})
        await scene.execute(
            "CREATE UNIQUE INDEX other ON t (id)",
            "ALTER TABLE t REPLICA IDENTITY USING INDEX other",
            "UPDATE t SET name = 'B' WHERE id = '1'",
            "DELETE FROM t WHERE id = '2'",
        )
        await scene.until("name", **{"1": "B"})
    assert scene.paused() is None


async def test_an_identity_without_the_key_pauses(scene: Scene) -> None:
    """Deletes would not carry the key."""
    await scene.execute("ALTER TABLE t ALTER COLUMN name SET NOT NULL")
    async with scene.running():
        await in_step(scene)
        await scene.execute(
            "CREATE UNIQUE INDEX other ON t (name)",
            "ALTER TABLE t REPLICA IDENTITY USING INDEX other",
            "UPDATE t SET domain = 'a.com' WHERE id = '1'",
        )
        await scene.until_paused("replica identity")
        await scene.the_others_go_on()


OUT = "ALTER PUBLICATION cdcsync"
ALTERED = {
    "table": (f"{OUT} DROP TABLE t", f"{OUT} ADD TABLE t"),
    "kinds": (f"{OUT} SET (publish = 'insert')", f"{OUT} SET (publish = 'insert, update, delete, truncate')"),
}


@pytest.mark.parametrize("down", [False, True], ids=["streaming", "down"])
@pytest.mark.parametrize("restored", [False, True], ids=["left", "restored"])
@pytest.mark.parametrize("altered", ALTERED.values(), ids=ALTERED)
async def test_an_altered_publication_is_put_right_and_compared(
    scene: Scene, altered: tuple[str, str], *, restored: bool, down: bool
) -> None:
    """Rows written while the table was out of it arrive all the same, also if somebody put it back before we looked."""
    gap = [altered[0], "UPDATE t SET name = 'A' WHERE id = '1'", "DELETE FROM t WHERE id = '2'"]
    gap += [altered[1]] if restored else []
    async with altered_by(scene, *gap, down=down):
        await _after_gap(scene)


@pytest.mark.parametrize("altered", ALTERED.values(), ids=ALTERED)
async def test_somebody_elses_publication_pauses_what_it_does_not_carry(scene: Scene, altered: tuple[str, str]) -> None:
    """With create = false the SQL is told; once it was run, and the mapping resumed, the table is compared."""
    await make_slot(scene.config(), structlog.get_logger())
    scene.create = False
    async with scene.running():
        await in_step(scene)
        await scene.execute(altered[0], "UPDATE t SET name = 'A' WHERE id = '1'", "DELETE FROM t WHERE id = '2'")
        await scene.until_paused("ALTER PUBLICATION")
        assert scene.values("name") == {"1": "One", "2": "Two"}
        await scene.execute(altered[1])
        scene.resume()
        await scene.until("name", **{"1": "A"})


async def _after_gap(scene: Scene) -> None:
    await scene.until("name", **{"1": "A"})
    await scene.execute("UPDATE t SET name = 'B'")
    await scene.until("name", **{"1": "B"})


@pytest.mark.parametrize("down", [False, True], ids=["streaming", "down"])
async def test_a_dropped_publication_is_an_alarm_and_a_comparison(scene: Scene, *, down: bool) -> None:
    """From 18 on the stream leaves rows out in silence: all is compared. Before, the slot is stuck: the daemon ends."""
    gap = ["DROP PUBLICATION cdcsync", "UPDATE t SET name = 'A' WHERE id = '1'", "DELETE FROM t WHERE id = '2'"]
    with psycopg.connect(scene.dsn) as connection:
        modern = connection.info.server_version >= 180000
    if not modern:
        with pytest.raises(SourceError, match="publication"):
            await ended_by(scene, *gap, down=down)
        return
    async with altered_by(scene, *gap, down=down):
        await _after_gap(scene)


LESS = {
    "filter": ("t WHERE (id = '1')", "sends only rows of public.t"),
    "columns": ("t (id, name)", "no column domain"),
}
"""How a publication comes to carry less of a table, and words of the reason for the pause."""


@pytest.mark.parametrize(("listed", "words"), LESS.values(), ids=LESS)
async def test_a_publication_that_is_not_ours_to_mend_pauses_what_it_carries_no_more(
    scene: Scene, listed: str, words: str
) -> None:
    """A filter that the mapping does not know would look like rows that are gone: none of their records is deleted."""
    needs(scene.dsn, 15)
    async with scene.running():
        await in_step(scene)
    scene.create = False
    async with scene.running():
        await scene.the_others_go_on()
        await scene.execute(f"ALTER PUBLICATION cdcsync SET TABLE ONLY {listed}, ONLY u")
        await scene.until_paused(words)
        await scene.the_others_go_on()
        await scene.execute("UPDATE t SET name = 'A'")
        await scene.execute("ALTER PUBLICATION cdcsync SET TABLE ONLY t, ONLY u")
        assert scene.values("name") == {"1": "One", "2": "Two"}
        scene.resume()
        await scene.until("name", **{"1": "A", "2": "A"})


IN_PLACE = {
    "rewritten": "ALTER TABLE t ALTER COLUMN name TYPE text USING upper(name)",
    "made anew": "ALTER TABLE t DROP COLUMN name, ADD COLUMN name text DEFAULT 'NEW'",
}


@pytest.mark.parametrize("down", [False, True], ids=["streaming", "down"])
@pytest.mark.parametrize("change", IN_PLACE.values(), ids=IN_PLACE)
async def test_a_column_that_changes_in_place_is_compared(scene: Scene, change: str, *, down: bool) -> None:
    """DDL changes all rows without a word in the stream: the table is read again."""
    expected = {"1": "ONE", "2": "TWO"} if "upper" in change else {"1": "NEW", "2": "NEW"}
    async with altered_by(scene, change, down=down):
        await scene.until("name", **expected)
    assert scene.paused() is None


LATER = {
    "added": (
        "ALTER TABLE t ADD COLUMN site text DEFAULT 'x.com'",
        {"name": "name", "domain": "site"},
        {"1": "A", "3": "C"},
        {"1": "x.com", "3": "x.com"},
    ),
    "renamed": (
        "ALTER TABLE t RENAME COLUMN domain TO site",
        {"name": "name", "domain": "site"},
        {"1": "A", "3": "C"},
        {"1": "one.com", "3": "c.com"},
    ),
    "retyped": (
        "ALTER TABLE t ALTER COLUMN name TYPE int USING 7",
        {"name": "name", "domain": "note"},
        {"1": "7", "3": "7"},
        {"1": "n.com", "3": "n.com"},
    ),
}
"""What happens to the table, the mapping's fields afterwards, and what the CRM is to hold then."""


@pytest.mark.parametrize("policy", ["pause", "fail"])
@pytest.mark.parametrize("later", LATER.values(), ids=LATER)
async def test_table_and_mapping_may_change_together_while_unread_rows_wait(
    scene: Scene, policy: str, later: tuple[str, dict[str, str], dict[str, str], dict[str, str]]
) -> None:
    """Rows written in the old shape are no drift to the new mapping: they are read as far as they go."""
    change, fields, names, domains = later
    scene.policy = policy
    async with scene.running():
        await in_step(scene)
    await scene.execute("UPDATE t SET name = 'A' WHERE id = '1'", "DELETE FROM t WHERE id = '2'")
    await scene.execute("INSERT INTO t VALUES ('3', 'C', 'c.com', 'n.com')", "UPDATE t SET note = 'n.com'", change)
    scene.fields = fields
    async with scene.running():
        await scene.until("name", **names)
        await scene.until("domain", **domains)
    assert scene.paused() is None


async def test_a_key_that_moves_to_another_column_with_unread_rows_is_compared(scene: Scene) -> None:
    """Rows that the new mapping cannot read by their key are made up for by a comparison."""
    async with scene.running():
        await in_step(scene)
    await scene.execute(
        "UPDATE t SET name = 'A' WHERE id = '1'",
        "DELETE FROM t WHERE id = '2'",
        "ALTER TABLE t RENAME COLUMN id TO code",
    )
    scene.key = "code"
    async with scene.running():
        await scene.until("name", **{"1": "A"})
    assert scene.paused() is None


async def test_a_copy_does_not_go_on_by_another_key(scene: Scene) -> None:
    """Rows that the new order has before the old cursor are neither left out nor taken for gone."""
    await scene.execute("INSERT INTO t VALUES ('3', '0')")
    async with scene.running():
        await scene.until("name", **{"1": "One", "2": "Two", "3": "0"})
    with contextlib.closing(State.open(scene.directory / "state.db")) as state:
        state.request_resync("t", "by the test", 0.0)
        number = next(copy.id for copy in state.copies() if copy.mapping == "t")
        copy = replace(state.begin_copy(number), cursor=("2",), order=("id",), rows=2)
        met = [(number, "1"), (number, "2")]
        checkpoint = state.checkpoint()
        state.write(Tick(checkpoint.durable_lsn, checkpoint.position, copies=[copy], met=met))
    await scene.execute(
        "ALTER TABLE t DROP CONSTRAINT t_pkey, ALTER COLUMN name SET NOT NULL",
        "ALTER TABLE t ADD PRIMARY KEY (name)",
        "ALTER TABLE t REPLICA IDENTITY FULL",
    )
    async with scene.running():
        await eventually_async(lambda: not scene.copies(), what="the copies are not done")
        await scene.the_others_go_on()
    records = get_json(f"{scene.sandbox.admin_url}/records?object=companies")
    assert [record["archived"] for record in records] == [False, False, False]


async def test_a_changed_mapping_is_compared(scene: Scene) -> None:
    """A field added to the config reaches the rows that do not change."""
    scene.fields = {"name": "name"}
    async with scene.running():
        await in_step(scene)
        assert scene.values("domain") == {"1": None, "2": None}
    scene.fields = dict(FIELDS)
    async with scene.running():
        await scene.until("domain", **{"1": "one.com", "2": "two.com"})


async def test_a_deferrable_key_is_refused_at_the_start(scene: Scene) -> None:
    """Two rows may share it inside a transaction: ``SET id = id + 1`` would be followed wrongly."""
    await scene.execute(
        "ALTER TABLE t DROP CONSTRAINT t_pkey, ADD PRIMARY KEY (id) DEFERRABLE", "ALTER TABLE t REPLICA IDENTITY FULL"
    )
    with pytest.raises(SourceError, match="unique only at the end of a transaction"):
        await Service(scene.config(), structlog.get_logger()).run()


async def test_a_mistake_in_a_new_mapping_is_a_config_error(scene: Scene) -> None:
    """Only what fitted before can drift: a wrong column in the config ends the start, whatever the policy."""
    scene.policy = "warn"
    scene.fields = {"name": "nmae"}
    with pytest.raises(ConfigError, match="nmae"):
        await Service(scene.config(), structlog.get_logger()).run()
