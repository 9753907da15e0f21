"""The config file: what loads, what is refused, and that each mistake is found with its line."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cdcsync.config import (
    Config,
    HubspotConfig,
    MapConfig,
    RefConfig,
    SalesforceConfig,
    Secret,
    find_config,
    json_schema,
    load,
    order,
    template_parts,
)
from cdcsync.config.lines import line_of, locate
from cdcsync.config.mapping import TombstoneConfig
from cdcsync.config.units import Allowance, format_duration, format_size, parse_budget, parse_duration, parse_size
from cdcsync.errors import ConfigError

SMALLEST = """\
[postgres]
dsn = "postgresql:///shop"

[crm.salesforce]
login_url     = "https://acme.my.salesforce.com"
client_id     = "3MVG9..."
client_secret = { credential = "salesforce.secret" }

[[map]]
table  = "customers"
to     = "salesforce.Contact"
key    = { External_Id__c = "id" }
fields = { Email = "email", FirstName = "first_name", LastName = "last_name" }
"""

FULL = """\
version = 1

[postgres]
dsn          = "postgresql://cdcsync@/shop?host=/run/postgresql"
slot         = "cdcsync"
publication  = "cdcsync"
create       = false
warn_lag     = "2GB"
failover     = true
streaming    = true
origin       = "none"
messages     = ["deploy", "marker"]

[batch]
max_wait     = "2s"
max_memory   = "64MB"

[state]
path         = "/tmp/state.db"
mirror       = "/shared/state.db"
max_journal  = "1GB"

[status]
listen       = "off"

[log]
level = "debug"
format = "json"

[alert]
command = "/usr/local/bin/page 'on call'"
webhook = { file = "/etc/hook" }
after   = "5m"
rejects = 100

[crm.salesforce]
login_url     = "https://acme.my.salesforce.com/"
client_id     = "3MVG9..."
username      = "sync@acme.com"
private_key   = { file = "/etc/key.pem" }
daily_budget  = 5000
bulk_from     = 1000
max_parallel  = 3

[crm.portal]
kind          = "hubspot"
token         = { env = "HUBSPOT_TOKEN" }
daily_budget  = "12.5%"

[[map]]
name   = "people"
table  = "crm.customers"
to     = "salesforce.Contact"
key    = { External_Id__c = "id" }
nulls  = "keep"
on_truncate = "ignore"
max_deletes = "12.5% per day"
backfill = false
where  = "deleted_at IS NULL"

[map.fields]
LastName     = { column = "last_name", default = "(unknown)", on_invalid = "null" }
Level__c     = { column = "tier", values = { g = "Gold", s = "Silver" }, otherwise = "clear" }
Phone        = { column = "phone", only_if_empty = true }
Greeting__c  = { template = "Dear {first_name} {last_name}" }
AccountId    = { column = "company_id", ref = "salesforce.Account.External_Id__c" }

[[map]]
table  = "companies"
to     = "salesforce.Account"
key    = { External_Id__c = "id" }
fields = { Name = "name" }
on_truncate = "delete"
on_delete = { set = { Name = "(gone)", Active__c = false }, unset = { Active__c = true } }
max_deletes = "off"

[[map]]
table     = "crm.customers"
to        = "portal.contacts"
key       = { customer_id = "id" }
on_delete = "archive"
where     = "deleted_at IS NULL"
fields    = { email = "email" }
associate = [ { to = "portal.companies", column = "company_id", type = "contact_to_company" } ]

