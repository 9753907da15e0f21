"""``cdcsync check`` against a real server: each thing that can be wrong with it is found, with what to do."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import make_conninfo

from cdcsync.apply.base import Finding
from cdcsync.check import offline, online
from cdcsync.check.source import check_source
from cdcsync.config import Config
from cdcsync.sandbox.server import SandboxThread

TABLES = """
    CREATE TABLE companies (id int PRIMARY KEY, name text);
    CREATE TABLE customers (id int PRIMARY KEY, email text, last_name text, company_id int REFERENCES companies);
"""


@pytest.fixture
def database(pg: str) -> Iterator[psycopg.Connection[tuple[Any, ...]]]:
    """Give a connection to a database with the shop's tables."""
    with psycopg.connect(pg, autocommit=True) as connection:
        connection.execute(TABLES)
        yield connection


def config(dsn: str, *, postgres: dict[str, Any] | None = None, **mapping: Any) -> Config:
    """Make a config with one mapping to a HubSpot that is not there."""
    one = {
        "table": "customers",
        "to": "hubspot.contacts",
        "key": {"customer_id": "id"},
        "fields": {"email": "email", "lastname": "last_name"},
    }
    return Config.model_validate(
        {
            "postgres": {"dsn": dsn, "slot": f"s_{uuid.uuid4().hex[:12]}", **(postgres or {})},
            "crm": {"hubspot": {"token": {"env": "TOKEN"}, "base_url": "http://127.0.0.1:9"}},
            "map": [{**one, **mapping}],
        },
        context={"environ": {"TOKEN": "pat-test"}},
    )


def crosses(findings: list[Finding]) -> list[Finding]:
    """Keep what is not fine."""
    return [finding for finding in findings if not finding.ok]


async def only_cross(settings: Config) -> Finding:
    """Check the source, where one thing is wrong."""
    (cross,) = crosses(await check_source(settings))
    return cross


async def test_a_server_that_is_set_up_has_no_cross(pg: str, database: psycopg.Connection[Any]) -> None:
    """Before the first start everything that cdcsync makes itself is announced, and nothing is made by looking."""
    findings = await check_source(config(pg))
    assert crosses(findings) == []
    subjects = [finding.subject for finding in findings]
    for part in ("postgres", "wal_level", "max_replication_slots", "max_wal_senders", "replication privilege"):
        assert part in subjects
    assert any("will put that right" in finding.message for finding in findings)
    assert any("will make it" in finding.message for finding in findings)
    assert database.execute("SELECT FROM pg_publication").fetchall() == []


async def test_publication_and_slot_that_exist_are_described(pg: str, database: psycopg.Connection[Any]) -> None:
    """After the first start they are found, with what the slot holds back."""
    settings = config(pg, postgres={"create": False})
    database.execute("CREATE PUBLICATION cdcsync FOR TABLE customers WITH (publish_via_partition_root = true)")
    database.execute("SELECT pg_create_logical_replication_slot(%s, 'pgoutput')", [settings.postgres.slot])
    findings = {finding.subject: finding for finding in await check_source(settings)}
    assert crosses(list(findings.values())) == []
    assert findings["publication cdcsync"].message == "covers 1 mapped table"
    assert "not in use, holds back" in findings[f"slot {settings.postgres.slot}"].message


async def test_what_is_missing_and_may_not_be_made_comes_with_its_command(
    pg: str, database: psycopg.Connection[Any]
) -> None:
    """With create = false the DBA gets SQL that works as it stands."""
    settings = config(pg, postgres={"create": False})
    publication, slot = crosses(await check_source(settings))
    assert (publication.subject, slot.hint) == ("publication cdcsync", "cdcsync slot create")
    database.execute(publication.hint)
    assert [finding.subject for finding in crosses(await check_source(settings))] == [slot.subject]


async def test_a_publication_that_leaves_a_table_out_is_completed_by_hand(
    pg: str, database: psycopg.Connection[Any]
) -> None:
    """The SQL adds exactly what is missing, options included."""
    database.execute("CREATE PUBLICATION cdcsync FOR TABLE companies")
    settings = config(pg, postgres={"create": False})
    hint = crosses(await check_source(settings))[0].hint
    for statement in hint.split(";")[:-1]:
        database.execute(statement)
    assert [finding.subject for finding in crosses(await check_source(settings))] == [f"slot {settings.postgres.slot}"]


