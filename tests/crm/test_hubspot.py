"""The HubSpot adapter with the vendor's client against the sandbox account."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from typing import Any

import pytest

from cdcsync.apply.base import Finding, Wanted
from cdcsync.errors import CredentialsError, FatalError, RateLimitedError, TransientError
from cdcsync.model import Applied, Batch, Link, Missing, Op, Record, Rejected, Retry, Target
from cdcsync.sandbox.server import SandboxThread
from tests.crm.hubspot_account import COMPANIES, CONTACTS, DEALS, OAUTH, Account, ids


@pytest.fixture
def account(hubspot_sandbox: SandboxThread) -> Iterator[Account]:
    """Give a sandbox account with an open adapter."""
    opened = Account(hubspot_sandbox)
    yield opened
    opened.close()


def associations(account: Account, object_name: str, record_id: str, to_object: str) -> set[str]:
    """Ask HubSpot itself which records are associated with one."""
    api = account.crm._session.associations
    body = {"inputs": [{"id": record_id}]}
    answer = account.crm._session.call(api.get_page, object_name, to_object, body)
    return {str(end["toObjectId"]) for result in answer.get("results", []) for end in result["to"]}


def test_upsert_creates_then_changes_and_says_which(account: Account) -> None:
    """The first upsert creates, the second changes the same record; a repeat changes nothing."""
    (first,) = account.upsert(Record("1", {"firstname": "Ada", "score": 3}))
    (second,) = account.upsert(Record("1", {"firstname": "Grace"}))
    (third,) = account.upsert(Record("1", {"firstname": "Grace"}))
    assert isinstance(first, Applied)
    assert first.created
    assert second == third == Applied(first.crm_id)
    fields = account.fields()["1"]
    assert (fields["firstname"], fields["score"]) == ("Grace", "3")
    assert account.books()["double_creates"] == 0


def test_values_arrive_as_meant(account: Account) -> None:
    """Every type of value is accepted by a property of that type; None and the empty text clear, absent fields stay."""
    values: dict[str, Any] = {
        "firstname": "Zoë ☃",
        "score": Decimal("12345678901234.5"),
        "active": True,
        "birth_date": dt.date(1815, 12, 10),
        "signed_up_at": dt.datetime(2024, 6, 1, 10, 25, 0, 120_000, dt.UTC),
        "tier": "gold",
        "lastname": "Byron",
    }
    account.upsert(Record("1", values))
    stored = account.fields()["1"]
    assert stored["firstname"] == "Zoë ☃"
    assert stored["score"] == "12345678901234.5"
    assert stored["active"] == "true"
    assert stored["birth_date"] == "1815-12-10"
    assert stored["tier"] == "gold"
    account.upsert(Record("1", dict.fromkeys(values.keys() - {"lastname"})))
    cleared = account.fields()["1"]
    assert [cleared.get(name) or "" for name in values] == [""] * 6 + ["Byron"]


def test_a_date_goes_into_a_datetime_property_as_its_midnight(account: Account) -> None:
    """HubSpot refuses a bare date there; which properties are such is asked once."""
    day = dt.date(2024, 6, 1)
    for n in range(3):
        ids(account.upsert(Record(str(n), {"signed_up_at": day, "birth_date": day})))
    stored = account.fields()["2"]
    assert (stored["signed_up_at"], stored["birth_date"]) == ("2024-06-01T00:00:00Z", "2024-06-01")
    assert account.gate.passed == 4


def test_bad_rows_are_rejected_and_the_others_written(account: Account) -> None:
    """Of 100 rows three are bad, each in another way: they are named by code and property in HubSpot's words."""
    rows = [Record(str(n), {"firstname": f"n{n}"}) for n in range(100)]
    rows[3] = Record("3", {"email": "nobody@nowhere.invalidtld"})
    rows[50] = Record("50", {"tier": "platinum"})
    rows[99] = Record("99", {"birth_date": "yesterday"})
    outcomes = account.upsert(*rows)
    bad = {n: outcome for n, outcome in enumerate(outcomes) if isinstance(outcome, Rejected)}
    assert {n: (one.code, one.field) for n, one in bad.items()} == {
        3: ("INVALID_EMAIL", "email"),
        50: ("INVALID_OPTION", "tier"),
        99: ("INVALID_DATE", "birth_date"),
    }
    assert "platinum" in bad[50].message
    assert len(account.records()) == 97
    assert account.gate.passed == 1


