"""The Salesforce adapter against the sandbox org: bulk jobs, quotas, logins and Salesforce's own ways.

What every adapter has to do is tested in ``test_conformance.py``.
"""

from __future__ import annotations

import datetime as dt
import time
from collections.abc import Iterator
from decimal import Decimal
from typing import Any, cast

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from cdcsync.apply.base import Finding, OpenGate, Wanted
from cdcsync.apply.salesforce import SalesforceDestination
from cdcsync.apply.salesforce_session import SalesforceSession
from cdcsync.config import SalesforceConfig
from cdcsync.errors import (
    BatchRejectedError,
    ConfigError,
    CredentialsError,
    FatalError,
    RateLimitedError,
    TransientError,
)
from cdcsync.model import Applied, Batch, JobStatus, Op, Record, Ref, Rejected, Retry, Target, Value
from cdcsync.sandbox.server import SandboxThread
from tests.crm.conformance import Subject, ids
from tests.crm.conformance_salesforce import SALESFORCE, SECRET
from tests.polling import eventually

CONTACT = SALESFORCE.target
ACCOUNT = SALESFORCE.parent
OBJECTS = {
    "Ticket__c": {
        "fields": {
            "Number__c": {"type": "double", "externalId": True, "unique": True},
            "Loose__c": {"externalId": True, "caseSensitive": False},
            "Mail__c": {"type": "email", "externalId": True, "unique": True},
            "Account__c": {"type": "reference", "referenceTo": ["Account"]},
            "Formula__c": {"createable": False, "updateable": False, "calculated": True},
            "Fixed__c": {"updateable": False},
        }
    }
}


class Org(Subject):
    """An open Salesforce adapter with its sandbox."""

    def __init__(self, sandbox: SandboxThread) -> None:
        super().__init__(SALESFORCE, sandbox)
        self.salesforce = cast("SalesforceDestination", self.crm)

    def settings(self, **settings: object) -> None:
        """Change the sandbox's settings."""
        self.admin("PUT", "/settings", settings)

    def strike(self, kind: str, path: str, method: str | None = None, **rule: object) -> None:
        """Add a fault rule for certain requests."""
        self.admin("POST", "/faults", [{"kind": kind, "match": {"path": path, "method": method}, **rule}])

    def load(self, batch: Batch) -> tuple[str, JobStatus]:
        """Run a bulk job to its end."""
        job = self.salesforce.bulk_create(batch.target, batch.op)
        self.salesforce.bulk_upload(job, batch)
        self.salesforce.bulk_close(job)
        return job, self.ended(job)

    def ended(self, job: str) -> JobStatus:
        """Poll until a job has ended."""

        def status() -> JobStatus | None:
            shown = self.salesforce.bulk_poll(job)
            return None if shown.state in {"open", "running"} else shown

        found = eventually(status, what=f"job {job} does not end")
        assert found
        return found


@pytest.fixture
def org() -> Iterator[Org]:
    """Give a sandbox org, with an object of many kinds of keys, and an open adapter."""
    settings = {**SALESFORCE.settings, "objects": OBJECTS, "job_seconds": 0.05}
    with SandboxThread("salesforce", settings) as sandbox:
        opened = Org(sandbox)
        yield opened
        opened.close()


def contacts(*keys: str, **fields: Value) -> tuple[Record, ...]:
    """Make contacts."""
    return tuple(Record(key, {"LastName": f"Last {key}", **fields}) for key in keys)


def config(url: str, **login: object) -> SalesforceConfig:
    """Make a config with a login of its own."""
    environ = {"SECRET": SECRET, "KEY": str(login.pop("key", ""))}
    return SalesforceConfig.model_validate(
        {"login_url": url, "client_id": "app", **login}, context={"environ": environ}
    )


# --- values and references


