"""``cdcsync rejects`` as people and scripts use it, beside a running daemon and without one."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path

from tests.faults.stage import Stage, stage
from tests.faults.test_cli import run

CONTACTS = "customers:salesforce.Contact"
CODE = "INVALID_EMAIL_ADDRESS"


def parked(shop: Stage) -> int:
    """Count the contacts that are parked in the state file."""
    return int(shop.state(f"SELECT count(*) FROM reject WHERE NOT discarded AND code = '{CODE}'"))


def break_rows(shop: Stage, rows: int) -> list[str]:
    """Let customers have an address that no CRM takes, and wait until they are parked; returns their keys."""
    shop.start()
    shop.settled()
    shop.execute(
        "UPDATE customers SET email = '=no address ' || id WHERE id IN "
        f"(SELECT id FROM customers ORDER BY id LIMIT {rows})"
    )
    shop.wait(lambda: parked(shop) == rows, "they were not refused")
    return sorted(key for (key,) in shop.execute("SELECT id::text FROM customers WHERE email LIKE '=no %'"))


def assert_told(shop: Stage, keys: Sequence[str]) -> None:
    """See that list and show tell of these rows, as text and as JSON."""
    told = run(shop, "rejects", "list", CONTACTS)
    assert told.out.startswith(f"{CONTACTS}: {len(keys)} rows, {CODE} (Email)\n    first "), told
    assert "; is tried again in " in told.out
    assert "    → correct the address in the database" in told.out
    (group,) = map(json.loads, run(shop, "rejects", "list", CONTACTS, "--json").out.splitlines())
    assert (group["mapping"], group["code"], group["field"], group["rows"]) == (CONTACTS, CODE, "Email", len(keys))
    assert group["next_try"] > group["last"] >= group["first"]

    shown = json.loads(run(shop, "rejects", "show", CONTACTS, keys[0], "--json").out)
    assert (shown["key"], shown["code"], shown["refusals"]) == (keys[0], CODE, 1)
    assert shown["record"]["Email"] == shown["row"]["email"] == f"=no address {keys[0]}"
    text = run(shop, "rejects", "show", CONTACTS, keys[0]).out
    assert "would be sent:\n" in text
    assert f"=no address {keys[0]}" in text


def assert_exported(shop: Stage, keys: Sequence[str], target: Path) -> None:
    """See that exports hold these rows, for their owner alone, and overwrite nothing."""
    lines = run(shop, "rejects", "export", CONTACTS).out.splitlines()
    assert [json.loads(line)["key"] for line in lines] == keys
    run(shop, "rejects", "export", CONTACTS, "--format", "csv", "-o", str(target))
    assert target.stat().st_mode & 0o777 == 0o600
    with target.open(encoding="utf-8", newline="") as file:
        exported = list(csv.DictReader(file))
    assert [entry["cdcsync_key"] for entry in exported] == keys
    assert [entry["email"] for entry in exported] == [f"'=no address {key}" for key in keys]
    again = run(shop, "rejects", "export", CONTACTS, "-o", str(target))
    assert again.code == 2
    assert "cannot make" in again.err


def test_parked_rows_are_shown_and_exported(pg: str, tmp_path: Path) -> None:
    """With the daemon and without it; no value of a row is ever in a log, nor in what is asked for wrongly."""
    with stage(tmp_path, pg) as shop:
        assert run(shop, "rejects", "list").code == 1  # no daemon was ever started
        keys = break_rows(shop, 4)
        assert_told(shop, keys)
        assert_exported(shop, keys, tmp_path / "beside.csv")
        assert shop.stop() == 0
        assert_told(shop, keys)
        assert_exported(shop, keys, tmp_path / "alone.csv")
        assert "no address" not in shop.log()
        assert run(shop, "rejects", "show", CONTACTS, "nobody").code == 1
        for wrong in (["retry"], ["retry", "nothing"], ["export", CONTACTS, "--format", "xls"], ["list", "nothing"]):
            said = run(shop, "rejects", *wrong)
            assert (said.out, said.code) == ("", 2)


def test_parked_rows_are_retried_and_given_up(pg: str, tmp_path: Path) -> None:
    """What was asked of no daemon is done at the next start, and what a running one is asked within seconds."""
    with stage(tmp_path, pg) as shop:
        first, second, *_ = break_rows(shop, 4)
        assert shop.stop() == 0
        refused = run(shop, "rejects", "discard", CONTACTS, typed="another\n")
        assert (refused.out, refused.code) == ("", 2)
        assert "4 rejected rows of" in refused.err
        none = run(shop, "rejects", "discard", CONTACTS, "--code", "OTHER", "--confirm", CONTACTS)
        assert (none.out, none.code) == ("No rejected row matches; nothing was asked for.\n", 0)
        asked = run(shop, "rejects", "discard", CONTACTS, "--key", first, typed=f"{CONTACTS}\n")
        assert asked.out.startswith("1 rejected row to be given up: "), asked.err

        shop.start()
        shop.wait(lambda: parked(shop) == 3, "the row was not given up")
        snapshot = shop.snapshot()
        assert snapshot is not None
        assert [lane.counters.discarded for lane in snapshot.lanes] == [1, 0]
        assert all(lane.missing == 0 for lane in snapshot.lanes)
        assert run(shop, "rejects", "retry", CONTACTS, "--key", second, "--json").out == (
            f'{{"format": 1, "mapping": "{CONTACTS}", "rows": 1, "requested": true}}\n'
        )
        mine = f"FROM reject WHERE code = '{CODE}' AND NOT discarded AND key"
        shop.wait(lambda: shop.state(f"SELECT max(refusals) {mine} = '{second}'") == 2, "it was not tried again")
        assert shop.state(f"SELECT max(refusals) {mine} <> '{second}'") == 1

        shop.execute("UPDATE customers SET email = 'mended' || id || '@example.com' WHERE email LIKE '=no %'")
        shop.settled()
        shop.assert_converged()
        shop.wait(lambda: shop.state("SELECT count(*) FROM reject") == 0, "something is left of them")