[[map]]
table  = "companies"
to     = "portal.companies"
key    = { company_id = "id" }
on_delete = "ignore"
"""


def read(tmp_path: Path, text: str, environ: dict[str, str] | None = None) -> Config:
    """Load a config from its text."""
    path = tmp_path / "cdcsync.toml"
    path.write_text(text, encoding="utf-8")
    return load(path, environ or {})


def mistakes(tmp_path: Path, text: str) -> list[str]:
    """List the mistakes of a config, without the directory."""
    with pytest.raises(ConfigError) as caught:
        read(tmp_path, text)
    return caught.value.message.replace(f"{tmp_path}/", "").splitlines()


def with_map(lines: str, *, crm: str = "salesforce") -> str:
    """Return the smallest config with its mapping replaced."""
    head = SMALLEST[: SMALLEST.index("[[map]]")]
    if crm == "hubspot":
        head = '[postgres]\ndsn = ""\n[crm.hubspot]\ntoken = { env = "T" }\n'
    return f"{head}[[map]]\n{lines}"


def test_the_smallest_file_loads_with_the_documented_defaults(tmp_path: Path) -> None:
    """What the README shows is enough, and everything else has its documented default."""
    config = read(tmp_path, SMALLEST)
    assert config.postgres.dsn == "postgresql:///shop"
    assert (config.postgres.slot, config.postgres.publication, config.postgres.create) == ("cdcsync", "cdcsync", True)
    assert (config.postgres.warn_lag, config.postgres.failover) == (1 << 30, "auto")
    assert (config.postgres.streaming, config.postgres.origin, config.postgres.messages) == (False, "any", ())
    assert (config.batch.max_wait, config.batch.max_memory) == (0.5, 256 << 20)
    assert (config.state.path, config.state.max_journal) == (Path("/var/lib/cdcsync/state.db"), 10 << 30)
    assert (config.status.listen, config.log.level, config.log.format) == ("127.0.0.1:9187", "info", "auto")
    salesforce = config.crm["salesforce"]
    assert isinstance(salesforce, SalesforceConfig)
    assert (salesforce.kind, salesforce.daily_budget, salesforce.bulk_from, salesforce.max_parallel) == (
        "salesforce",
        0.6,
        None,
        5,
    )
    (one,) = config.maps
    assert (one.name, one.table, one.crm, one.object) == (
        "customers:salesforce.Contact",
        "public.customers",
        "salesforce",
        "Contact",
    )
    assert (one.key_field, one.key_column) == ("External_Id__c", "id")
    assert one.fields["Email"].column == "email"
    assert (config.alert.command, config.alert.webhook, config.alert.after) == (None, None, 60.0)
    assert one.max_deletes == Allowance(0.1, 3600.0)
    assert (one.on_delete, one.on_truncate, one.nulls, one.backfill, one.where) == (
        "delete",
        "pause",
        "clear",
        True,
        None,
    )


def test_every_key_is_read(tmp_path: Path) -> None:
    """All that this release has can be set, and arrives parsed."""
    config = read(tmp_path, FULL)
    assert (config.postgres.create, config.postgres.warn_lag, config.postgres.failover) == (False, 2 << 30, True)
    assert (config.postgres.streaming, config.postgres.origin) == (True, "none")
    assert config.postgres.messages == ("deploy", "marker")
    assert (config.batch.max_wait, config.batch.max_memory, config.status.listen) == (2.0, 64 << 20, None)
    salesforce, portal = config.crm["salesforce"], config.crm["portal"]
    assert isinstance(salesforce, SalesforceConfig)
    assert isinstance(portal, HubspotConfig)
    assert (salesforce.login_url, salesforce.daily_budget, salesforce.bulk_from) == (
        "https://acme.my.salesforce.com",
        5000,
        1000,
    )
    assert isinstance(salesforce.daily_budget, int)
    assert (portal.kind, portal.daily_budget, portal.base_url) == ("hubspot", 0.125, "https://api.hubapi.com")
    alert = config.alert
    assert (alert.command, alert.after, alert.rejects) == ("/usr/local/bin/page 'on call'", 300.0, 100)
    assert alert.webhook == Secret(file="/etc/hook")
    people, accounts, contacts, companies = config.maps
    assert (people.max_deletes, accounts.max_deletes) == (Allowance(0.125, 86400.0), None)
    assert (accounts.on_delete, accounts.on_truncate) == ("set", "delete")
    assert accounts.tombstone == TombstoneConfig(set={"Name": "(gone)", "Active__c": False}, unset={"Active__c": True})
    assert (people.name, people.table, people.nulls, people.backfill) == ("people", "crm.customers", "keep", False)
    assert people.fields["AccountId"].ref == RefConfig("salesforce", "Account", "External_Id__c")
    assert people.fields["Level__c"].values == {"g": "Gold", "s": "Silver"}
    assert people.fields["Level__c"].otherwise == "clear"
    assert people.fields["LastName"].on_invalid == "null"
    assert people.only_if_empty == {"Phone"}
    assert (contacts.on_delete, companies.on_delete) == ("delete", "ignore")
    (link,) = contacts.associate
    assert (link.to_crm, link.to_object, link.column, link.type) == (
        "portal",
        "companies",
        "company_id",
        "contact_to_company",
    )


def test_parents_come_before_children_and_the_rest_keeps_its_place(tmp_path: Path) -> None:
    """``order`` puts referred mappings first and changes nothing else."""
    assert [one.to for one in order(read(tmp_path, FULL).maps)] == [
        "salesforce.Account",
        "salesforce.Contact",
        "portal.companies",
        "portal.contacts",
    ]


def test_all_mistakes_are_reported_at_once_with_their_lines(tmp_path: Path) -> None:
    """One run names everything that is wrong, in the order of the file, with a guess at what was meant."""
    text = """\