def test_values_of_every_type_are_stored_alike_by_both_ways(org: Org) -> None:
    """What Collections store, a bulk job stores; NULL, the empty text and absence mean the same."""
    org.parents("a1")
    values: dict[str, Value] = {
        "LastName": 'Łovelace, "Ada"\r\nCountess',
        "Score__c": Decimal("1234567.89"),
        "Count__c": 7,
        "Active__c": True,
        "Birth__c": dt.date(1815, 12, 10),
        "Signed_Up__c": dt.datetime(2024, 6, 1, 10, 25, 0, 120_000, dt.UTC),
        "Level__c": "Gold",
        "AccountId": Ref("Account", "External_Id__c", "a1"),
        "Title": "Dr",
        "Phone": "1",
    }
    changed: dict[str, Value] = {"Title": None, "Phone": "", "AccountId": None, "Score__c": None, "Count__c": 8}
    for key, write in (("json", org.upsert), ("csv", lambda record: org.load(Batch(CONTACT, Op.UPSERT, (record,))))):
        write(Record(key, values))
        write(Record(key, changed))
    one, other = (org.stored()[key]["fields"] for key in ("json", "csv"))
    assert one.pop("External_Id__c") == "json"
    assert other.pop("External_Id__c") == "csv"
    assert one == other
    assert one["Signed_Up__c"] == "2024-06-01T10:25:00.000+0000"
    assert one["LastName"] == 'Łovelace, "Ada"\nCountess'
    assert one["Count__c"] == 8
    assert not {"Title", "Phone", "AccountId", "Score__c"} & one.keys()


def test_a_reference_to_nobody_is_refused_alone(org: Org) -> None:
    """A parent that is not there rejects its child, and says which key was looked for."""
    org.parents("a1")
    outcomes = org.upsert(
        *contacts("1", AccountId=Ref("Account", "External_Id__c", "a1")),
        *contacts("2", AccountId=Ref("Account", "External_Id__c", "nobody")),
    )
    assert isinstance(outcomes[0], Applied)
    assert isinstance(outcomes[1], Rejected)
    assert "nobody" in outcomes[1].message


def test_polymorphic_and_custom_references(org: Org) -> None:
    """A task's ``Who`` needs the object named, a custom look-up goes by its ``__r`` name."""
    (account,) = org.parents("a1")
    (contact,) = org.made("c1")
    task, ticket = Target("Task", "External_Id__c"), Target("Ticket__c", "External_Id__c")
    who = {"WhoId": Ref("Contact", "External_Id__c", "c1")}
    ids(org.crm.send(Batch(task, Op.UPSERT, (Record("t1", who),))))
    org.load(Batch(task, Op.UPSERT, (Record("t2", who),)))
    assert {entry["fields"]["WhoId"] for entry in org.stored(task).values()} == {contact}
    ids(org.crm.send(Batch(ticket, Op.UPSERT, (Record("k", {"Account__c": Ref("Account", "External_Id__c", "a1")}),))))
    assert org.stored(ticket)["k"]["fields"]["Account__c"] == account


def test_numeric_keys_write_refer_and_find(org: Org) -> None:
    """A key in a number field is a number in JSON, CSV and SOQL, however it is printed."""
    target = Target("Ticket__c", "Number__c")
    (first,) = ids(org.crm.send(Batch(target, Op.UPSERT, (Record("7", {"Name": "a"}),))))
    org.load(Batch(target, Op.UPSERT, (Record("8", {"Name": "b"}),)))
    found = org.crm.find(target, ["7", "8", "9", "7.0", "x"])
    assert found.keys() == {"7", "8", "7.0"}
    assert found["7"] == found["7.0"] == first


def test_keys_that_are_not_case_sensitive_are_still_told_apart(org: Org) -> None:
    """SOQL does not mind the case, a delete has to; addresses are kept in lower case."""
    loose, mail = Target("Ticket__c", "Loose__c"), Target("Ticket__c", "Mail__c")
    ids(org.crm.send(Batch(loose, Op.UPSERT, (Record("Abc", {}),))))
    assert org.crm.find(loose, ["abc", "ABC"]) == {}
    assert org.crm.find(loose, ["Abc"]).keys() == {"Abc"}
    ids(org.crm.send(Batch(mail, Op.UPSERT, (Record("Ada@Example.com", {}),))))
    assert org.crm.find(mail, ["Ada@Example.com"]).keys() == {"Ada@Example.com"}


def test_find_pages_through_long_answers(org: Org) -> None:
    """A query whose result has several pages is read to its end."""
    org.settings(query_page=200)
    keys = [f"{number:04}" for number in range(600)]
    org.load(Batch(CONTACT, Op.UPSERT, contacts(*keys)))
    assert org.crm.find(CONTACT, keys).keys() == set(keys)


def test_a_number_that_is_none_is_rejected_before_it_is_sent(org: Org) -> None:
    """NaN rejects its record on both ways; the neighbours go."""
    records = (*contacts("1"), *contacts("2", Score__c=float("nan")), *contacts("3"))
    job, _ = org.load(Batch(CONTACT, Op.UPSERT, records))
    for outcomes in (org.upsert(*records), org.salesforce.bulk_results(job, Batch(CONTACT, Op.UPSERT, records))):
        assert [type(outcome) for outcome in outcomes] == [Applied, Rejected, Applied]