@pytest.mark.parametrize(
    ("mapping", "words"),
    [
        ({"fields": {"email": "e_mail"}}, "has no column e_mail (did you mean email?)"),
        ({"key": {"customer_id": "email"}}, "column email is not part of the replica identity"),
        ({"table": "custmers"}, "there is no table public.custmers"),
    ],
)
@pytest.mark.usefixtures("database")
async def test_a_mapping_that_does_not_fit_is_found(pg: str, mapping: dict[str, Any], words: str) -> None:
    """Columns, keys and tables are compared with the database before anything runs."""
    assert words in (await only_cross(config(pg, **mapping))).message


async def test_a_table_that_would_break_its_applications_is_refused(pg: str, database: psycopg.Connection[Any]) -> None:
    """Publishing a table without an identity makes the applications' own updates fail: it is found before."""
    database.execute("ALTER TABLE customers REPLICA IDENTITY NOTHING")
    found = crosses(await check_source(config(pg)))
    assert "would fail once it is published" in found[0].message
    database.execute(found[0].hint.partition(";")[0])
    assert crosses(await check_source(config(pg))) == []


async def test_a_key_that_is_not_unique_is_found(pg: str, database: psycopg.Connection[Any]) -> None:
    """Two rows of one key would overwrite each other's record; the given index mends it."""
    database.execute("ALTER TABLE customers REPLICA IDENTITY FULL")
    settings = config(pg, key={"customer_email": "email"})
    cross = await only_cross(settings)
    assert "overwrite each other" in cross.message
    database.execute(cross.hint.partition(";")[0])
    assert crosses(await check_source(settings)) == []


async def test_a_deferrable_key_is_found(pg: str, database: psycopg.Connection[Any]) -> None:
    """Two rows may share such a key inside a transaction, and the stream could not tell which of them moves on."""
    database.execute("ALTER TABLE customers DROP CONSTRAINT customers_pkey, ADD PRIMARY KEY (id) DEFERRABLE")
    database.execute("ALTER TABLE customers REPLICA IDENTITY FULL")
    found = [cross.message for cross in crosses(await check_source(config(pg)))]
    assert any("overwrite each other" in message for message in found), found


@pytest.fixture
def role(pg: str, database: psycopg.Connection[Any]) -> Iterator[str]:
    """Give a role that may log in and nothing else."""
    name = f"r_{uuid.uuid4().hex[:12]}"
    database.execute(sql.SQL("CREATE ROLE {} LOGIN").format(sql.Identifier(name)))
    yield make_conninfo(pg, user=name)
    database.execute(sql.SQL("DROP OWNED BY {0}; DROP ROLE {0}").format(sql.Identifier(name)))


async def test_each_missing_privilege_is_found_with_its_grant(role: str, database: psycopg.Connection[Any]) -> None:
    """Replication, reading and publishing are asked for one by one; the grants given are enough."""
    findings = {finding.subject: finding for finding in crosses(await check_source(config(role)))}
    copy = "map customers:hubspot.contacts: copy of existing rows"
    assert findings.keys() == {"replication privilege", copy, "publication cdcsync"}
    assert "may not mend that" in findings["publication cdcsync"].message
    database.execute(findings["replication privilege"].hint.partition(";")[0])
    database.execute(findings[copy].hint.partition(";")[0])
    left = [finding.subject for finding in crosses(await check_source(config(role)))]
    assert left == ["publication cdcsync"]


async def test_row_security_that_hides_rows_from_the_copy_is_found(
    role: str, database: psycopg.Connection[Any]
) -> None:
    """A copy that silently reads nothing is the worst of all: it is a cross."""
    database.execute("GRANT SELECT ON customers TO PUBLIC")
    database.execute("ALTER TABLE customers ENABLE ROW LEVEL SECURITY")
    found = [one for one in crosses(await check_source(config(role))) if "row security hides" in one.message]
    assert len(found) == 1
    assert crosses(await check_source(config(role, backfill=False)))[-1].subject == "publication cdcsync"