def test_a_conflict_is_found_by_halving(account: Account) -> None:
    """A unique value that another record holds fails the whole upsert; only that row is rejected in the end."""
    account.upsert(Record("other", {"email": "taken@example.com"}))
    account.gate.passed = 0
    rows = [Record(str(n), {"email": f"p{n}@example.com"}) for n in range(100)]
    rows[42] = Record("42", {"email": "taken@example.com"})
    outcomes = account.upsert(*rows)
    assert [n for n, outcome in enumerate(outcomes) if not isinstance(outcome, Applied)] == [42]
    rejected = outcomes[42]
    assert isinstance(rejected, Rejected)
    assert rejected.code == "CONFLICT"
    assert "Existing ID" in rejected.message
    assert len(account.records()) == 100
    assert account.gate.passed <= 15


def test_a_value_that_moves_within_a_batch_moves(account: Account) -> None:
    """One row gives an address up and a later one takes it: both are applied."""
    account.upsert(Record("1", {"email": "a@example.com"}), Record("2", {"email": "b@example.com"}))
    outcomes = account.upsert(Record("1", {"email": "c@example.com"}), Record("2", {"email": "a@example.com"}))
    assert all(isinstance(outcome, Applied) for outcome in outcomes)
    assert {key: fields["email"] for key, fields in account.fields().items()} == {
        "1": "c@example.com",
        "2": "a@example.com",
    }


@pytest.mark.parametrize("partial", [True, False])
def test_contacts_by_address(account: Account, partial: bool) -> None:  # noqa: FBT001 - a parameter of the test
    """With e-mail as the key, results are matched whatever the case; also if HubSpot refuses partial upserts there."""
    account.settings(partial_upsert_by_email=partial)
    contacts = Target("contacts", "email")
    rows = [Record(f"Person{n}@Example.com", {"firstname": str(n)}) for n in range(20)]
    rows[7] = Record("Person7@Example.com", {"tier": "platinum"})
    outcomes = account.upsert(*rows, target=contacts)
    assert [n for n, outcome in enumerate(outcomes) if isinstance(outcome, Rejected)] == [7]
    found = account.crm.find(contacts, ["person1@EXAMPLE.com", "nobody@example.com"])
    assert found == {"person1@EXAMPLE.com": ids(outcomes[1:2])[0]}


def test_contacts_are_found_by_their_other_addresses(account: Account) -> None:
    """A contact that is known by several addresses answers with its first one; it is found all the same."""
    contacts = Target("contacts", "email")
    made = ids(account.upsert(Record("first@example.com"), Record("else@example.com"), target=contacts))
    account.admin("PATCH", f"/records/contacts/{made[0]}", {"hs_additional_emails": "second@example.com"})
    found = account.crm.find(contacts, ["else@example.com", "nobody@example.com", "second@example.com"])
    assert found == {"else@example.com": made[1], "second@example.com": made[0]}


def test_merged_records_are_read_and_updated_by_their_old_ids(account: Account) -> None:
    """The survivor has a new id, which an update answers with; beside it both old ids still work."""
    first, second, third = ids(account.upsert(*(Record(key, {"firstname": key}) for key in "123")))
    survivor = account.admin("POST", f"/records/contacts/{first}/merge", {"other": second})["id"]
    asked = [first, survivor, third, second, "999999"]
    read = account.crm.read(CONTACTS, asked, ["firstname", "lastname"])
    merged = {"firstname": "1", "lastname": None}
    assert read == {first: merged, survivor: merged, second: merged, third: {"firstname": "3", "lastname": None}}
    updates = (Record("1", {"lastname": "x"}, first, rekeyed=True), Record("3", {"lastname": "y"}, third))
    assert ids(account.crm.send(Batch(CONTACTS, Op.UPDATE, updates))) == [survivor, third]
    assert account.fields()["1"]["lastname"] == "x"