# --- refusals


def test_locked_rows_may_be_sent_again(org: Org) -> None:
    """A row that could not be locked is no rejection."""
    org.strike("lock", "composite")
    (outcome,) = org.upsert(*contacts("1"))
    assert isinstance(outcome, Retry)
    assert outcome.code == "UNABLE_TO_LOCK_ROW"
    ids(org.upsert(*contacts("1")))


def test_an_update_that_refers_to_something_gone_is_not_missing(org: Org) -> None:
    """The same code stands for a record that is gone and for a parent that is: the record itself is looked for."""
    (contact,) = org.made("1")
    gone = "0015g00000ZZZZZAAA"
    record = Record("1", {"AccountId": gone}, contact)
    job, _ = org.load(Batch(CONTACT, Op.UPDATE, (record,)))
    by_bulk = org.salesforce.bulk_results(job, Batch(CONTACT, Op.UPDATE, (record,)))
    for outcomes in (org.send(Op.UPDATE, record), by_bulk):
        assert isinstance(outcomes[0], Rejected), outcomes


def test_a_field_that_is_not_there_stops_the_mapping(org: Org) -> None:
    """Refused for all records alike it is no matter of single rows; once the field is there, all goes on."""
    record = Record("1", {"LastName": "x", "New__c": "y"})
    with pytest.raises(FatalError, match="New__c") as refused:
        org.upsert(record)
    assert refused.value.hint
    org.settings(objects={**OBJECTS, "Contact": {"fields": {"New__c": {}}}})
    ids(org.upsert(record))


def test_a_field_that_is_not_there_stops_the_mapping_though_others_do_without(org: Org) -> None:
    """Records carry different fields: that the neighbours are written makes it no fault of the one that carries it."""
    records = (*contacts("1"), Record("2", {"LastName": "x", "New__c": "y"}), *contacts("3"))
    with pytest.raises(FatalError, match="New__c"):
        org.upsert(*records)
    assert org.stored().keys() == {"1", "3"}
    with pytest.raises(FatalError, match="New__c"):
        org.salesforce.read(CONTACT, [org.stored()["1"]["id"]], ["New__c"])
    org.settings(objects={**OBJECTS, "Contact": {"fields": {"New__c": {}}}})
    ids(org.upsert(*records))
    assert org.salesforce.read(CONTACT, [org.stored()["2"]["id"]], ["new__C"]) == {
        org.stored()["2"]["id"]: {"new__C": "y"}
    }


def test_a_checkbox_is_never_empty(org: Org) -> None:
    """What nobody ever ticked reads false."""
    (crm_id,) = org.made("1")
    assert org.salesforce.read(CONTACT, [crm_id], ["Active__c", "Title"]) == {
        crm_id: {"Active__c": False, "Title": None}
    }


@pytest.mark.parametrize("bulk", [False, True])
def test_a_full_org_is_no_fault_of_the_rows(org: Org, bulk: bool) -> None:  # noqa: FBT001 - a parameter of the test
    """Records cannot be created until somebody frees storage; nothing is rejected, and then all goes on."""
    org.made("1", "2")
    org.settings(storage_records=2)
    records = contacts("2", "3")
    with pytest.raises(FatalError, match="STORAGE_LIMIT_EXCEEDED") as refused:
        org.deliver(Op.UPSERT, *records, bulk=bulk)
    assert "Storage" in refused.value.hint
    org.settings(storage_records=None)
    ids(org.deliver(Op.UPSERT, *records, bulk=bulk))


@pytest.mark.parametrize("bulk", [False, True])
def test_triggers_that_ran_out_of_time_ask_for_fewer_records(org: Org, bulk: bool) -> None:  # noqa: FBT001 - as above
    """The limit is on the transaction: no row is rejected, and fewer go through."""
    org.settings(trigger_rows={"Contact": 2})
    outcomes = org.deliver(Op.UPSERT, *contacts("1", "2", "3"), bulk=bulk)
    assert all(isinstance(outcome, Retry) and outcome.shrink for outcome in outcomes), outcomes
    ids(org.deliver(Op.UPSERT, *contacts("1", "2"), bulk=bulk))