async def test_a_lost_or_foreign_slot_is_found(pg: str, database: psycopg.Connection[Any]) -> None:
    """A slot of another kind is no slot of ours, whatever its name."""
    settings = config(pg)
    database.execute("SELECT pg_create_physical_replication_slot(%s)", [settings.postgres.slot])
    try:
        cross = await only_cross(settings)
        assert "is of another kind" in cross.message
    finally:
        database.execute("SELECT pg_drop_replication_slot(%s)", [settings.postgres.slot])


async def test_a_server_that_is_not_there_is_one_finding() -> None:
    """The rest is checked all the same, and every cross says what to do."""
    findings = await online(config("host=127.0.0.1 port=9 dbname=x"))
    found = {finding.subject: finding for finding in crosses(findings)}
    assert found.keys() == {"postgres", "crm hubspot: login"}
    assert "cannot connect" in found["postgres"].message
    assert found["postgres"].hint
    assert found["crm hubspot: login"].hint or found["crm hubspot: login"].message


def test_offline_says_what_each_mapping_does() -> None:
    """Nothing but the config is looked at."""
    findings = offline(config("host=127.0.0.1 port=9", where="id > 5"))
    assert crosses(findings) == []
    assert findings[1].message == "public.customers → hubspot.contacts by customer_id = id, 2 fields, where id > 5"


@pytest.mark.usefixtures("database")
async def test_the_whole_chain_is_proven_to_the_crm(pg: str, hubspot_sandbox: SandboxThread) -> None:
    """Login, object, key and fields are compared with what the CRM itself says; a wrong field is a cross of its own."""
    base = config(pg).model_dump(mode="json", by_alias=True, exclude_none=True)
    base["crm"]["hubspot"]["base_url"] = hubspot_sandbox.url
    base["map"][0]["fields"]["no_such_property"] = "email"
    findings = await online(Config.model_validate(base, context={"environ": {"TOKEN": "pat-test"}}))
    login = [finding for finding in findings if finding.subject == "crm hubspot: login"]
    assert [finding.ok for finding in login] == [True]
    assert any("no_such_property" in finding.subject and not finding.ok for finding in findings)
    assert any(": email = email" in finding.subject and finding.ok for finding in findings)


@pytest.mark.usefixtures("database")
async def test_parents_by_key_are_checked_in_salesforce(pg: str, salesforce_sandbox: SandboxThread) -> None:
    """Two mappings, child first in the file: login, keys, fields and the reference are compared with the org."""
    settings = Config.model_validate(
        {
            "postgres": {"dsn": pg, "slot": f"s_{uuid.uuid4().hex[:12]}"},
            "crm": {
                "salesforce": {
                    "login_url": salesforce_sandbox.url,
                    "client_id": "app",
                    "client_secret": {"env": "SECRET"},
                }
            },
            "map": [
                {
                    "table": "customers",
                    "to": "salesforce.Contact",
                    "key": {"External_Id__c": "id"},
                    "fields": {
                        "LastName": "last_name",
                        "AccountId": {"column": "company_id", "ref": "salesforce.Account.External_Id__c"},
                    },
                },
                {
                    "table": "companies",
                    "to": "salesforce.Account",
                    "key": {"External_Id__c": "id"},
                    "fields": {"Name": "name", "Nmae__c": "name"},
                },
            ],
        },
        context={"environ": {"SECRET": "s3cret"}},
    )
    findings = await online(settings)
    found = [finding.subject + finding.message for finding in crosses(findings)]
    assert len(found) == 1, found
    assert "Nmae__c" in found[0]
    assert any("LastName" in finding.subject + finding.message for finding in findings)


async def test_a_table_without_an_order_to_copy_it_in(pg: str, database: psycopg.Connection[tuple[Any, ...]]) -> None:
    """The key that the mapping needs may be unique and yet no order for a copy; check says so, and what helps."""
    database.execute("CREATE TABLE loose (id int UNIQUE, email text); ALTER TABLE loose REPLICA IDENTITY FULL")
    loose: dict[str, Any] = {"table": "loose", "fields": {"email": "email"}}
    cross = await only_cross(config(pg, **loose))
    assert cross.subject.endswith("copy of existing rows")
    assert "no order to read it in" in cross.message
    assert 'ALTER TABLE "public"."loose" ADD PRIMARY KEY' in cross.hint
    assert not crosses(await check_source(config(pg, **loose, backfill=False)))
    database.execute("ALTER TABLE loose ALTER id SET NOT NULL")
    assert not crosses(await check_source(config(pg, **loose)))