def test_updates_go_by_the_key(account: Account) -> None:
    """One request for a full batch, whatever ids the ledger has; silence about a record is looked into by its key."""
    keys = [str(n) for n in range(100)]
    made = account.made(*keys)
    account.gate.passed = 0
    updates = tuple(Record(key, {"firstname": "x"}, "999999") for key in keys)
    assert ids(account.crm.send(Batch(CONTACTS, Op.UPDATE, updates))) == made
    assert account.gate.passed == 1
    for n in range(2):
        account.fault(kind="refuse", status=200, body={"results": [], "errors": []}, match={"path": "/batch/update"})
        (outcome,) = account.crm.send(Batch(CONTACTS, Op.UPDATE, (Record(("7", "nobody")[n], {}, made[7]),)))
        assert type(outcome) is (Retry, Missing)[n]


def test_updates_of_contacts_by_address(account: Account) -> None:
    """HubSpot refuses an update by address, so the ids are looked up: one read more; what is not there is missing."""
    contacts = Target("contacts", "email")
    first, second, third, gone = ids(account.upsert(*(Record(f"{n}@example.com") for n in range(4)), target=contacts))
    account.admin("DELETE", f"/records/contacts/{gone}")
    account.gate.passed = 0
    outcomes = account.crm.send(
        Batch(
            contacts,
            Op.UPDATE,
            (
                Record("0@EXAMPLE.com", {"firstname": "a"}, "999999"),
                Record("3@example.com", {"firstname": "b"}, gone),
                Record("1b@example.com", {"firstname": "c"}, second, rekeyed=True),
                Record("2@example.com", {"firstname": "d"}, third),
                Record("4@example.com", {"firstname": "e"}, first),
            ),
        )
    )
    assert account.gate.passed == 2
    assert [outcome for outcome in outcomes if isinstance(outcome, Applied)] == [
        Applied(first),
        Applied(second),
        Applied(third),
    ]
    assert [type(outcome) for outcome in outcomes] == [Applied, Missing, Applied, Applied, Missing]
    held = {entry["fields"]["email"]: entry["fields"].get("firstname") for entry in account.records().values()}
    assert held == {"0@example.com": "a", "1b@example.com": "c", "2@example.com": "d"}


def test_two_ids_of_one_merged_record_are_told_apart(account: Account) -> None:
    """HubSpot refuses them in one request, without a word about who is to blame: halved, both are written."""
    first, second = account.made("1", "2")
    account.admin("POST", f"/records/contacts/{first}/merge", {"other": second})
    updates = (
        Record("1", {"lastname": "x"}, first, rekeyed=True),
        Record("1b", {"firstname": "y"}, second, rekeyed=True),
    )
    assert len(set(ids(account.crm.send(Batch(CONTACTS, Op.UPDATE, updates))))) == 1
    (fields,) = account.fields().values()
    assert (fields["lastname"], fields["firstname"]) == ("x", "y")


def test_a_read_that_is_refused_in_the_middle_of_a_write_rejects_nothing(account: Account) -> None:
    """The records are written, only what we ask meanwhile is refused for a reason that we do not know."""
    account.fault(kind="refuse", status=400, body={"message": "new"}, match={"path": "/crm/v3/properties/"})
    with pytest.raises(TransientError, match="new"):
        account.upsert(Record("1", {"signed_up_at": dt.date(2024, 6, 1)}))


def test_a_property_that_does_not_exist_stops_the_mapping(account: Account) -> None:
    """A fault of the mapping is no reject of each row."""
    with pytest.raises(FatalError, match="favourite_colour") as caught:
        account.upsert(*(Record(str(n), {"favourite_colour": "red"}) for n in range(100)))
    assert "check" in caught.value.hint
    assert account.gate.passed == 1


@pytest.mark.parametrize(
    ("target", "words"),
    [(Target("contacts", "firstname"), "non-unique"), (Target("butterflies", "id"), "butterflies")],
)
def test_a_key_or_object_that_cannot_work_stops_the_mapping(account: Account, target: Target, words: str) -> None:
    """A key without unique values, or an unknown object, is a fault of the mapping."""
    with pytest.raises(FatalError, match=words):
        account.upsert(Record("1"), Record("2"), target=target)