[postgres]
dsn = "postgresql:///shop"
slto = "x"
[batch]
max_wait = "5 parsecs"
max_memory = 12
[log]
level = "inf"
[crm.salesforce]
login_url = "http://acme.my.salesforce.com"
client_id = "3MVG9..."
client_secret = "hush-hush"
[crm.other]
kind = "hubspto"

[[map]]
table = "customers"
to = "salesforc.Contact"
key = { External_Id__c = "id" }
fields = { Email = "email" }
[[map]]
to = "salesfroce.Account"
key = { A = "a", B = "b" }
nulls = "drop"
[map.fields]
Email = { colunm = "x", template = "{x}" }
Phone = 7
"""
    assert mistakes(tmp_path, text) == [
        "cdcsync.toml:3: postgres.slto: unknown key (did you mean slot?)",
        'cdcsync.toml:5: batch.max_wait: expected a duration such as "500ms", "5s" or "2m"',
        'cdcsync.toml:6: batch.max_memory: expected a size such as "256MB" or "10GB"',
        'cdcsync.toml:8: log.level: expected "debug", "info", "warning" or "error" (did you mean info?)',
        "cdcsync.toml:10: crm.salesforce.login_url: plain http is taken on loopback addresses only: use https",
        (
            "cdcsync.toml:12: crm.salesforce.client_secret: a secret does not stand in the config: "
            'use { credential = "name" }, { file = "/path" } or { env = "NAME" }'
        ),
        'cdcsync.toml:14: crm.other.kind: expected kind = "salesforce" or "hubspot" (did you mean hubspot?)',
        "cdcsync.toml:18: map[0].to: there is no [crm.salesforc] (did you mean salesforce?)",
        "cdcsync.toml:21: map[1].table: is missing",
        "cdcsync.toml:22: map[1].to: there is no [crm.salesfroce] (did you mean salesforce?)",
        "cdcsync.toml:23: map[1].key: expected exactly one { CRM field = column }",
        'cdcsync.toml:24: map[1].nulls: expected "clear" or "keep"',
        "cdcsync.toml:26: map[1].fields.Email.colunm: unknown key (did you mean column?)",
        "cdcsync.toml:27: map[1].fields.Phone: expected a table",
    ]


@pytest.mark.parametrize(
    ("given", "table"),
    [
        ("t", "public.t"),
        ("Mixed Case", "public.Mixed Case"),
        ("s.t", "s.t"),
        ("s.a.b", "s.a.b"),
        ('"a.b"', "public.a.b"),
        ('"S"."a ""b"""', 'S.a "b"'),
        ('s."a.b"', "s.a.b"),
        ('s.a"b', 's.a"b'),
    ],
)
def test_tables_are_named_as_they_are_or_as_sql_names_them(given: str, table: str) -> None:
    """A name without quotes is taken as it is; quotes make a dot in it possible without a schema."""
    assert MapConfig.model_validate({"table": given, "to": "crm.X", "key": {"K": "id"}}).table == table


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (".t", "expected"),
        ("s.", "expected"),
        ('"t', "expected"),
        ('"t"x', "expected"),
        ('""', "expected"),
        ('s."t', "expected"),
        ('"a.b".t', "the schema 'a.b' has a dot in its name"),
    ],
)
def test_names_that_cannot_be_told_apart_are_refused(tmp_path: Path, table: str, message: str) -> None:
    """A schema with a dot would be mistaken for another: the sentence says what to do."""
    (found,) = mistakes(tmp_path, with_map(f'table = \'{table}\'\nto = "salesforce.X"\nkey = {{ K = "id" }}\n'))
    assert "map[0].table: " in found
    assert message in found