@pytest.mark.parametrize("target", [Target("Nowhere__c", "External_Id__c"), Target("Contact", "Nowhere__c")])
def test_an_object_or_key_that_is_not_there_stops_the_mapping(org: Org, target: Target) -> None:
    """Writing, looking up and creating a job say so alike."""
    for work in (
        lambda: org.crm.send(Batch(target, Op.UPSERT, (Record("1", {}),))),
        lambda: org.crm.find(target, ["1"]),
        lambda: org.salesforce.bulk_create(target, Op.UPSERT),
    ):
        with pytest.raises(FatalError):
            work()


def test_a_batch_that_cannot_be_parsed_is_halved(org: Org) -> None:
    """Salesforce does not say which record broke the request: halving finds it, and the others are written."""
    body = [{"errorCode": "JSON_PARSER_ERROR", "message": "cannot read this"}]
    org.strike("refuse", "composite", status=400, body=body, times=3)
    outcomes = org.upsert(*contacts("1", "2", "3", "4"))
    assert [type(outcome) for outcome in outcomes] == [Rejected, Applied, Applied, Applied]
    assert org.stored().keys() == {"2", "3", "4"}


@pytest.mark.parametrize(
    ("setting", "scope"), [({"daily_requests": 0}, "daily"), ({}, "concurrent")], ids=["daily", "concurrent"]
)
def test_quota_refusals_name_their_scope(org: Org, setting: dict[str, int], scope: str) -> None:
    """The day's allowance and too many requests at once are told apart, and reported to the gate."""
    org.settings(**setting)
    if not setting:
        org.strike("refuse", "composite", status=403)
    with pytest.raises(RateLimitedError) as refused:
        org.upsert(*contacts("1"))
    assert refused.value.scope == scope
    assert org.gate.refusals == [(scope, None)]


def test_answers_show_what_is_left_of_the_day(org: Org) -> None:
    """The org's allowance comes with every answer."""
    org.settings(daily_requests=5000)
    org.made("1")
    daily = org.gate.windows["daily"]
    assert daily.limit == 5000
    assert daily.limit - daily.remaining == org.requests("/services/data")
    assert daily.seconds == 86_400


@pytest.mark.parametrize("status", [400, 403])
def test_a_session_that_ended_is_renewed_whatever_the_status(org: Org, status: int) -> None:
    """The code says it; nothing was done, so the same request goes once more."""
    body = [{"errorCode": "INVALID_SESSION_ID", "message": "Session expired or invalid"}]
    org.strike("refuse", "composite", status=status, body=body)
    logins = org.requests("oauth2")
    ids(org.upsert(*contacts("1", "2")))
    assert org.requests("oauth2") == logins + 1


def test_an_answer_that_does_not_come_is_given_up(org: Org) -> None:
    """A silent server costs a time-out, not the daemon."""
    session = SalesforceSession(
        config(org.sandbox.url, client_secret={"env": "SECRET"}), OpenGate(), timeout=(5.0, 0.2)
    )
    session.log_in()
    org.strike("hold", "describe")
    with pytest.raises(TransientError, match="Timeout") as late:
        session.call("GET", "sobjects/Contact/describe")
    assert late.value.shrink
    session.close()


def test_errors_do_not_show_the_query(org: Org) -> None:
    """What is looked up is a row's key: it does not belong in a log."""
    org.crm.find(CONTACT, ["warm"])
    org.strike("reset", "/query")
    with pytest.raises(TransientError) as lost:
        org.crm.find(CONTACT, ["somebodys-key"])
    assert "somebodys-key" not in str(lost.value)


# --- logins


@pytest.fixture(scope="module")
def rsa_key() -> tuple[str, str]:
    """Give a private and a public key, as PEM."""
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    public = key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    return private.decode(), public.decode()


def jwt_login(url: str, key: str) -> SalesforceDestination:
    """Build an adapter that logs in by JWT bearer."""
    login = {"username": "sync@acme.example", "private_key": {"env": "KEY"}, "key": key}
    return SalesforceDestination("salesforce", config(url, **login), OpenGate())


def test_jwt_bearer_login(org: Org, rsa_key: tuple[str, str]) -> None:
    """The assertion is signed with the app's key, for the user, and works; another key is refused."""
    private, public = rsa_key
    org.settings(public_key=public, client_id="app", username="sync@acme.example")
    crm = jwt_login(org.sandbox.url, private)
    crm.open()
    ids(crm.send(Batch(CONTACT, Op.UPSERT, contacts("1"))))
    crm.close()
    org.settings(username="somebody@else.example")
    with pytest.raises(CredentialsError, match="approved"):
        crm.open()
    crm.close()