def test_update_by_id_changes_the_key_of_the_same_record(account: Account) -> None:
    """A key change keeps the record and sets its key."""
    (crm_id,) = account.made("old")
    update = Record("new", {"firstname": "Ada"}, crm_id, rekeyed=True)
    outcomes = account.crm.send(Batch(CONTACTS, Op.UPDATE, (update,)))
    assert outcomes == [Applied(crm_id)]
    assert account.crm.find(CONTACTS, ["old", "new"]) == {"new": crm_id}


def test_updates_of_vanished_records_say_so(account: Account) -> None:
    """Ids that HubSpot does not know are missing; bad values among the others are still found one by one."""
    made = account.made("1", "2", "3", "4")
    account.admin("DELETE", f"/records/contacts/{made[1]}")
    records = [Record(f"k{n}", {"tier": "gold"}, crm_id, rekeyed=True) for n, crm_id in enumerate(made)]
    records[2] = Record("k2", {"tier": "platinum"}, made[2], rekeyed=True)
    outcomes = account.crm.send(Batch(CONTACTS, Op.UPDATE, tuple(records)))
    assert [type(outcome) for outcome in outcomes] == [Applied, Missing, Rejected, Applied]
    assert account.crm.find(CONTACTS, ["k0", "k1", "k2", "k3", "3"]) == {"k0": made[0], "k3": made[3], "3": made[2]}


def test_delete_is_done_whoever_did_it(account: Account) -> None:
    """Archiving is idempotent, and unknown ids are no error."""
    made = account.made("1", "2")
    batch = Batch(CONTACTS, Op.DELETE, (Record("1", crm_id=made[0]), Record("9", crm_id="999999")))
    assert account.crm.send(batch) == [Applied(made[0]), Applied("999999")]
    assert account.crm.send(batch) == [Applied(made[0]), Applied("999999")]
    assert set(account.records()) == {made[1]}


def test_an_upsert_after_a_delete_makes_a_new_record(account: Account) -> None:
    """There is no restore: the key gets a new record."""
    (crm_id,) = account.made("1")
    account.crm.send(Batch(CONTACTS, Op.DELETE, (Record("1", crm_id=crm_id),)))
    (again,) = account.upsert(Record("1"))
    assert isinstance(again, Applied)
    assert again.created
    assert again.crm_id != crm_id


def test_find_takes_any_number_of_keys(account: Account) -> None:
    """Keys are looked up a hundred at a time; unknown and repeated ones do no harm."""
    keys = [str(n) for n in range(100)]
    made = dict(zip(keys, account.made(*keys), strict=True))
    account.gate.passed = 0
    assert account.crm.find(CONTACTS, [*(str(n) for n in range(250)), "7", "7"]) == made
    assert account.gate.passed == 3
    assert account.crm.find(CONTACTS, []) == {}


def test_associations_follow_the_links(account: Account) -> None:
    """A link is made, replaced and removed; a repeat does no harm."""
    old, new = account.made("c0", "c1", target=COMPANIES)
    (contact,) = ids(account.upsert(Record("1", links=(Link("companies", "contact_to_company", old),))))
    assert associations(account, "contacts", contact, "companies") == {old}
    for _ in range(2):
        account.upsert(Record("1", links=(Link("companies", "contact_to_company", new, (old,)),)))
        assert associations(account, "contacts", contact, "companies") == {new}
    account.upsert(Record("1", links=(Link("companies", "contact_to_company", None, (new, old)),)))
    assert associations(account, "contacts", contact, "companies") == set()


def test_one_record_may_have_links_to_several_objects(account: Account) -> None:
    """A deal belongs to a company and a contact; the inverse direction appears by itself."""
    (company,) = account.made("c", target=COMPANIES)
    (contact,) = account.made("p")
    links = (Link("companies", "deal_to_company", company), Link("contacts", "deal_to_contact", contact))
    fields = {"dealname": "d", "dealstage": "closedwon"}
    (deal,) = ids(account.upsert(Record("o", fields, links=links), target=DEALS))
    assert associations(account, "deals", deal, "companies") == {company}
    assert associations(account, "contacts", contact, "deals") == {deal}


