"""``cdcsync resync``: what it predicts and asks for, with a daemon and without, and what the CRM holds afterwards."""

from __future__ import annotations

import json
import uuid
from pathlib import Path

import psycopg
import pytest

from tests.faults.stage import Stage, stage
from tests.faults.test_cli import LIVE, assert_equal, run

UNSEEN = {"[postgres]\n": '[postgres]\norigin = "none"\n'}
"""Leave out of the stream what comes from a replication origin."""


CHILDLESS = "INSERT INTO companies (id, name, domain) VALUES (901, 'A', 'a901.com'), (902, 'B', 'b902.com')"
"""Companies that may go without anything else."""


def write_unseen(shop: Stage, *statements: str) -> None:
    """Write as a subscription would that replicates into the database: with ``UNSEEN`` the stream leaves it out."""
    name = uuid.uuid4().hex
    with psycopg.connect(shop.dsn, autocommit=True) as connection:
        if connection.info.server_version < 160000:
            pytest.skip("the filter for origins came with PostgreSQL 16")
        connection.execute("SELECT pg_replication_origin_create(%s)", [name])
        connection.execute("SELECT pg_replication_origin_session_setup(%s)", [name])
        for statement in statements:
            connection.execute(statement.encode())
        connection.execute("SELECT pg_replication_origin_session_reset(), pg_replication_origin_drop(%s)", [name])


def phones(shop: Stage) -> dict[str, object]:
    """Return the accounts' phones by key."""
    records = shop.records("salesforce", "Account")
    return {record["key"]["External_Id__c"]: record["fields"].get("Phone") for record in records}


def open_copies(shop: Stage) -> int:
    """Count the copies that are not done."""
    return int(shop.state("SELECT count(*) FROM copy WHERE finished IS NULL"))


def test_a_resync_makes_up_for_what_the_stream_never_carried(pg: str, tmp_path: Path) -> None:
    """By condition, by key and whole: each repairs what it covers and no more; the daemon need not be restarted."""
    with stage(tmp_path, pg, changes=UNSEEN) as shop:
        shop.execute(CHILDLESS)
        shop.start()
        shop.settled()
        write_unseen(
            shop,
            "UPDATE companies SET phone = 'unseen' WHERE id <= 3",
            "DELETE FROM companies WHERE id IN (901, 902)",
        )
        predicted = json.loads(run(shop, "resync", LIVE, "--where", "id = 1", "--dry-run", "--json").out)
        assert (predicted["rows"], predicted["exact"], predicted["deletes"]) == (1, True, None)
        assert (predicted["path"], predicted["calls"], predicted["requested"]) == ("batch", 1, False)
        assert 0 < predicted["daily_share"] < 1
        assert open_copies(shop) == 0

        asked = run(shop, "resync", LIVE, "--where", "id = 1")
        assert asked.code == 0, asked.err
        assert asked.out.startswith(f"{LIVE}: 1 row of public.companies to compare with salesforce.Account\n")
        assert "cdcsync status" in asked.out
        shop.wait(lambda: phones(shop).get("1") == "unseen", "the condition's row was not read")
        shop.wait(lambda: open_copies(shop) == 0, "the resync does not end")
        assert phones(shop)["2"] != "unseen"
        assert {"901", "902"} <= phones(shop).keys()

        asked = run(shop, "resync", LIVE, "--key", "02", "--key", "901", "--json")
        predicted = json.loads(asked.out)
        assert (predicted["rows"], predicted["keys"], predicted["deletes"], predicted["requested"]) == (1, 2, 1, True)
        shop.wait(lambda: open_copies(shop) == 0, "the resync does not end")
        shop.wait(lambda: "901" not in phones(shop), "the record of the row that is gone was not deleted")
        shop.wait(lambda: phones(shop)["2"] == "unseen", "the key's row was not read")
        assert phones(shop)["3"] != "unseen"
        assert "902" in phones(shop)

        for crm in ("salesforce.Account", "hubspot.companies"):
            whole = run(shop, "resync", f"companies:{crm}")
            assert "will be deleted" in whole.out
        shop.wait(lambda: open_copies(shop) == 0, "the resync does not end")
        shop.settled()
        shop.assert_converged()