@pytest.mark.parametrize("key", ["no key at all", "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----"])
def test_a_private_key_that_is_none_is_about_credentials(org: Org, key: str) -> None:
    """A key that cannot sign is named, without a request."""
    before = org.requests()
    with pytest.raises(CredentialsError, match="private_key"):
        jwt_login(org.sandbox.url, key).open()
    assert org.requests() == before


def test_a_secret_that_is_not_there_is_a_matter_of_the_config(org: Org) -> None:
    """The login reads its secret when it is needed."""
    raw = {"login_url": org.sandbox.url, "client_id": "app", "client_secret": {"env": "NOWHERE"}}
    crm = SalesforceDestination("salesforce", SalesforceConfig.model_validate(raw, context={"environ": {}}), OpenGate())
    with pytest.raises(ConfigError, match="NOWHERE"):
        crm.open()
    crm.close()


def test_a_login_refused_again_at_once_is_about_credentials(org: Org) -> None:
    """A new token that does not work either is not asked for once more."""
    org.strike("refuse", "composite", status=401, times=2)
    logins = org.requests("oauth2")
    with pytest.raises(CredentialsError):
        org.upsert(*contacts("1"))
    assert org.requests("oauth2") == logins + 1
    ids(org.upsert(*contacts("1")))


@pytest.mark.parametrize("instance", ["http://somewhere.example", "ftp://127.0.0.1", "nonsense"])
def test_a_token_is_not_sent_without_tls(org: Org, instance: str) -> None:
    """An instance that is neither https nor on this machine is refused."""
    body = {"access_token": "t", "instance_url": instance, "id": "x/y/z"}
    org.strike("garbage", "oauth2/token", when="before", body=body)
    with pytest.raises(CredentialsError, match="https"):
        org.crm.open()


def test_too_many_logins_are_a_matter_of_rate(org: Org) -> None:
    """The gate is told."""
    body = {"error": "invalid_grant", "error_description": "login rate exceeded"}
    org.strike("refuse", "oauth2/token", status=400, body=body)
    with pytest.raises(RateLimitedError):
        org.crm.open()
    assert org.gate.refusals == [("burst", None)]


# --- bulk jobs


def test_a_job_writes_rejects_and_matches_by_key(org: Org) -> None:
    """Results come in any order; each record has its own, with the words and the field of its refusal."""
    org.made("7")
    keys = [f"{number}" for number in range(500)]
    records = (*contacts(*keys), Record('bad,\n"one"', {"LastName": None}))
    batch = Batch(CONTACT, Op.UPSERT, records)
    job, status = org.load(batch)
    assert (status.state, status.processed, status.failed) == ("done", 501, 1)
    outcomes = org.salesforce.bulk_results(job, batch)
    stored = org.stored()
    for key, outcome in zip(keys, outcomes, strict=False):
        assert outcome == Applied(stored[key]["id"], created=key != "7")
    assert outcomes[-1] == Rejected("REQUIRED_FIELD_MISSING", "Required fields are missing: [LastName]", "LastName")


def test_delete_and_update_jobs_match_by_id(org: Org) -> None:
    """What is gone is deleted; what is gone cannot be updated."""
    first, second = org.made("1", "2")
    update = Batch(
        CONTACT, Op.UPDATE, (Record("one", {"LastName": "x"}, first), Record("3", {}, SALESFORCE.unknown_id))
    )
    job, _ = org.load(update)
    assert [type(one).__name__ for one in org.salesforce.bulk_results(job, update)] == ["Applied", "Missing"]
    assert org.stored()["one"]["id"] == first
    delete = Batch(
        CONTACT,
        Op.DELETE,
        (Record("one", crm_id=first), Record("2", crm_id=second), Record("3", crm_id=SALESFORCE.unknown_id)),
    )
    for _ in range(2):
        job, _ = org.load(delete)
        assert all(isinstance(one, Applied) for one in org.salesforce.bulk_results(job, delete))
    assert org.stored() == {}


STEPS = [
    pytest.param("PUT", "/batches", id="upload"),
    pytest.param("PATCH", "/jobs/ingest", id="close"),
    pytest.param("GET", "/jobs/ingest/[^/]+$", id="poll"),
    pytest.param("GET", "Results", id="results"),
]