def test_a_vanished_end_rejects_its_record_only(account: Account) -> None:
    """A new end that is not there rejects the record, by the link's type; a former end that is gone is no error."""
    kept, gone = account.made("c0", "c1", target=COMPANIES)
    account.admin("DELETE", f"/records/companies/{gone}")
    good = Record("1", links=(Link("companies", "contact_to_company", kept, (gone,)),))
    bad = Record("2", links=(Link("companies", "contact_to_company", gone),))
    nonsense = Record("3", links=(Link("companies", "contact_to_company", "no-id"),))
    outcomes = account.upsert(good, bad, nonsense)
    assert [type(outcome) for outcome in outcomes] == [Applied, Rejected, Rejected]
    assert all(outcome.field == "contact_to_company" for outcome in outcomes if isinstance(outcome, Rejected))
    (contact,) = account.crm.find(CONTACTS, ["1"]).values()
    assert associations(account, "contacts", contact, "companies") == {kept}


@pytest.mark.parametrize("name", ["best_friend", "deal_to_company"])
def test_a_wrong_association_type_stops_the_mapping(account: Account, name: str) -> None:
    """A type that the account does not have, or not between these objects, is a fault of the mapping."""
    (company,) = account.made("c", target=COMPANIES)
    with pytest.raises(FatalError, match=name) as caught:
        account.upsert(Record("1", links=(Link("companies", name, company),)))
    assert "contact_to_company" in caught.value.hint


def test_labels_of_the_account_are_association_types_too(account: Account) -> None:
    """A label that an admin made is found by its name."""
    session = account.crm._session
    session.call(session.labels.create, "contacts", "companies", {"label": "Billing", "name": "billing"})
    (company,) = account.made("c", target=COMPANIES)
    (contact,) = ids(account.upsert(Record("1", links=(Link("companies", "Billing", company),))))
    assert associations(account, "contacts", contact, "companies") == {company}


def test_a_failed_association_call_is_transient_and_may_be_repeated(account: Account) -> None:
    """The records are written, the association answer is lost: the repeat of the batch brings both in order."""
    (company,) = account.made("c", target=COMPANIES)
    account.fault(kind="do_then_fail", match={"path": "/associations/"}, status=502)
    record = Record("1", {"firstname": "Ada"}, links=(Link("companies", "contact_to_company", company),))
    with pytest.raises(TransientError):
        account.upsert(record)
    (contact,) = ids(account.upsert(record))
    assert associations(account, "contacts", contact, "companies") == {company}
    assert account.books()["double_creates"] == 0


@pytest.mark.parametrize(
    "rule",
    [
        {"kind": "refuse", "status": 503},
        {"kind": "lock"},
        {"kind": "refuse", "status": 423},
        {"kind": "refuse", "status": 477},
        {"kind": "do_then_fail", "status": 502},
        {"kind": "do_then_fail", "status": 524},
        {"kind": "reset", "when": "before"},
        {"kind": "reset", "when": "after"},
        {"kind": "garbage", "when": "after"},
    ],
    ids=lambda rule: "-".join(str(value) for value in rule.values()),
)
def test_lost_answers_are_transient_and_a_repeat_doubles_nothing(account: Account, rule: dict[str, Any]) -> None:
    """Whatever happens to an answer, the same batch again leaves one record per key."""
    account.fault(**rule, match={"path": "/batch/upsert"})
    rows = [Record(str(n), {"firstname": "x"}) for n in range(10)]
    with pytest.raises(TransientError):
        account.upsert(*rows)
    assert len(set(ids(account.upsert(*rows)))) == 10
    assert account.books()["double_creates"] == 0
    assert len(account.records()) == 10


