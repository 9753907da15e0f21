"""What people do to a CRM while we write to it, through the sandboxes' admin API: merge, revoke."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from cdcsync.errors import CredentialsError
from cdcsync.model import Applied, Missing, Op
from cdcsync.sandbox.server import SandboxThread
from tests.crm.conformance import Subject, ids
from tests.crm.conformance_hubspot import HUBSPOT
from tests.crm.conformance_salesforce import SALESFORCE
from tests.crm.hubspot_account import Account
from tests.crm.salesforce_org import Org, errors


@pytest.fixture(params=[SALESFORCE, HUBSPOT], ids=lambda adapter: adapter.crm)
def subject(request: pytest.FixtureRequest) -> Iterator[Subject]:
    """Give an open adapter of each CRM, with a fresh sandbox."""
    with SandboxThread(request.param.crm, request.param.settings) as sandbox:
        opened = Subject(request.param, sandbox)
        yield opened
        opened.close()


@pytest.fixture
def org(salesforce_sandbox: SandboxThread) -> Iterator[Org]:
    """Give a logged-in org."""
    org = Org(salesforce_sandbox)
    yield org
    org.close()


def test_of_two_merged_records_one_is_left(subject: Subject) -> None:
    """Salesforce buries the other one, HubSpot lets its id mean the survivor; its key is free in both.

    An update of the other one's row finds nothing in either, and leaves the survivor alone.
    """
    first, second = subject.made("1", "2")
    survivor = subject.admin("POST", f"/records/{subject.adapter.target.object}/{first}/merge", {"other": second})["id"]
    assert {key: entry["id"] for key, entry in subject.stored().items()} == {"1": survivor}
    (outcome,) = subject.send(Op.UPDATE, subject.record("2", crm_id=second, text="x"))
    assert isinstance(outcome, Missing)
    assert subject.value("1", subject.adapter.text) == "made"
    assert ids(subject.send(Op.UPDATE, subject.record("1", crm_id=first, text="x"))) == [survivor]
    (outcome,) = subject.send(Op.UPDATE, subject.rekeyed("1", second, "x"))
    if subject.adapter is SALESFORCE:
        assert survivor == first
        assert isinstance(outcome, Missing)
    else:
        assert survivor not in {first, second}
        assert outcome == Applied(survivor)
    (again,) = subject.upsert(subject.record("2", text="new"))
    assert isinstance(again, Applied)
    assert again.created
    books = subject.books()
    assert (books["double_creates"], books["creates"]) == (0, 3)


def test_a_merge_that_makes_no_sense_is_refused(subject: Subject) -> None:
    """With itself, with nothing, with what is not there."""
    (crm_id,) = subject.made("1")
    for other in (crm_id, subject.adapter.unknown_id, None):
        with pytest.raises(AssertionError, match="error"):
            subject.admin("POST", f"/records/{subject.adapter.target.object}/{crm_id}/merge", {"other": other})
    assert subject.stored().keys() == {"1"}


def test_revoked_tokens_are_renewed_where_there_is_a_way(subject: Subject) -> None:
    """The next request is refused, and a new login finds in."""
    subject.made("1")
    logins = subject.requests(subject.adapter.login_path)
    subject.admin("DELETE", "/tokens")
    ids(subject.upsert(subject.record("2", text="x")))
    assert subject.requests(subject.adapter.login_path) == logins + 1


def test_a_revoked_private_token_is_gone_for_good(hubspot_sandbox: SandboxThread) -> None:
    """Only a person can make another one."""
    account = Account(hubspot_sandbox)
    account.made("1")
    account.admin("DELETE", "/tokens")
    with pytest.raises(CredentialsError):
        account.made("2")
    account.close()


def test_children_of_a_merged_account_go_to_the_survivor(org: Org) -> None:
    """They are not deleted with it, and their books show no write of the API's."""
    master, other = (
        result["id"] for result in org.upsert("Account", *({"External_Id__c": k, "Name": k} for k in "ab"))
    )
    org.upsert("Contact", {"External_Id__c": "c", "LastName": "x", "Account": {"External_Id__c": "b"}})
    writes = org.admin("GET", "/books")["writes"]
    assert org.admin("POST", f"/records/Account/{master}/merge", {"other": other}) == {"id": master}
    assert org.contact("c")["AccountId"] == master
    assert org.admin("GET", "/books")["writes"] == writes
    assert org.call("GET", f"/sobjects/Account/{other}").status_code == 404


def test_some_objects_are_not_merged(org: Org) -> None:
    """Salesforce merges accounts, contacts, leads and cases."""
    deals = [{"External_Id__c": key, "Name": "x", "StageName": "s", "CloseDate": "2026-01-01"} for key in "ab"]
    first, second = (result["id"] for result in org.upsert("Opportunity", *deals))
    assert "merged" in org.admin("POST", f"/records/Opportunity/{first}/merge", {"other": second})["error"]


def test_a_full_storage_takes_updates_and_deletes(org: Org) -> None:
    """Only new records find no room; what is deleted makes some."""
    first, _ = (result["id"] for result in org.upsert("Contact", *({"External_Id__c": k, "LastName": k} for k in "ab")))
    org.admin("PUT", "/settings", {"storage_records": 2})
    three = [{"External_Id__c": key, "LastName": "x"} for key in "bcd"]
    full = "STORAGE_LIMIT_EXCEEDED: storage limit exceeded"
    assert errors(org.upsert("Contact", *three)) == ["", full, full]
    org.call("DELETE", f"/sobjects/Contact/{first}")
    assert errors(org.upsert("Contact", *three)) == ["", "", full]


@pytest.mark.parametrize("body", [{"ids": []}, {"fields": ["Id"]}, {"ids": ["x"], "fields": []}])
def test_a_read_that_asks_for_nothing_is_refused(org: Org, body: dict[str, list[str]]) -> None:
    """Ids and fields are both required."""
    assert org.call("POST", "/composite/sobjects/Contact", json=body).status_code == 400


def test_a_read_answers_in_the_order_asked(org: Org) -> None:
    """Null stands for what is not there: no id, another object's, a deleted one."""
    contacts = [
        result["id"] for result in org.upsert("Contact", *({"External_Id__c": k, "LastName": k} for k in "abc"))
    ]
    (account,) = (result["id"] for result in org.upsert("Account", {"External_Id__c": "a", "Name": "n"}))
    org.call("DELETE", f"/sobjects/Contact/{contacts[2]}")
    body = {"ids": [contacts[1], account, contacts[2], "nonsense", contacts[0][:15]], "fields": ["lastname", "Email"]}
    answer = org.call("POST", "/composite/sobjects/Contact", json=body).json()
    assert [entry and (entry["LastName"], entry["Email"]) for entry in answer] == [
        ("b", None),
        None,
        None,
        None,
        ("a", None),
    ]
    many = org.call("POST", "/composite/sobjects/Contact", json={**body, "ids": [contacts[0]] * 2001})
    assert many.json()[0]["errorCode"] == "EXCEEDED_ID_LIMIT"
    unknown = org.call("POST", "/composite/sobjects/Contact", json={**body, "fields": ["Nowhere__c"]})
    assert (unknown.status_code, unknown.json()[0]["errorCode"]) == (400, "INVALID_FIELD")