@pytest.mark.parametrize(
    ("line", "path"),
    [
        ('write = "upsert"', "write"),
        ('fields = { A = { python = "a:b" } }', "fields.A.python"),
    ],
)
def test_what_is_documented_but_not_built_yet_says_so(tmp_path: Path, line: str, path: str) -> None:
    """A key of a later release is not called unknown."""
    found = mistakes(tmp_path, with_map(f'table = "t"\nto = "salesforce.X"\nkey = {{ K = "id" }}\n{line}\n'))
    assert any(f"map[0].{path}: " in one and "not available in this version" in one for one in found), found


@pytest.mark.parametrize(
    ("line", "path", "words"),
    [
        ('max_deletes = "many"', "map[0].max_deletes", '"10% per hour"'),
        ('on_delete = "erase"', "map[0].on_delete", 'expected "delete", "ignore" or "archive"'),
        ("on_delete = { sets = { A = 1 } }", "map[0].on_delete.sets", "did you mean set?"),
        ("on_delete = { set = { A = 1 } }", "map[0]", "say what A is while the row lives"),
        ("on_delete = { set = { A = [1] } }", "map[0].on_delete.set.A.str", "expected text"),
        ('on_truncate = "empty"', "map[0].on_truncate", 'expected "pause", "ignore" or "delete"'),
        ('[alert]\nwebhook = "http://hooks.example.com/x"', "alert.webhook", "use https"),
        ('[alert]\nwebhook = "hooks"', "alert.webhook", "expected a URL"),
        ('[alert]\ncommand = "page \'x"', "alert.command", "not a command line"),
        ("[alert]\nrejects = 0", "alert.rejects", "greater than or equal to 1"),
        ("[alert]\ncomand = 'x'", "alert.comand", "did you mean command?"),
    ],
)
def test_what_guards_and_alerts_cannot_be_is_refused(tmp_path: Path, line: str, path: str, words: str) -> None:
    """Each with its place and a sentence."""
    found = mistakes(tmp_path, with_map(f'table = "t"\nto = "salesforce.X"\nkey = {{ K = "id" }}\n{line}\n'))
    assert any(f"{path}: " in one and words in one for one in found), found