@pytest.mark.parametrize(("settings", "scope"), [({"ten_secondly": 3}, "burst"), ({"daily": 3}, "daily")])
def test_refusals_for_the_rate_name_their_scope(account: Account, settings: dict[str, int], scope: str) -> None:
    """The gate is told which quota is used up before the error is raised."""
    account.settings(**settings)

    def exhaust() -> None:
        for n in range(10):
            account.upsert(Record(str(n)))

    with pytest.raises(RateLimitedError) as caught:
        exhaust()
    assert caught.value.scope == scope
    assert account.gate.refusals == [(scope, None)]


def test_a_refused_private_token_is_final(account: Account) -> None:
    """A token that is not valid (any more) is reported at once, at the login and later."""
    account.settings(tokens=["pat-na1-other"])
    with pytest.raises(CredentialsError):
        account.connect()
    with pytest.raises(CredentialsError):
        account.upsert(Record("1"))


def test_missing_scopes_are_named(account: Account) -> None:
    """A person has to add a scope: the message says which."""
    account.settings(scopes=["crm.objects.contacts.read"])
    with pytest.raises(FatalError) as caught:
        account.upsert(Record("1"))
    assert "crm.objects.contacts.write" in caught.value.hint


def test_expired_oauth_tokens_are_renewed_once_for_all_threads(account: Account) -> None:
    """Tokens that end without warning are renewed, by one request for threads that are refused together."""
    crm = account.connect(**OAUTH)
    try:
        account.fault(kind="expire_token", match={"path": "/batch/upsert"})

        def send(n: int) -> list[str]:
            return ids(crm.send(Batch(CONTACTS, Op.UPSERT, (Record(str(n)),))))

        with ThreadPoolExecutor(8) as pool:
            assert len({crm_id for sent in pool.map(send, range(40)) for crm_id in sent}) == 40
    finally:
        crm.close()
    grants = [entry for entry in account.admin("GET", "/requests?since=0") if entry["path"].startswith("/oauth")]
    assert len(grants) == 2


def test_a_refused_refresh_token_is_about_credentials(account: Account) -> None:
    """A refresh token that was withdrawn needs a person."""
    account.settings(refresh_tokens=["another"])
    with pytest.raises(CredentialsError, match="refresh token"):
        account.connect(**OAUTH)


def findings(account: Account, **changes: Any) -> dict[str, Finding]:
    """Check one mapping; give the findings by the last part of their subject."""
    wanted: dict[str, Any] = {"mapping": "m", "target": CONTACTS, "fields": {"firstname": "first_name"}} | changes
    return {finding.subject.partition(": ")[2]: finding for finding in account.crm.check([Wanted(**wanted)])}


def test_check_is_content_with_a_mapping_that_works(account: Account) -> None:
    """Object, key, fields and association types are ticked off one by one, and nothing is written."""
    found = findings(account, links=[("companies", "contact_to_company")])
    assert list(found) == [
        "object contacts",
        "key customer_id",
        "firstname = first_name",
        "association contact_to_company",
    ]
    assert all(finding.ok for finding in found.values())
    assert account.records() == {}


def test_check_explains_what_cannot_work(account: Account) -> None:
    """Missing, misspelt and read-only properties, keys that are not unique, and wrong associations have a remedy."""
    fields = {"first_name": "a", "createdate": "b", "zzz": "c"}
    links = [("companies", "deal_to_company"), ("companies", "best_friend")]
    found = findings(account, target=Target("contacts", "lastname"), fields=fields, links=links)
    assert [finding.ok for finding in found.values()] == [True] + [False] * 6
    assert "unique values" in found["key lastname"].hint
    assert "firstname" in found["first_name = a"].hint
    assert "read-only" in found["createdate = b"].message
    assert "contact_to_company" in found["association deal_to_company"].hint
    assert all(finding.hint for finding in found.values() if not finding.ok)


def test_check_of_an_unknown_object_or_a_missing_scope_is_one_finding(account: Account) -> None:
    """What hides a whole object is said once."""
    (unknown,) = findings(account, target=Target("butterflies", "id")).values()
    assert not unknown.ok
    account.settings(scopes=["crm.objects.contacts.write"])
    (hidden,) = findings(account).values()
    assert not hidden.ok
    assert "crm.schemas.contacts.read" in hidden.hint
