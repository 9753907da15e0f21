"""The oracle: a shop at work while everything around it fails at random; at the end the CRMs equal the database.

``CDCSYNC_SOAK_SECONDS`` is the time budget (50 unless said otherwise; disturbances are shorter and follow faster in a
short run), ``CDCSYNC_SOAK_SEED`` repeats what was drawn in an earlier run.
"""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from cdcsync.demo.postgres import EmbeddedPostgres
from tests.faults.disturber import Disturber, lines
from tests.faults.shopkeeper import FAULTS, Shopkeeper, prepare
from tests.faults.stage import Stage, stage

SECONDS = float(os.environ.get("CDCSYNC_SOAK_SECONDS", "50"))
SETTLE = 300.0
MIXED = {
    'client_id     = "demo"': 'client_id     = "demo"\nbulk_from = 300',
    'token    = { env = "DEMO_HUBSPOT_TOKEN" }': 'client_id = "soak"\n'
    'client_secret = { env = "DEMO_SALESFORCE_SECRET" }\nrefresh_token = { env = "DEMO_HUBSPOT_TOKEN" }',
}
"""Salesforce gets bulk jobs, too; HubSpot's tokens end, and are renewed."""


@pytest.mark.soak
@pytest.mark.timeout(SECONDS + 2 * SETTLE + 60)
def test_the_crms_equal_the_database_after_crashes_and_failures(
    own_pg_server: EmbeddedPostgres, tmp_path: Path
) -> None:
    """Whatever happens to daemon, database, networks and CRMs, every record ends as its row is.

    None is doubled, none ever goes back, the books balance, and a start with nothing to do writes nothing.
    """
    seed = int(os.environ.get("CDCSYNC_SOAK_SEED", "0")) or random.SystemRandom().randrange(1, 10**6)
    print(f"seed {seed}, {SECONDS:.0f} s")
    with stage(tmp_path, own_pg_server.dsn(), seed=seed, changes=MIXED) as shop, lines(shop) as (source, crms):
        prepare(shop)
        for crm, rules in FAULTS.items():
            shop.settings(crm, seed=seed)
            shop.fault(crm, *rules)
        shopkeeper = Shopkeeper(shop.dsn, seed, large=True)
        disturber = Disturber(shop, own_pg_server, source, crms, random.Random(seed), SECONDS)
        shop.start()
        try:
            with shopkeeper.at_work():
                disturber.run()
            for crm in FAULTS:
                shop.mend(crm)
            shop.settled(timeout=SETTLE)
            shop.assert_converged()
            _assert_a_start_writes_nothing(shop)
        except BaseException:
            print("\n".join(disturber.diary))
            raise
        print(f"{shopkeeper.transactions} transactions, {shopkeeper.lost} connections lost, {dict(disturber.done)}")
        for crm in FAULTS:
            print(crm, {name: count for name, count in shop.admin(crm, "books").items() if isinstance(count, int)})


def _assert_a_start_writes_nothing(shop: Stage) -> None:
    """Stop and start again: what is equal already is not sent once more."""
    assert shop.stop() == 0, shop.log()
    before = {crm: shop.admin(crm, "books")["writes"] for crm in shop.sandboxes}
    shop.start()
    shop.settled()
    shop.assert_converged()
    for crm, writes in before.items():
        assert shop.admin(crm, "books")["writes"] - writes == 1, "more than the one row that was changed meanwhile"