@pytest.mark.parametrize(
    ("lines", "crm", "message"),
    [
        ('to = "hubspot.a"\nassociate = [{ to = "hubspot.b", column = "b", type = "t" }]', "hubspot", "no mapping"),
        ('to = "hubspot.a"\nassociate = [{ to = "other.a", column = "b", type = "t" }]', "hubspot", "another CRM"),
        ('to = "hubspot.a"\nfields = { x = { column = "b", ref = "hubspot.b.k" } }', "hubspot", "use associate"),
        ('to = "hubspot.a"\nfields = { K = "b" }', "hubspot", "set by key already"),
        (
            'to = "salesforce.A"\nassociate = [{ to = "salesforce.A", column = "b", type = "t" }]',
            "salesforce",
            "no assoc",
        ),
        ('to = "salesforce.A"\nfields = { x = { column = "b", ref = "salesforce.A.Kee" } }', "salesforce", "is k, not"),
        ('to = "salesforce.A"\nfields = { x = { column = "b", ref = "salesforce.B.k" } }', "salesforce", "no mapping"),
        ('to = "salesforce.A"\non_delete = "archive"', "salesforce", "does not archive"),
        ('to = "salesforce.A"\nfields = { Email = "a", email = "b" }', "salesforce", "same field"),
        ('to = "salesforce.A"\nfields = { x = { column = "a", otherwise = "keep" } }', "salesforce", "needs values"),
        (
            'to = "salesforce.A"\nfields = { x = { column = "a", values = { b = 1 }, on_invalid = "null" } }',
            "salesforce",
            "on_invalid does not go with values",
        ),
        (
            'to = "salesforce.A"\nfields.x = { column = "a", values = {}, otherwise = "clear", only_if_empty = true }',
            "salesforce",
            "only_if_empty never clears",
        ),
        (
            'to = "salesforce.A"\nfields = { x = { template = "{a}", on_invalid = "clamp" } }',
            "salesforce",
            "not for a template",
        ),
        ('to = "salesforce.A"\nfields = { x = { template = "Dear {a" } }', "salesforce", "stands alone"),
        ('to = "salesforce.A"\nfields = { x = { template = "Dear" } }', "salesforce", "no {column}"),
        ('to = "salesforce.A"\nfields = { x = { column = "a", template = "{b}" } }', "salesforce", "one of them"),
        ('to = "salesforce.A"\nfields = { x = { column = "a", ref = "A.k" } }', "salesforce", "expected"),
        ('to = "salesforce"', "salesforce", "expected"),
    ],
)
def test_mappings_must_fit_their_crm_and_each_other(tmp_path: Path, lines: str, crm: str, message: str) -> None:
    """What only several tables together can show is found too."""
    found = mistakes(tmp_path, with_map(f'table = "t"\nkey = {{ k = "id" }}\n{lines}\n', crm=crm))
    assert any(message in one for one in found), found


def test_mappings_may_refer_to_each_other_in_a_circle(tmp_path: Path) -> None:
    """No order is right then: the rows that wait for each other are created first and linked later."""
    maps = "".join(
        f'[[map]]\nname = "{one}"\ntable = "{one}"\nto = "salesforce.{one}"\nkey = {{ K = "id" }}\n'
        f'fields = {{ P = {{ column = "p", ref = "salesforce.{parent}.K" }} }}\n'
        for one, parent in (("a", "b"), ("b", "c"), ("c", "a"), ("d", "d"), ("e", "a"))
    )
    config = read(tmp_path, SMALLEST[: SMALLEST.index("[[map]]")] + maps)
    assert [one.name for one in order(config.maps)] == ["c", "b", "a", "d", "e"]


def test_two_mappings_do_not_share_a_name_a_target_or_a_filterless_table(tmp_path: Path) -> None:
    """Two mappings would undo each other's work, or could not be told apart, or would need two filters of one table."""
    text = with_map(
        'name = "x"\ntable = "t"\nto = "salesforce.A"\nkey = { K = "id" }\n'
        '[[map]]\nname = "x"\ntable = "t"\nto = "salesforce.B"\nkey = { K = "id" }\nwhere = "a"\n'
        '[[map]]\nname = "y"\ntable = "u"\nto = "salesforce.A"\nkey = { k = "id" }\n'
    )
    found = mistakes(tmp_path, text)
    assert [one.split(": ")[1] for one in found] == ["map[1].name", "map[1].where", "map[2].to"]


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ('[crm.salesforce]\nclient_id = "x"\nclient_secret = { env = "S" }', "must be the My Domain"),
        ('[crm.salesforce]\nclient_id = "x"', "give client_secret"),
        ('[crm.salesforce]\nclient_id = "x"\nusername = "u"', "give client_secret"),
        ('[crm.hubspot]\nclient_id = "x"', "give token"),
        ('[crm.hubspot]\ntoken = { env = "A", file = "b" }', "expected one of"),
        ('[crm.hubspot]\ntoken = { vault = "A" }', "unknown key"),
        ('[crm.hubspot]\ntoken = { env = "A" }\ndaily_budget = "0%"', "expected a share"),
        ('[crm.hubspot]\ntoken = { env = "A" }\nbase_url = "http://10.0.0.1"', "loopback"),
        ('[crm.x]\ntoken = { env = "A" }', "expected kind"),
    ],
)
def test_a_crm_table_must_be_able_to_log_in(tmp_path: Path, table: str, message: str) -> None:
    """Half a login, a wrong address or an unknown kind is found before anything is sent."""
    name = table[5 : table.index("]")]
    text = f'[postgres]\ndsn = ""\n{table}\n[[map]]\ntable = "t"\nto = "{name}.A"\nkey = {{ K = "i" }}'
    found = mistakes(tmp_path, text)
    assert any(message in one for one in found), found


