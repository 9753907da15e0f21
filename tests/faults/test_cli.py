"""The commands on real parts, as people and monitors use them: what they print, their exit codes, what they change."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

from cdcsync.demo.shop_config import SECRETS
from cdcsync.demo.verdict import judge
from cdcsync.state import State
from tests.faults.stage import Stage, stage

LIVE = "companies:salesforce.Account"


class Said(NamedTuple):
    """What a command printed (stdout, stderr), and its exit code."""

    out: str
    err: str
    code: int


def run(shop: Stage, *arguments: str, typed: str = "", **environ: str) -> Said:
    """Run a command with the stage's config; ``typed`` is its standard input."""
    command = [sys.executable, "-m", "cdcsync", *arguments, "-c", str(shop.config)]
    variables = {**os.environ, **SECRETS, **environ}
    done = subprocess.run(command, input=typed, capture_output=True, text=True, env=variables, check=False, timeout=60)
    return Said(done.stdout, done.stderr, done.returncode)


def reconfigure(shop: Stage, old: str, new: str) -> None:
    """Change the config's text."""
    text = shop.config.read_text(encoding="utf-8")
    assert old in text
    shop.config.write_text(text.replace(old, new, 1), encoding="utf-8")


def assert_equal(shop: Stage) -> None:
    """Consult the oracle without a daemon."""
    verdict = judge(shop.dsn, {name: sandbox.admin_url for name, sandbox in shop.sandboxes.items()})
    assert verdict.ok, verdict.differences[:10]


def slot_of(shop: Stage) -> str:
    """Name the stage's slot: as its database."""
    ((name,),) = shop.execute("SELECT current_database()::text")
    return str(name)


def test_once_drains_and_what_it_leaves_can_be_asked_for(pg: str, tmp_path: Path) -> None:
    """`run --once` ends with equal CRMs and 0; without a daemon, status and lag answer from file and server."""
    with stage(tmp_path, pg) as shop:
        nothing = run(shop, "status")
        assert (nothing.out, nothing.code) == ("", 1)
        assert "there is no state file" in nothing.err

        first = run(shop, "run", "--once")
        assert (first.out, first.code) == ("", 0), first.err
        assert_equal(shop)
        shop.execute("UPDATE orders SET stage = 'won'")
        shop.execute("DELETE FROM customers WHERE id = (SELECT min(id::text)::uuid FROM customers)")

        told = run(shop, "status")
        assert told.code == 1
        assert told.out.startswith("The daemon is down: nothing reads its slot.\n")
        assert "salesforce  stopped" in told.out
        document = json.loads(run(shop, "status", "--json").out)
        assert (document["format"], document["pid"], document["in_step"]) == (1, None, False)
        assert document["source"]["lag_bytes"] > 0
        lines = [json.loads(line) for line in run(shop, "lag", "--json").out.splitlines()]
        assert [(line["format"], line["crm"], line["seconds"]) for line in lines] == [
            (1, "salesforce", None),
            (1, "hubspot", None),
        ]
        assert all(line["bytes"] > 0 for line in lines)
        assert "unknown time, 0 rows\n" in run(shop, "lag").out

        second = run(shop, "run", "--once")
        assert second.code == 0, second.err
        assert_equal(shop)