@pytest.mark.parametrize(("method", "path"), STEPS)
@pytest.mark.parametrize("when", ["before", "after"])
def test_every_step_may_be_repeated(org: Org, method: str, path: str, when: str) -> None:
    """An answer lost at any step: the step fails for a passing reason, and works when it is taken again."""
    batch = Batch(CONTACT, Op.UPSERT, contacts("1", "2"))
    org.strike("reset", path, method, when=when)
    lost = 0

    def insist(step: Any, *arguments: object) -> Any:
        nonlocal lost
        try:
            return step(*arguments)
        except TransientError:
            lost += 1
            return step(*arguments)

    job = insist(org.salesforce.bulk_create, CONTACT, Op.UPSERT)
    insist(org.salesforce.bulk_upload, job, batch)
    insist(org.salesforce.bulk_close, job)
    while insist(org.salesforce.bulk_poll, job).state == "running":
        time.sleep(0.02)
    ids(insist(org.salesforce.bulk_results, job, batch))
    assert lost == 1
    assert org.books()["creates"] == 2


def test_steps_that_were_taken_long_ago_are_recognised(org: Org) -> None:
    """After a crash steps are repeated on a job that is running or done, or is not there any more."""
    batch = Batch(CONTACT, Op.UPSERT, contacts("1"))
    job, _ = org.load(batch)
    org.salesforce.bulk_upload(job, batch)
    org.salesforce.bulk_close(job)
    assert org.salesforce.bulk_poll(job).state == "done"
    ids(org.salesforce.bulk_results(job, batch))
    nowhere = "7505g00000ZZZZZAAA"
    org.salesforce.bulk_upload(nowhere, batch)
    org.salesforce.bulk_close(nowhere)
    assert org.salesforce.bulk_poll(nowhere) == JobStatus("missing")


def test_a_job_whose_creation_was_not_answered_is_found(org: Org) -> None:
    """It is ours, open, of the same kind, and not older than the attempt."""
    earlier = org.salesforce.bulk_create(CONTACT, Op.UPSERT)
    started = time.time()
    assert org.salesforce.bulk_find(CONTACT, Op.UPSERT, started + 60) is None
    assert org.salesforce.bulk_find(CONTACT, Op.DELETE, started) is None
    assert org.salesforce.bulk_find(ACCOUNT, Op.UPSERT, started) is None
    assert org.salesforce.bulk_find(CONTACT, Op.UPSERT, started) == earlier
    org.strike("reset", "/jobs/ingest$", "POST", when="after")
    with pytest.raises(TransientError):
        org.salesforce.bulk_create(ACCOUNT, Op.UPSERT)
    found = org.salesforce.bulk_find(ACCOUNT, Op.UPSERT, started)
    assert found
    batch = Batch(ACCOUNT, Op.UPSERT, (Record("a1", {"Name": "Acme"}),))
    org.salesforce.bulk_upload(found, batch)
    org.salesforce.bulk_close(found)
    assert org.ended(found).state == "done"
    assert org.salesforce.bulk_find(ACCOUNT, Op.UPSERT, started) is None


def test_an_update_job_is_found_too(org: Org) -> None:
    """Its kind has no key field, and is not that of an upsert of the same object."""
    started = time.time()
    job = org.salesforce.bulk_create(CONTACT, Op.UPDATE)
    assert org.salesforce.bulk_find(CONTACT, Op.UPSERT, started) is None
    assert org.salesforce.bulk_find(CONTACT, Op.UPDATE, started) == job


STEPS_WITHOUT_ROWS = [("POST", "/jobs/ingest$"), ("PATCH", "/jobs/ingest"), ("GET", "/jobs/ingest"), ("GET", "Results")]


@pytest.mark.parametrize(("method", "path"), STEPS_WITHOUT_ROWS)
def test_a_step_that_carries_no_rows_never_rejects_any(org: Org, method: str, path: str) -> None:
    """Refused for a reason that we do not know, it is tried again; only an upload can be refused for its content."""
    batch = Batch(CONTACT, Op.UPSERT, contacts("1"))
    body = [{"errorCode": "API_ERROR", "message": "something new"}]
    org.strike("refuse", path, method, status=400, body=body)
    with pytest.raises(TransientError, match="something new"):
        org.salesforce.bulk_results(org.load(batch)[0], batch)
    ids(org.deliver(Op.UPSERT, *batch.records, bulk=True))


def test_an_upload_may_be_refused_for_its_content(org: Org) -> None:
    """Nothing was done: the rows may be sent in another way."""
    job = org.salesforce.bulk_create(CONTACT, Op.UPSERT)
    org.strike("refuse", "/batches", status=413, body="<html>Request Entity Too Large</html>")
    with pytest.raises(BatchRejectedError):
        org.salesforce.bulk_upload(job, Batch(CONTACT, Op.UPSERT, contacts("1")))