@pytest.mark.parametrize("url", ["http://127.0.0.1:8080", "http://localhost:1", "http://[::1]:2", "https://a.example"])
def test_plain_http_is_for_loopback(tmp_path: Path, url: str) -> None:
    """The sandbox is reachable without TLS, and only what runs on this machine."""
    config = read(tmp_path, SMALLEST.replace("https://acme.my.salesforce.com", url))
    salesforce = config.crm["salesforce"]
    assert isinstance(salesforce, SalesforceConfig)
    assert salesforce.login_url == url


@pytest.mark.parametrize(
    "dsn",
    [
        "postgresql://u:hush-hush@h/d",
        "postgresql://h/d?password=hush-hush",
        "host=h password = hush-hush",
        "password='hush-hush' host=h",
    ],
)
def test_a_password_in_the_connection_string_is_refused_and_not_repeated(tmp_path: Path, dsn: str) -> None:
    """Secrets stand by reference only, and a message about one does not show it."""
    (mistake,) = mistakes(tmp_path, SMALLEST.replace("postgresql:///shop", dsn))
    assert "postgres.dsn" in mistake
    assert "hush-hush" not in mistake


def test_no_literal_secret_is_ever_shown(tmp_path: Path) -> None:
    """Neither mistakes nor the printed config nor reprs hold a secret, or the connection string behind a reference."""
    text = SMALLEST.replace('"postgresql:///shop"', '{ env = "DSN" }')
    config = read(tmp_path, text, {"DSN": "postgresql://u:hush-hush@h/d"})
    assert config.postgres.dsn == "postgresql://u:hush-hush@h/d"
    assert "hush-hush" not in json.dumps(config.masked()) + repr(config)
    wrong = SMALLEST.replace('{ credential = "salesforce.secret" }', '"hush-hush"')
    assert "hush-hush" not in "".join(mistakes(tmp_path, wrong))


def test_secrets_are_read_where_they_are(tmp_path: Path) -> None:
    """Credential, file and environment give the secret without its line end; nothing is read before it is needed."""
    (tmp_path / "sf").write_text("s3cret\n", encoding="utf-8")
    environ = {"CREDENTIALS_DIRECTORY": str(tmp_path), "TOKEN": "t0ken"}

    def secret(**where: str) -> Secret:
        return Secret.model_validate(where, context={"environ": environ})

    assert secret(credential="sf").read() == "s3cret"
    assert secret(file=str(tmp_path / "sf")).read() == "s3cret"
    assert secret(env="TOKEN").read() == "t0ken"


@pytest.mark.parametrize(
    ("where", "environ", "message"),
    [
        ({"env": "TOKEN"}, {}, "TOKEN is not set"),
        ({"env": "TOKEN"}, {"TOKEN": ""}, "TOKEN is empty"),
        ({"credential": "x"}, {}, "CREDENTIALS_DIRECTORY is not set"),
        ({"credential": "../x"}, {"CREDENTIALS_DIRECTORY": "/"}, "not the name of a credential"),
        ({"file": "/nowhere/x"}, {}, "cannot be read"),
        ({"file": "/dev/null"}, {}, "is empty"),
    ],
)
def test_a_secret_that_is_not_there_says_what_to_do(
    where: dict[str, str], environ: dict[str, str], message: str
) -> None:
    """The error names the place and has a remedy."""
    with pytest.raises(ConfigError, match=message) as caught:
        Secret.model_validate(where, context={"environ": environ}).read()
    assert caught.value.hint