def test_beside_a_running_daemon(pg: str, tmp_path: Path) -> None:
    """Questions are answered by the daemon itself; what would harm it is refused, and says why."""
    with stage(tmp_path, pg) as shop:
        shop.start()
        shop.settled()
        slot = slot_of(shop)

        told = run(shop, "status")
        assert told.code == 0
        assert told.out.startswith("In step, ")
        document = json.loads(run(shop, "status", "--json").out)
        assert shop.daemon is not None
        assert (document["pid"], document["in_step"]) == (shop.daemon.pid, True)
        assert all(lane["counters"]["requests"] > 0 for lane in document["lanes"])
        crms = [line.partition(":")[0] for line in run(shop, "lag").out.splitlines()]
        assert crms == ["salesforce", "hubspot"]
        (line, _) = map(json.loads, run(shop, "lag", "--json").out.splitlines())
        assert line["seconds"] < 60
        assert (line["rows"], line["rejected"]) == (0, 0)

        shown = json.loads(run(shop, "slot", "show", "--json").out)
        assert (shown["format"], shown["name"], shown["exists"], shown["plugin"]) == (1, slot, True, "pgoutput")
        assert shown["active_pid"] is not None
        assert "/" in shown["confirmed_flush_lsn"]

        another = run(shop, "run")
        assert another.code == 1
        assert "another cdcsync is running with the state file" in another.err
        for command in ("drop", "reset"):
            refused = run(shop, "slot", command, "--confirm", slot)
            assert (refused.out, refused.code) == ("", 1)
            assert f"slot '{slot}' is in use (server process" in refused.err
        assert shop.stop() == 0
        assert_equal(shop)


def test_the_slots_life(pg: str, tmp_path: Path) -> None:
    """The slot is made before the first start, taken up by it, and dropped only by who types its name."""
    with stage(tmp_path, pg) as shop:
        slot = slot_of(shop)
        absent = run(shop, "slot", "show")
        assert absent.out.startswith(f"name: {slot}\nexists: no\n✗ the server has no such slot\n")
        assert absent.code == 1
        made = run(shop, "slot", "create")
        assert (made.out, made.code) == (f"slot {slot} is made; `cdcsync run` starts from it\n", 0)
        assert "slot made" in made.err
        assert run(shop, "slot", "create").out.startswith(f"slot {slot} exists")
        shown = run(shop, "slot", "show")
        assert shown.code == 0
        assert "exists: yes\n" in shown.out
        assert run(shop, "run", "--once").code == 0
        assert_equal(shop)

        for typed in ("", "another\n"):
            refused = run(shop, "slot", "drop", typed=typed)
            assert (refused.out, refused.code) == ("", 2)
            assert f"Type the slot's name ({slot}) to go on" in refused.err
        shop.execute("SELECT pg_drop_replication_slot(current_database()::text)")
        gone = run(shop, "slot", "create")
        assert gone.code == 1
        assert "which is gone" in gone.err
        assert "cdcsync slot reset" in gone.err
        assert run(shop, "slot", "reset", typed=f"{slot}\n").code == 0
        dropped = run(shop, "slot", "drop", typed=f"{slot}\n")
        assert dropped.out.startswith(f"slot {slot} is dropped")
        assert run(shop, "slot", "drop", "--confirm", slot).out.startswith(f"slot {slot} did not exist")


def test_a_reset_makes_up_for_what_nobody_read(pg: str, tmp_path: Path) -> None:
    """Rows made, changed, moved to another key and deleted while there was neither daemon nor slot are made right."""
    with stage(tmp_path, pg) as shop:
        assert run(shop, "run", "--once").code == 0
        slot = slot_of(shop)
        shop.execute("SELECT pg_drop_replication_slot(current_database()::text)")
        shop.execute("UPDATE companies SET name = 'Renamed' WHERE id <= 5")
        shop.execute("DELETE FROM companies WHERE id IN (6, 7)")
        shop.execute("UPDATE orders SET id = id + 100000 WHERE id <= 20")
        shop.execute("INSERT INTO companies (name, domain) VALUES ('New', 'new.example.com')")

        lost = run(shop, "run", "--once")
        assert lost.code == 1
        assert "cdcsync slot reset" in lost.err
        reset = run(shop, "slot", "reset", "--confirm", slot)
        assert reset.code == 0, reset.err
        assert "rows deleted meanwhile included" in reset.err
        shop.execute("DELETE FROM companies WHERE id = 8")
        shop.start()
        shop.settled()
        shop.assert_converged()