def test_other_users_jobs_are_not_ours(org: Org) -> None:
    """Another integration may have the same kind of job open."""
    raw = {"login_url": org.sandbox.url, "client_id": "another", "client_secret": {"env": "SECRET"}}
    other = SalesforceDestination(
        "other", SalesforceConfig.model_validate(raw, context={"environ": {"SECRET": SECRET}}), OpenGate()
    )
    other.open()
    job = other.bulk_create(CONTACT, Op.UPSERT)
    assert other.bulk_find(CONTACT, Op.UPSERT, time.time()) == job
    other.close()
    assert org.salesforce.bulk_find(CONTACT, Op.UPSERT, time.time()) is None


def test_an_expired_login_does_not_disturb_a_job(org: Org) -> None:
    """Bulk requests are repeated with a new token like all others."""
    batch = Batch(CONTACT, Op.UPSERT, contacts("1"))
    job = org.salesforce.bulk_create(CONTACT, Op.UPSERT)
    for step in (org.salesforce.bulk_upload, lambda job, _: org.salesforce.bulk_close(job)):
        org.strike("expire_token", "/jobs/ingest")
        step(job, batch)
    org.ended(job)
    ids(org.salesforce.bulk_results(job, batch))


def test_what_csv_cannot_say_goes_by_collections(org: Org) -> None:
    """A text that CSV takes for null reaches Salesforce all the same, in a job with others or alone."""
    odd = contacts("odd", FirstName="#N/A")
    for records in ((*contacts("1", "2"), *odd), odd):
        batch = Batch(CONTACT, Op.UPSERT, records)
        job, status = org.load(batch)
        assert status.state == ("done" if len(records) > 1 else "aborted")
        ids(org.salesforce.bulk_results(job, batch))
        assert org.value("odd", "FirstName") == "#N/A"


def test_rows_beyond_the_end_of_a_job_may_be_sent_again(org: Org) -> None:
    """What a job did not look at is no rejection."""
    batch = Batch(CONTACT, Op.UPSERT, contacts("1", "2"))
    job, _ = org.load(Batch(CONTACT, Op.UPSERT, batch.records[:1]))
    outcomes = org.salesforce.bulk_results(job, batch)
    assert isinstance(outcomes[0], Applied)
    assert isinstance(outcomes[1], Retry)


def test_locked_rows_of_a_job_may_be_sent_again(org: Org) -> None:
    """Salesforce does not try them again itself."""
    org.strike("lock", "jobs", times=1)
    batch = Batch(CONTACT, Op.UPSERT, contacts("1", "2"))
    job, _ = org.load(batch)
    outcomes = org.salesforce.bulk_results(job, batch)
    assert sorted(type(outcome).__name__ for outcome in outcomes) == ["Applied", "Retry"]


def test_a_job_that_failed_says_why(org: Org) -> None:
    """A header that names a field which is not there fails the whole job before any row."""
    _, status = org.load(Batch(CONTACT, Op.UPSERT, contacts("1", Nowhere__c="x")))
    assert (status.state, status.processed) == ("failed", 0)
    assert "Nowhere__c" in status.message


def test_a_job_that_failed_for_a_quota_may_be_repeated(org: Org) -> None:
    """The batch allowance of the day is no fault of the rows, and no new job is made beyond it.

    It is a quota of its own: requests go on.
    """
    batch = Batch(CONTACT, Op.UPSERT, contacts("1"))
    job = org.salesforce.bulk_create(CONTACT, Op.UPSERT)
    org.salesforce.bulk_upload(job, batch)
    org.settings(daily_batches=0)
    org.salesforce.bulk_close(job)
    assert org.ended(job).state == "aborted"
    assert org.gate.refusals == [("bulk", None)]
    assert isinstance(org.salesforce.bulk_results(job, batch)[0], Retry)
    with pytest.raises(RateLimitedError) as refused:
        org.salesforce.bulk_create(CONTACT, Op.UPSERT)
    assert refused.value.scope == "bulk"
    assert org.gate.refusals[1:] == [("bulk", None)]


def test_bulk_batches_are_counted(org: Org) -> None:
    """Each started 10,000 rows of a job are one of the org's batches; what CSV cannot say is in none."""
    org.load(Batch(CONTACT, Op.UPSERT, contacts("1", "2")))
    assert org.gate.spendings == {"bulk": 1}
    many = Batch(CONTACT, Op.UPSERT, contacts(*map(str, range(10_001))))
    org.salesforce.bulk_upload(org.salesforce.bulk_create(CONTACT, Op.UPSERT), many)
    assert org.gate.spendings == {"bulk": 3}