def test_a_syntax_error_has_its_line(tmp_path: Path) -> None:
    """What is no TOML at all is reported in the same form."""
    assert mistakes(tmp_path, '[postgres]\ndsn = "x"\ndsn = = 1\n')[0].startswith("cdcsync.toml:3: not valid TOML: ")
    assert mistakes(tmp_path, '[postgres]\ndsn = "x')[0].startswith("cdcsync.toml:2: not valid TOML: ")


def test_an_unreadable_file_is_a_config_error(tmp_path: Path) -> None:
    """A missing file and one that is no text are told apart, both with a remedy."""
    with pytest.raises(ConfigError, match="No such file"):
        load(tmp_path / "none.toml", {})
    (tmp_path / "latin.toml").write_bytes(b"# \xe9\n")
    with pytest.raises(ConfigError, match="not UTF-8"):
        load(tmp_path / "latin.toml", {})


def test_the_printed_config_loads_again_as_the_same(tmp_path: Path) -> None:
    """``config show`` prints what was understood, in the file's own form."""
    for text in (SMALLEST, FULL):
        config = read(tmp_path, text)
        printed = Config.model_validate(config.masked())
        assert printed.masked() == config.masked()


def test_the_file_is_searched_in_the_documented_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Option, environment, working directory; then there is nothing."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="no config file"):
        find_config(None, {})
    Path("cdcsync.toml").touch()
    assert find_config(None, {}) == Path("cdcsync.toml")
    assert find_config(None, {"CDCSYNC_CONFIG": "/x.toml"}) == Path("/x.toml")
    assert find_config(Path("/y.toml"), {"CDCSYNC_CONFIG": "/x.toml"}) == Path("/y.toml")


def test_the_schema_describes_what_the_file_may_hold() -> None:
    """Editors get every section, both forms of a field, and refuse unknown keys."""
    schema = json.loads(json.dumps(json_schema()))
    assert {"postgres", "batch", "state", "status", "log", "alert", "crm", "map"} <= schema["properties"].keys()
    mapping = schema["$defs"]["MapConfig"]
    assert mapping["additionalProperties"] is False
    assert {"name", "table", "to", "key", "fields", "on_delete"} <= mapping["properties"].keys()
    assert {"type": "string"} in mapping["properties"]["fields"]["additionalProperties"]["anyOf"]
    assert schema["properties"]["crm"]["properties"].keys() == {"salesforce", "hubspot"}


def test_loading_the_config_loads_no_driver_and_no_vendor() -> None:
    """``--help`` and ``config`` stay quick: the config needs pydantic and nothing else of weight."""
    heavy = ["psycopg", "simple_salesforce", "hubspot", "aiohttp", "structlog", "asyncio_throttle", "requests"]
    code = f"import sys, cdcsync.config; print([name for name in {heavy!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_lines_are_found_in_every_shape_of_toml() -> None:
    """Dotted and quoted keys, comments, strings of all kinds, nested values, sub-tables of arrays of tables."""
    text = (
        '# a [comment]\r\ntop = """\n[no.table]\nx = 1\n"""\ndotted.key."with.dot" = \'it\'\'s\'\n'.replace(
            "it''s", "[x]"
        )
        + "[a.b] # [c]\n"
        + "list = [ # = [\n  { k = 1 },\n  ']',\n]\n"
        + 'after = "\\"]"\n'
        + "[[a.rows]]\nx = 1\n[a.rows.sub]\ny = '''\n'quoted'\n'''\nz = 2\n"
        + "[[a.rows]]\n  'x' = 2\n[[a.rows.deep]]\nd = 1\n"
        + '[ "last one" ]\nend = {a = 1, b = {c = 2}}'
    )
    lines = locate(text)
    assert lines["top",] == 2
    assert lines["dotted", "key", "with.dot"] == 6
    assert lines["a", "b"] == 7
    assert lines["a", "b", "list"] == 8
    assert lines["a", "b", "after"] == 12
    assert lines["a", "rows"] == lines["a", "rows", 0] == 13
    assert lines["a", "rows", 0, "sub", "y"] == 16
    assert lines["a", "rows", 0, "sub", "z"] == 19
    assert lines["a", "rows", 1] == 20
    assert lines["a", "rows", 1, "x"] == 21
    assert lines["a", "rows", 1, "deep", 0, "d"] == 23
    assert lines["last one", "end"] == 25
    assert line_of(lines, ("a", "b", "list", 0, "k")) == 8
    assert line_of(lines, ("last one", "end", "b", "c")) == 25
    assert line_of(lines, ("nowhere",)) == 1


