"""Alerts of a real daemon: a CRM that is down, and a mapping that pauses, told to a real command and a real webhook."""

from __future__ import annotations

from pathlib import Path

from tests.faults.stage import stage
from tests.unit.test_alerts import _lines, receiver, script

KEPT = "SELECT value FROM meta WHERE key = 'alerts'"


def test_an_outage_is_told_once_and_its_end_once(pg: str, tmp_path: Path) -> None:
    """Kills and restarts during the outage do not repeat it; a pause by the daemon is told, one by a person is not."""
    log = tmp_path / "told"
    command = script(tmp_path / "tell", f'echo "$CDCSYNC_ALERT_EVENT $CDCSYNC_ALERT_NAME" >> {log}; cat >> {log}.json')
    with receiver() as hook:
        table = f'[alert]\ncommand = "{command}"\nwebhook = "{hook.url}"\nafter = "2s"\n\n[crm.salesforce]'
        with stage(tmp_path, pg, changes={"[crm.salesforce]": table}) as shop:
            shop.start()
            shop.settled()
            shop.cli("pause", "hubspot")
            shop.fault("salesforce", {"kind": "refuse", "status": 503, "match": {}, "times": None})
            shop.execute("UPDATE companies SET name = 'Secret Name' WHERE id = 1")
            shop.wait(lambda: len(hook.received) == len(_lines(log)) == 1, "the outage is not told")
            assert _lines(log) == ["opened crm-failing"]
            shop.wait(lambda: '"due": []' in shop.state(KEPT), "that it was told is not written down")
            shop.kill()
            shop.start()
            shop.wait(lambda: shop.snapshot() is not None, "the daemon does not come back")
            assert shop.stop() == 0
            shop.start()
            shop.wait(lambda: shop.snapshot() is not None, "the daemon does not come back")
            shop.execute("TRUNCATE orders")
            shop.wait(lambda: len(hook.received) == len(_lines(log)) == 3, "the pauses are not told")
            shop.mend("salesforce")
            shop.wait(lambda: len(hook.received) == len(_lines(log)) == 4, "the end is not told")
            for crm in ("salesforce.Opportunity", "hubspot.deals"):
                shop.cli("resume", f"orders:{crm}")
            shop.wait(lambda: len(hook.received) == len(_lines(log)) == 6, "the end of the pauses is not told")
            assert _lines(log) == [
                "opened crm-failing",
                *["opened mapping-paused"] * 2,
                "closed crm-failing",
                *["closed mapping-paused"] * 2,
            ]
            assert [str(told["id"]) for told in hook.received] == ["1", "2", "3", "4", "5", "6"]
            assert hook.received[0]["subject"] == "salesforce"
            assert "Secret Name" not in (tmp_path / "told.json").read_text(encoding="utf-8")
            assert shop.stop() == 0