def test_pausing(pg: str, tmp_path: Path) -> None:
    """A mapping paused by hand or by a TRUNCATE keeps its changes and goes on when it is resumed; others go on."""
    with stage(tmp_path, pg) as shop:
        shop.start()
        shop.settled()
        unknown = run(shop, "pause", "companies")
        assert unknown.code == 2
        assert LIVE in unknown.err

        assert run(shop, "pause", LIVE).code == 0
        shop.wait(lambda: "paused by hand" in run(shop, "status").out, "the daemon did not hear of the pause")
        assert json.loads(run(shop, "status", "--json").out)["sentence"] == f"{LIVE} is paused, 0 rows waiting."
        shop.execute("UPDATE companies SET name = 'Paused' WHERE id = 1")
        shop.wait(lambda: _named(shop, "hubspot", "companies", "name", "Paused") == 1, "the other mapping is held up")
        assert _named(shop, "salesforce", "Account", "Name", "Paused") == 0
        assert _pending(shop, LIVE) == 1
        shop.wait(lambda: shop.state("SELECT count(*) FROM journal") == 1, "the row that waits is not written down")
        assert run(shop, "resume", LIVE).out == f"{LIVE} goes on: 1 row waiting\n"
        assert run(shop, "resume", LIVE).out == f"{LIVE} was not paused\n"
        shop.settled()
        shop.assert_converged()

        shop.execute("TRUNCATE orders")
        shop.execute(
            "INSERT INTO orders (customer_id, title, stage, due) "
            "SELECT id, 'After', 'new', now() FROM customers LIMIT 3"
        )
        shop.wait(lambda: _pending(shop, "orders:hubspot.deals") == 3, "the truncate did not pause the mapping")
        shop.wait(lambda: _truncated(shop) == 2, "the pause was not written down")
        shop.kill()
        shop.start()
        shop.wait(lambda: _pending(shop, "orders:hubspot.deals") == 3, "the daemon does not come back")
        assert run(shop, "status").out.startswith("orders:salesforce.Opportunity, orders:hubspot.deals are paused, ")
        assert _named(shop, "hubspot", "deals", "dealname", "After") == 0
        for crm in ("salesforce.Opportunity", "hubspot.deals"):
            assert run(shop, "resume", f"orders:{crm}").code == 0
        shop.settled()
        assert _named(shop, "salesforce", "Opportunity", "Name", "After") == 3
        assert len(shop.records("hubspot", "deals")) == 303


def _truncated(shop: Stage) -> int:
    """Count the mappings that the state file holds as paused by a truncate."""
    state = State.read(shop.directory / "state.db")
    try:
        return sum("was truncated" in reason for reason in state.paused().values())
    finally:
        state.close()


def _pending(shop: Stage, mapping: str) -> int:
    snapshot = shop.snapshot()
    return -1 if snapshot is None else next(entry.pending for entry in snapshot.maps if entry.name == mapping)


def _named(shop: Stage, crm: str, kind: str, field: str, value: str) -> int:
    return sum(record["fields"].get(field) == value for record in shop.records(crm, kind))


def test_check_ticks_and_crosses(pg: str, tmp_path: Path) -> None:
    """The demo's config gets no cross; a wrong field or column and a refused login get crosses with remedies."""
    with stage(tmp_path, pg) as shop:
        good = run(shop, "check")
        assert good.code == 0, good.out
        assert not any(line.startswith("✗ ") for line in good.out.splitlines()), good.out
        offline = run(shop, "check", "--offline")
        assert offline.code == 0
        assert offline.out.splitlines()[0] == "✓ config: 6 mappings"
        assert len(offline.out.splitlines()) == 7

        reconfigure(shop, 'Industry   = "industry"', 'Industri__c = "industry"')
        reconfigure(shop, 'Amount     = "amount"', 'Amount     = "amont"')
        shop.settings("hubspot", tokens=["another"])
        bad = run(shop, "check")
        assert bad.code == 1
        lines = bad.out.splitlines()
        crosses = [number for number, line in enumerate(lines) if line.startswith("✗ ")]
        subjects = "\n".join(lines[number] for number in crosses)
        for part in ("Industri__c", "amont", "crm hubspot: login"):
            assert part in subjects
        remedies = [number for number in crosses if lines[number + 1].startswith("    → ")]
        assert remedies == [number for number in crosses if "did you mean amount?" not in lines[number]], bad.out