def _quoted(value: object) -> str:
    """Write strings, numbers, booleans and lists of them as TOML, which has no surrogate escapes."""
    return json.dumps(value, ensure_ascii=False)


_key = st.text(st.characters(codec="utf-8", exclude_characters="\x7f", min_codepoint=32), max_size=5)
_value = st.recursive(
    st.one_of(
        st.integers(-9, 9),
        st.booleans(),
        st.text(st.characters(codec="utf-8", exclude_characters="\x7f", min_codepoint=32)),
    ),
    lambda inner: st.lists(inner, max_size=3),
    max_leaves=5,
)


@given(st.dictionaries(_key, st.dictionaries(_key, _value, max_size=4), max_size=4))
def test_every_key_of_any_document_is_found_on_its_line(document: dict[str, dict[str, Any]]) -> None:
    """Whatever keys and values hold, the locator counts as the writer did."""
    written: list[str] = []
    expected: dict[tuple[str, ...], int] = {}
    for table, values in document.items():
        written.append(f"[{_quoted(table)}]")
        expected[table,] = len(written)
        for key, value in values.items():
            written.append(f"{_quoted(key)} = {_quoted(value)} # {_quoted(key)}")
            expected[table, key] = len(written)
    lines = locate("\n".join(written))
    assert {path: lines[path] for path in expected} == expected


@given(st.integers(1, 1 << 50), st.integers(1, 10_000_000))
def test_sizes_and_durations_survive_printing(size: int, milliseconds: int) -> None:
    """What ``config show`` prints means the same."""
    assert parse_size(format_size(size)) == size
    assert parse_duration(format_duration(milliseconds / 1000)) == pytest.approx(milliseconds / 1000)


@pytest.mark.parametrize("text", ["", "5", "5x", "-5s", "0s", 5, None, "s", "٣s"])
def test_what_is_no_duration_or_size_is_refused(text: object) -> None:
    """Units are never guessed."""
    for parse in (parse_duration, parse_size):
        with pytest.raises(ValueError, match="expected"):
            parse(text)


@pytest.mark.parametrize("given_", ["", "60", "101%", "0%", 0, -5, True, 1.5, None])
def test_what_is_no_budget_is_refused(given_: object) -> None:
    """A share lies above 0 and up to 100 %, a number of calls is whole and positive."""
    with pytest.raises(ValueError, match="expected"):
        parse_budget(given_)


def test_templates_split_into_texts_and_columns() -> None:
    """Doubled braces are braces."""
    assert template_parts("Dear {a} {{{b}}}!") == [("Dear ", "a"), (" {", "b"), ("}!", None)]


def test_a_mapping_can_be_made_from_a_plain_dict() -> None:
    """Other parts (and tests) build mappings without a file."""
    one = MapConfig.model_validate({"table": "t", "to": "salesforce.X", "key": {"K": "id"}, "fields": {"A": "a"}})
    assert one.fields["A"].column == "a"