@pytest.mark.parametrize("path", ["successfulResults", "failedResults"])
def test_garbage_in_place_of_results_is_transient(org: Org, path: str) -> None:
    """A proxy's page is no empty result."""
    batch = Batch(CONTACT, Op.UPSERT, (Record("1", {"LastName": None}),))
    job, _ = org.load(batch)
    org.strike("garbage", path)
    with pytest.raises(TransientError):
        org.salesforce.bulk_results(job, batch)


def test_garbage_in_place_of_a_state_is_transient(org: Org) -> None:
    """A proxy's page says nothing about the job."""
    job = org.salesforce.bulk_create(CONTACT, Op.UPSERT)
    org.strike("garbage", job)
    with pytest.raises(TransientError):
        org.salesforce.bulk_poll(job)


def test_limits_follow_the_config(org: Org) -> None:
    """``bulk_from`` is Salesforce's own advice unless the config says otherwise."""
    assert org.crm.limits.bulk_from == 2000
    secret = {"client_secret": {"env": "SECRET"}}
    crm = SalesforceDestination("s", config(org.sandbox.url, bulk_from=50, max_parallel=2, **secret), OpenGate())
    assert (crm.limits.bulk_from, crm.limits.max_parallel) == (50, 2)


# --- check


def checked(org: Org, **changes: Any) -> dict[str, Finding]:
    """Check one mapping; give the findings by what they are about."""
    wanted: dict[str, Any] = {"mapping": "m", "target": CONTACT, "fields": {"LastName": "name"}} | changes
    return {finding.subject.removeprefix("m: "): finding for finding in org.crm.check([Wanted(**wanted)])}


def test_check_of_keys(org: Org) -> None:
    """A key must be an External ID; one that is not unique, or does not mind the case, is said."""
    found = {
        name: checked(org, target=Target("Ticket__c", name), fields={})[f"key {name}"]
        for name in ("Number__c", "Loose__c", "Mail__c", "External_Id__c", "Fixed__c", "Extrenal_Id__c")
    }
    assert {name: finding.ok for name, finding in found.items()} == {
        "Number__c": True,
        "Loose__c": True,
        "Mail__c": True,
        "External_Id__c": True,
        "Fixed__c": False,
        "Extrenal_Id__c": False,
    }
    assert "not unique" in found["Loose__c"].message
    assert "case" in found["Mail__c"].message
    assert "External ID" in found["Fixed__c"].hint
    assert found["Extrenal_Id__c"].hint == "did you mean External_Id__c?"


def test_check_of_fields(org: Org) -> None:
    """Formulas, fields that are fixed at creation, unknown ones and required ones that nothing fills."""
    found = checked(org, target=Target("Ticket__c", "External_Id__c"), fields={"Formula__c": "a", "Fixed__c": "b"})
    assert not found["Formula__c = a"].ok
    assert "created" in found["Fixed__c = b"].message
    missing = checked(org, fields={"FristName": "f"})
    assert missing["FristName = f"].hint == "did you mean FirstName?"
    assert not missing["LastName"].ok
    assert "column" in missing["LastName"].hint


def test_check_of_a_checkbox_that_is_the_crms_own(org: Org) -> None:
    """It is false from the start, so nothing is ever sent to it again: said, but no mistake."""
    fields = {"LastName": "name", "Active__c": "active", "Title": "title"}
    found = checked(org, fields=fields, only_if_empty=frozenset({"Active__c", "Title"}))
    assert found["Active__c = active"].ok
    assert "never empty" in found["Active__c = active"].message
    assert "never empty" not in found["Title = title"].message


@pytest.mark.parametrize(
    ("ref", "ok"),
    [
        (("Account", "External_Id__c"), True),
        (("Account", "Phone"), False),
        (("Account", "Nowhere__c"), False),
        (("Lead", "External_Id__c"), False),
        (("Nowhere__c", "External_Id__c"), False),
    ],
)
def test_check_of_references(org: Org, ref: tuple[str, str], ok: bool) -> None:  # noqa: FBT001 - a parameter of the test
    """The field must refer to that object, and the object be found by that field."""
    fields = {"LastName": "name", "AccountId": "company"}
    finding = checked(org, fields=fields, refs={"AccountId": ref})[f"AccountId → {ref[0]}.{ref[1]}"]
    assert finding.ok is ok
    assert ok or finding.hint