def test_wrong_credentials_end_a_single_run(pg: str, tmp_path: Path) -> None:
    """`run --once` does not wait until a login is mended: it ends with 77 and says whose; an unset secret with 78."""
    with stage(tmp_path, pg) as shop:
        shop.settings("salesforce", client_secret="another")
        refused = run(shop, "run", "--once")
        assert refused.code == 77
        assert "error [crm-credentials]: Salesforce" in refused.err
        assert SECRETS["DEMO_SALESFORCE_SECRET"] not in refused.err
        unset = run(shop, "run", "--once", DEMO_HUBSPOT_TOKEN="")
        assert unset.code == 78
        assert "DEMO_HUBSPOT_TOKEN" in unset.err


def test_all_mistakes_of_a_config_are_told_at_once(pg: str, tmp_path: Path) -> None:
    """Each mistake comes with file and line, and the exit code is that of a wrong config."""
    with stage(tmp_path, pg) as shop:
        reconfigure(shop, "max_wait", "max_wiat")
        reconfigure(shop, 'to    = "salesforce.Contact"', 'to    = "salesfroce.Contact"')
        text = shop.config.read_text(encoding="utf-8").splitlines()
        for command in (["run"], ["check", "--offline"]):
            wrong = run(shop, *command)
            assert wrong.code == 78
            for part, guess in (("max_wiat", "max_wait"), ("salesfroce", "salesforce")):
                number = next(number for number, line in enumerate(text, 1) if part in line)
                line = next(line for line in wrong.err.splitlines() if f"{shop.config}:{number}: " in line)
                assert guess in line
        shop.config.unlink()
        assert run(shop, "run").code == 78


def test_postgres_out_of_reach(pg: str, tmp_path: Path, free_port: int) -> None:
    """Without Postgres every command that needs it ends with 69 and one clear line; check goes on with the CRMs."""
    with stage(tmp_path, pg) as shop:
        assert run(shop, "run", "--once").code == 0
        reconfigure(shop, f'dsn = "{pg}"', f'dsn = "postgresql://nobody@127.0.0.1:{free_port}/shop"')
        for command in (["run"], ["run", "--once"], ["slot", "show"], ["version", "--server"], ["lag"]):
            told = run(shop, *command)
            assert told.code == 69, (command, told)
            assert "cdcsync: error [source-unavailable]: cannot connect to PostgreSQL: " in told.err
            assert "Traceback" not in told.err
        status = run(shop, "status")
        assert status.code == 1
        assert status.out.startswith("Postgres is not connected.\n")
        checked = run(shop, "check")
        assert checked.code == 1
        assert "✗ postgres: cannot connect" in checked.out
        assert "✓ crm hubspot: login" in checked.out


def test_version_needs_nothing() -> None:
    """The versions are told without config and server."""
    done = subprocess.run([sys.executable, "-m", "cdcsync", "version"], capture_output=True, text=True, check=True)
    assert [line.split()[0] for line in done.stdout.splitlines()] == ["cdcsync", "libpq", "Python"]


@pytest.mark.parametrize("command", ["run", "status", "slot", "state", "wait", "lag", "check", "resync", "demo"])
def test_help_loads_nothing_heavy(command: str) -> None:
    """Help answers without loading the driver, the vendors' clients or the servers."""
    program = (
        "import sys\nsys.argv = ['cdcsync', *sys.argv[1:]]\nfrom cdcsync.cli import main\n"
        "try: main()\nexcept SystemExit as end: assert end.code == 0\n"
        "heavy = {'psycopg', 'structlog', 'aiohttp', 'hubspot', 'simple_salesforce'} & sys.modules.keys()\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, command, "--help"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "Usage: " in done.stdout