def test_a_resync_can_be_asked_for_while_the_daemon_is_down(pg: str, tmp_path: Path) -> None:
    """It is written down, shown by the status, and done by the next run; refusals leave nothing behind."""
    with stage(tmp_path, pg, changes=UNSEEN) as shop:
        shop.execute(CHILDLESS)
        assert "there is no state file" in run(shop, "resync", LIVE).err
        assert run(shop, "run", "--once").code == 0
        for options, code, words in (
            (["--where", "no_such = 1"], 1, 'column "no_such" does not exist'),
            (["--where", "id / 0 = 1"], 1, "division by zero"),
            (["--key", "abc"], 1, 'invalid input syntax for type integer: "abc"'),
            (["--key", "1", "--where", "true"], 2, "not both"),
        ):
            refused = run(shop, "resync", LIVE, *options)
            assert (refused.code, refused.out) == (code, ""), options
            assert words in refused.err
        assert run(shop, "resync", "companies").code == 2
        assert open_copies(shop) == 0

        write_unseen(
            shop, "UPDATE companies SET phone = 'unseen' WHERE id <= 3", "DELETE FROM companies WHERE id = 902"
        )
        for crm in ("salesforce.Account", "hubspot.companies"):
            assert run(shop, "resync", f"companies:{crm}").code == 0
        waiting = json.loads(run(shop, "status", "--json").out)
        (backfill,) = [entry["backfill"] for entry in waiting["maps"] if entry["name"] == LIVE]
        assert (backfill["state"], backfill["reason"]) == ("waiting", "asked for by hand")
        assert run(shop, "pause", LIVE).code == 0
        assert f"it waits because {LIVE} is paused" in run(shop, "resync", LIVE).out
        assert run(shop, "run", "--once").code == 0
        assert phones(shop)["1"] != "unseen"
        assert open_copies(shop) == 1
        assert run(shop, "resume", LIVE).code == 0
        assert run(shop, "run", "--once").code == 0
        assert open_copies(shop) == 0
        assert_equal(shop)


def test_a_condition_that_fails_later_ends_only_its_own_resync(pg: str, tmp_path: Path) -> None:
    """A condition that was fine when it was asked for, and fails on a later row, is given up; the daemon goes on."""
    with stage(tmp_path, pg) as shop:
        assert run(shop, "run", "--once").code == 0
        assert run(shop, "resync", LIVE, "--where", "10 / length(name) > 0").code == 0
        shop.execute("UPDATE companies SET name = '' WHERE id = 1")
        shop.start()
        shop.wait(
            lambda: shop.state("SELECT count(*) FROM copy WHERE error LIKE '%division by zero%'") == 1, "no error"
        )
        shop.execute("UPDATE companies SET name = 'Again' WHERE id = 1")
        shop.settled()
        shop.assert_converged()


def test_a_table_comes_into_the_config_and_leaves_it(pg: str, tmp_path: Path) -> None:
    """Its copy waits for who wrote before it was published, and says so; one that is taken out is published no more."""
    with stage(tmp_path, pg) as shop:
        full = shop.config.read_text(encoding="utf-8")
        head, one, *_ = full.split("[[map]]")
        shop.config.write_text(f"{head}[[map]]{one}", encoding="utf-8")
        assert run(shop, "run", "--once").code == 0
        assert published(shop) == {"companies"}

        shop.config.write_text(full, encoding="utf-8")
        with psycopg.connect(pg) as writer:
            writer.execute("UPDATE orders SET title = 'Unseen' WHERE id = 1")
            shop.start()
            shop.wait(lambda: waits(shop, "orders:hubspot.deals") != "", "the copy does not wait")
            assert f"process {writer.info.backend_pid}" in waits(shop, "orders:hubspot.deals")
            assert "transactions that wrote to the table before" in run(shop, "status").out
            shop.wait(lambda: waits(shop, "companies:hubspot.companies") == "", "companies wait, too")
        shop.settled()
        shop.assert_converged()
        assert published(shop) == {"companies", "customers", "orders"}
        assert shop.stop() == 0

        shop.config.write_text(f"{head}[[map]]{one}", encoding="utf-8")
        shop.start()
        shop.wait(lambda: shop.snapshot() is not None, "the daemon does not come back")
        assert published(shop) == {"companies"}
        assert shop.state("SELECT count(*) FROM copy WHERE mapping <> 'companies:salesforce.Account'") == 0
        assert shop.stop() == 0


def published(shop: Stage) -> set[str]:
    """Name the tables that the publication covers."""
    return {str(name) for (name,) in shop.execute("SELECT tablename::text FROM pg_publication_tables")}


def waits(shop: Stage, mapping: str) -> str:
    """Return what a mapping's copy waits for, in words."""
    snapshot = shop.snapshot()
    found = [entry.backfill.waits_for for entry in snapshot.maps if entry.name == mapping] if snapshot else []
    return next(filter(None, found), "")
