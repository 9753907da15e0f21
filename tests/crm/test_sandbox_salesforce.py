"""The sandbox Salesforce against what is known of the real one: raw HTTP, and the vendor-neutral client library."""

from __future__ import annotations

import datetime as dt
import gzip
import time
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote, urlsplit

import jwt
import pytest
import requests
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from simple_salesforce.api import Salesforce
from simple_salesforce.exceptions import SalesforceExpiredSession, SalesforceMalformedRequest
from simple_salesforce.format import format_soql

from cdcsync.sandbox.salesforce_ids import canonical, new_id
from cdcsync.sandbox.server import SandboxThread
from tests.crm.salesforce_org import Org, errors
from tests.polling import eventually

JWT_BEARER = "urn:ietf:params:oauth:grant-type:jwt-bearer"


@pytest.fixture
def org(salesforce_sandbox: SandboxThread) -> Iterator[Org]:
    """Give a logged-in org whose jobs take next to no time."""
    org = Org(salesforce_sandbox)
    org.admin("PUT", "/settings", {"job_seconds": 0.02})
    yield org
    org.close()


@pytest.fixture
def client(org: Org) -> Any:
    """Give simple-salesforce, logged in to the org; its annotations do not fit its dynamic objects."""
    instance = urlsplit(org.sandbox.url).netloc
    return Salesforce(instance=instance, session_id=org.token, session=org.http, version="60.0")


@pytest.fixture(scope="module")
def key() -> rsa.RSAPrivateKey:
    """Give a key for JWT logins."""
    return rsa.generate_private_key(public_exponent=65537, key_size=2048)


def refused(answer: requests.Response) -> tuple[int, str]:
    """Give an error answer's status and code."""
    return answer.status_code, answer.json()[0]["errorCode"]


class TestIds:
    """Ids with their checksums."""

    def test_known_suffix(self) -> None:
        """The documented example of an 18-character id."""
        assert canonical("001D000000IRFma") == "001D000000IRFmaIAH"

    def test_lower_cased_id_is_restored(self) -> None:
        """The last three characters are enough to restore the case."""
        whole = new_id("003", 62**4 * 37 + 11)
        assert canonical(whole.lower()[:15] + whole[15:]) == whole

    @pytest.mark.parametrize("text", ["", "003", "001D000000IRFmaIA", "001D000000IRFma!!!", "001D0000001RFmaIAH", None])
    def test_others_are_no_ids(self, text: str | None) -> None:
        """Wrong lengths, characters and checksums are refused."""
        assert canonical(text) is None


class TestLogin:
    """The token endpoint."""

    def ask(self, org: Org, **form: str) -> requests.Response:
        """Ask for a token."""
        return requests.post(f"{org.sandbox.url}/services/oauth2/token", data=form, timeout=30)

    def claims(self, org: Org, **more: Any) -> dict[str, Any]:
        """Give the claims of a good assertion."""
        return {"iss": "app", "sub": "sync@acme.com", "aud": org.sandbox.url, "exp": int(time.time()) + 170, **more}

    def test_client_credentials(self, org: Org) -> None:
        """The answer names the instance as it was addressed, and the user."""
        answer = self.ask(org, grant_type="client_credentials", client_id="app", client_secret="x")
        body = answer.json()
        assert body["instance_url"] == org.sandbox.url
        user = requests.get(
            f"{org.sandbox.url}/services/oauth2/userinfo",
            headers={"Authorization": f"Bearer {body['access_token']}"},
            timeout=30,
        ).json()
        assert body["id"].endswith(f"/{user['organization_id']}/{user['user_id']}")

    def test_wrong_client(self, org: Org) -> None:
        """A wrong id and a wrong secret have errors of their own."""
        org.admin("PUT", "/settings", {"client_id": "app", "client_secret": "right"})
        wrong_id = self.ask(org, grant_type="client_credentials", client_id="other", client_secret="right")
        wrong_secret = self.ask(org, grant_type="client_credentials", client_id="app", client_secret="x")
        assert (wrong_id.status_code, wrong_id.json()["error"]) == (400, "invalid_client_id")
        assert (wrong_secret.status_code, wrong_secret.json()["error"]) == (400, "invalid_client")

    @pytest.mark.parametrize("expires", [int, str])
    def test_jwt(self, org: Org, key: rsa.RSAPrivateKey, expires: type) -> None:
        """A signed assertion logs in; its expiry may be a string."""
        assertion = jwt.encode(self.claims(org, exp=expires(int(time.time()) + 170)), key, "RS256")
        assert self.ask(org, grant_type=JWT_BEARER, assertion=assertion).status_code == 200

    @pytest.mark.parametrize(
        "more",
        [
            {"exp": 1},
            {"exp": int(time.time()) + 4000},
            {"aud": "https://example.com"},
            {"sub": ""},
            {"sub": "other@acme.com"},
        ],
    )
    def test_refused_claims(self, org: Org, key: rsa.RSAPrivateKey, more: dict[str, Any]) -> None:
        """Expired, long-lived, misaddressed and unknown users' assertions are invalid grants."""
        org.admin("PUT", "/settings", {"username": "sync@acme.com"})
        answer = self.ask(org, grant_type=JWT_BEARER, assertion=jwt.encode(self.claims(org, **more), key, "RS256"))
        assert (answer.status_code, answer.json()["error"]) == (400, "invalid_grant")

    def test_signature_is_verified(self, org: Org, key: rsa.RSAPrivateKey) -> None:
        """With a public key configured, only its owner gets in."""
        public = key.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        org.admin("PUT", "/settings", {"public_key": public.decode()})
        good = jwt.encode(self.claims(org), key, "RS256")
        stranger = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        bad = jwt.encode(self.claims(org), stranger, "RS256")
        assert self.ask(org, grant_type=JWT_BEARER, assertion=good).status_code == 200
        assert self.ask(org, grant_type=JWT_BEARER, assertion=bad).json()["error"] == "invalid_grant"

    def test_garbage_assertion(self, org: Org) -> None:
        """What is no JWT is an invalid grant."""
        assert self.ask(org, grant_type=JWT_BEARER, assertion="a.b").json()["error"] == "invalid_grant"

    def test_tokens_expire(self, org: Org) -> None:
        """A token lives as long as the settings say."""
        org.admin("PUT", "/settings", {"token_seconds": 0})
        org.login()
        assert refused(org.call("GET", "/limits")) == (401, "INVALID_SESSION_ID")

    def test_expired_by_a_fault(self, org: Org) -> None:
        """After expire_token only a new login helps."""
        org.fault(kind="expire_token")
        assert refused(org.call("GET", "/limits")) == (401, "INVALID_SESSION_ID")
        assert refused(org.call("GET", "/limits")) == (401, "INVALID_SESSION_ID")
        org.login()
        assert org.call("GET", "/limits").status_code == 200


class TestService:
    """What is around the records."""

    def test_versions_need_no_login(self, org: Org) -> None:
        """The versions list is open, and shows no usage."""
        answer = requests.get(f"{org.sandbox.url}/services/data/", timeout=30)
        assert answer.json()[-1]["version"] == "67.0"
        assert "Sforce-Limit-Info" not in answer.headers

    def test_retired_version(self, org: Org) -> None:
        """Old versions are gone; unknown ones are not found."""
        assert org.call("GET", "/services/data/v29.0/limits").status_code == 410
        assert org.call("GET", "/services/data/v99.0/limits").status_code == 404

    def test_usage_header_and_limits(self, org: Org) -> None:
        """Every answer says how much of the allowance is used, and ``limits`` agrees."""
        org.admin("PUT", "/settings", {"daily_requests": 500})
        first, second = org.call("GET", "/sobjects"), org.call("GET", "/limits")
        assert first.headers["Sforce-Limit-Info"] == "api-usage=1/500"
        assert second.json()["DailyApiRequests"] == {"Max": 500, "Remaining": 498}

    def test_daily_allowance(self, org: Org) -> None:
        """Used up, everything is refused, and a rolling day later goes on."""
        org.admin("PUT", "/settings", {"daily_requests": 1, "day_seconds": 1.0})
        org.call("GET", "/sobjects")
        answer = org.call("PATCH", "/sobjects/Contact/External_Id__c/1", json={"LastName": "A"})
        assert refused(answer) == (403, "REQUEST_LIMIT_EXCEEDED")
        assert answer.json()[0]["message"] == "TotalRequests Limit exceeded."
        assert org.admin("GET", "/books")["refused_429"] == 1
        eventually(lambda: org.call("GET", "/sobjects").status_code == 200)

    def test_concurrency_refusal(self, org: Org) -> None:
        """The scripted rate limit has the wording of the concurrent limit, and Salesforce's status."""
        org.fault(kind="refuse", status=429)
        answer = org.call("GET", "/limits")
        assert refused(answer) == (403, "REQUEST_LIMIT_EXCEEDED")
        assert answer.json()[0]["message"].startswith("ConcurrentRequests")

    def test_long_uri(self, org: Org) -> None:
        """More than 16,384 bytes of URI are too many."""
        assert org.call("GET", "/query", params={"q": "x" * 16_400}).status_code == 414

    def test_describe(self, org: Org) -> None:
        """Describe tells what a writer must know about a field, and what a delete takes along."""
        shown = org.call("GET", "/sobjects/contact/describe").json()
        fields = {field["name"]: field for field in shown["fields"]}
        assert (fields["LastName"]["nillable"], fields["LastName"]["length"]) == (False, 80)
        assert fields["External_Id__c"]["externalId"]
        assert fields["External_Id__c"]["unique"]
        assert fields["AccountId"]["referenceTo"] == ["Account"]
        assert [value["value"] for value in fields["Level__c"]["picklistValues"]] == ["Bronze", "Silver", "Gold"]
        account = org.call("GET", "/sobjects/Account/describe").json()
        cascades = {child["childSObject"]: child["cascadeDelete"] for child in account["childRelationships"]}
        assert cascades["Contact"]
        assert refused(org.call("GET", "/sobjects/Nope/describe")) == (404, "NOT_FOUND")

    def test_custom_objects(self, org: Org) -> None:
        """The settings add objects and fields, with references that may be master-detail."""
        account = {"type": "reference", "referenceTo": ["Account"], "cascadeDelete": True}
        objects = {
            "Invoice__c": {"fields": {"Amount__c": {"type": "currency", "scale": 2}, "Account__c": account}},
            "Contact": {"fields": {"Nick__c": {"length": 5}, "Notes__c": None}},
        }
        org.admin("PUT", "/settings", {"objects": objects})
        org.upsert("Account", {"External_Id__c": "a", "Name": "A"})
        invoice = {"External_Id__c": "i", "Amount__c": 1.5, "Account__r": {"External_Id__c": "a"}}
        assert errors(org.upsert("Invoice__c", invoice)) == [""]
        assert errors(org.upsert("Contact", {"External_Id__c": "1", "LastName": "A", "Nick__c": "123456"})) == [
            "STRING_TOO_LONG: Nick: data value too large: 123456 (max length=5)"
        ]
        org.call("DELETE", "/sobjects/Account/External_Id__c/a")
        assert org.query("SELECT Id FROM Invoice__c") == []


class TestRows:
    """Single rows over REST."""

    def test_upsert_creates_then_updates(self, org: Org) -> None:
        """201 with created, then 200 without; the key comes from the path, slashes and all."""
        path = "/sobjects/Contact/External_Id__c/" + quote("a/b c", safe="")
        first = org.call("PATCH", path, json={"LastName": "A"})
        second = org.call("PATCH", path, json={"LastName": "B"})
        assert (first.status_code, first.json()["created"]) == (201, True)
        assert (second.status_code, second.json()["created"]) == (200, False)
        assert org.call("GET", path).json()["External_Id__c"] == "a/b c"

    def test_old_versions_answer_without_a_body(self, org: Org) -> None:
        """Before v46 an update by upsert is a 204."""
        path = "/services/data/v45.0/sobjects/Contact/External_Id__c/1"
        assert [org.call("PATCH", path, json={"LastName": "A"}).status_code for _ in range(2)] == [201, 204]

    def test_key_must_not_be_in_the_body(self, org: Org) -> None:
        """The key is in the path only."""
        answer = org.call("PATCH", "/sobjects/Contact/External_Id__c/1", json={"LastName": "A", "External_Id__c": "1"})
        assert refused(answer) == (400, "INVALID_FIELD")

    def test_update_only(self, org: Org) -> None:
        """With updateOnly nothing is created."""
        answer = org.call("PATCH", "/sobjects/Contact/External_Id__c/1?updateOnly=true", json={"LastName": "A"})
        assert refused(answer) == (404, "NOT_FOUND")

    def test_create_read_update_delete_by_id(self, org: Org) -> None:
        """A record's life by its id, 15 or 18 characters."""
        record_id = org.call("POST", "/sobjects/Account", json={"Name": "Acme"}).json()["id"]
        assert org.call("PATCH", f"/sobjects/Account/{record_id[:15]}", json={"Phone": "1"}).status_code == 204
        assert org.call("GET", f"/sobjects/Account/{record_id}?fields=Phone").json()["Phone"] == "1"
        assert org.call("DELETE", f"/sobjects/Account/{record_id}").status_code == 204
        assert refused(org.call("DELETE", f"/sobjects/Account/{record_id}")) == (404, "ENTITY_IS_DELETED")
        assert refused(org.call("GET", f"/sobjects/Account/{record_id}")) == (404, "NOT_FOUND")

    def test_ambiguous_key(self, org: Org) -> None:
        """A key that is not unique and has two records is a 300 with their addresses."""
        org.admin("PUT", "/settings", {"objects": {"Contact": {"fields": {"External_Id__c": {"unique": False}}}}})
        for _ in range(2):
            org.call("POST", "/sobjects/Contact", json={"LastName": "A", "External_Id__c": "1"})
        answer = org.call("PATCH", "/sobjects/Contact/External_Id__c/1", json={"LastName": "B"})
        assert (answer.status_code, len(answer.json())) == (300, 2)
        assert errors(org.upsert("Contact", {"External_Id__c": "1"}))[0].startswith(
            "DUPLICATE_EXTERNAL_ID: External Id: more"
        )
        assert org.admin("GET", "/books")["double_creates"] == 1

    def test_broken_json(self, org: Org) -> None:
        """A body that is not JSON is refused as a whole."""
        assert refused(org.call("POST", "/sobjects/Contact", data=b"{")) == (400, "JSON_PARSER_ERROR")
        assert refused(org.call("POST", "/sobjects/Contact", data=b'{"Score__c": NaN}')) == (400, "JSON_PARSER_ERROR")

    def test_empty_text_for_a_date(self, org: Org) -> None:
        """In a single-row call an empty date fails the request."""
        answer = org.call("POST", "/sobjects/Contact", json={"LastName": "A", "Birth__c": ""})
        assert refused(answer) == (400, "JSON_PARSER_ERROR")


class TestValues:
    """What is stored, and what is refused."""

    @pytest.mark.parametrize(
        ("field", "sent", "stored"),
        [
            ("FirstName", "  Ann\t", "Ann"),
            ("FirstName", "\u00a0Ann", "\u00a0Ann"),
            ("FirstName", "", None),
            ("FirstName", "   ", None),
            ("Email", "Ann@Example.COM", "ann@example.com"),
            ("Score__c", 12.345, 12.35),
            ("Score__c", "1e3", 1000.0),
            ("Version__c", 900719925474099, 900719925474099.0),
            ("Active__c", True, True),
            ("Signed_Up__c", "2024-01-31T12:00:00.987+02:00", "2024-01-31T10:00:00.000+0000"),
            ("Birth__c", "2024-02-29", "2024-02-29"),
            ("Level__c", "Gold", "Gold"),
            ("LeadSource", "Anything", "Anything"),
            ("Notes__c", "a\nb", "a\nb"),
        ],
    )
    def test_stored(self, org: Org, field: str, sent: object, stored: object) -> None:
        """Values come back as Salesforce stores them."""
        assert errors(org.upsert("Contact", {"External_Id__c": "1", "LastName": "A", field: sent})) == [""]
        assert org.contact("1")[field] == stored

    @pytest.mark.parametrize(
        ("field", "sent", "error"),
        [
            ("LastName", None, "REQUIRED_FIELD_MISSING: Required fields are missing: [LastName]"),
            ("FirstName", "x" * 41, f"STRING_TOO_LONG: First Name: data value too large: {'x' * 41} (max length=40)"),
            ("Email", "nobody", "INVALID_EMAIL_ADDRESS: Email: invalid email address: nobody"),
            (
                "Level__c",
                "Tin",
                "INVALID_OR_NULL_FOR_RESTRICTED_PICKLIST: Level: bad value for restricted picklist field: Tin",
            ),
            ("Active__c", None, "INVALID_TYPE_ON_FIELD_IN_RECORD: Active: value not of required type: "),
            (
                "Score__c",
                1e14,
                "NUMBER_OUTSIDE_VALID_RANGE: Score: value outside of valid range on numeric field: 100000000000000.0",
            ),
            ("AccountId", "x", "MALFORMED_ID: Account ID: id value of incorrect type: x"),
            ("AccountId", new_id("001", 999), "INVALID_CROSS_REFERENCE_KEY: invalid cross reference id"),
            ("Nope__c", 1, "INVALID_FIELD: No such column 'Nope__c' on sobject of type Contact"),
        ],
    )
    def test_refused(self, org: Org, field: str, sent: object, error: str) -> None:
        """Values that do not fit are refused with Salesforce's words."""
        assert errors(org.upsert("Contact", {"External_Id__c": "1", "LastName": "A", field: sent})) == [error]
        assert org.admin("GET", "/records") == []

    @pytest.mark.parametrize(
        ("field", "sent"),
        [
            ("Birth__c", ""),
            ("Birth__c", "31.01.2024"),
            ("Birth__c", "2023-02-29"),
            ("Signed_Up__c", "2024-01-31 10:00:00"),
            ("Signed_Up__c", "2024-01-31T10:00:00"),
            ("Score__c", ""),
            ("Score__c", "12,5"),
            ("Score__c", True),
            ("Active__c", "t"),
            ("FirstName", 5),
            ("FirstName", ["a"]),
        ],
    )
    def test_unreadable(self, org: Org, field: str, sent: object) -> None:
        """JSON of a wrong type is a parser error, of that record alone."""
        good = {"External_Id__c": "2", "LastName": "B"}
        results = errors(org.upsert("Contact", {"External_Id__c": "1", "LastName": "A", field: sent}, good))
        assert results[0].startswith("JSON_PARSER_ERROR: Cannot deserialize instance of ")
        assert results[1] == ""

    def test_read_only_fields(self, org: Org) -> None:
        """System and calculated fields cannot be written."""
        results = errors(org.upsert("Contact", {"External_Id__c": "1", "LastName": "A", "Name": "B"}))
        assert results[0].startswith("INVALID_FIELD_FOR_INSERT_UPDATE: Unable to create/update fields: Name.")

    def test_null_clears_and_absent_keeps(self, org: Org) -> None:
        """The four states of a value, three of them here."""
        org.upsert("Contact", {"External_Id__c": "1", "LastName": "A", "FirstName": "B", "Title": "C"})
        org.upsert("Contact", {"External_Id__c": "1", "FirstName": None})
        assert (org.contact("1")["FirstName"], org.contact("1")["Title"]) == (None, "C")

    def test_defaults(self, org: Org) -> None:
        """Booleans are false, and some picklists have a default."""
        org.upsert("Task", {"External_Id__c": "1", "Subject": "Call"})
        task = org.query("SELECT Status, Priority, Active__c FROM Task")[0]
        assert task == {"Status": "Not Started", "Priority": "Normal", "Active__c": False}


class TestCollections:
    """Up to 200 records in one request."""

    def test_upsert_by_key(self, org: Org) -> None:
        """Results keep the order and say what was created."""
        first = org.upsert("Contact", {"External_Id__c": "1", "LastName": "A"})
        second = org.upsert(
            "Contact", {"External_Id__c": "2", "LastName": "B"}, {"External_Id__c": "1", "LastName": "C"}
        )
        assert [result["created"] for result in second] == [True, False]
        assert second[1]["id"] == first[0]["id"]

    def test_keys_are_case_sensitive(self, org: Org) -> None:
        """The key field of this org minds the case."""
        results = org.upsert(
            "Contact", {"External_Id__c": "a", "LastName": "A"}, {"External_Id__c": "A", "LastName": "A"}
        )
        assert [result["created"] for result in results] == [True, True]

    def test_keys_without_case(self, org: Org) -> None:
        """Unique without case: keys that differ only in case are one, and the stored spelling stays."""
        org.admin(
            "PUT", "/settings", {"objects": {"Contact": {"fields": {"External_Id__c": {"caseSensitive": False}}}}}
        )
        org.upsert("Contact", {"External_Id__c": "a", "LastName": "A"})
        assert org.upsert("Contact", {"External_Id__c": "A", "LastName": "B"})[0]["created"] is False
        assert org.contact("A")["External_Id__c"] == "a"

    def test_repeated_keys_all_fail(self, org: Org) -> None:
        """Every carrier of a repeated key fails, the others do not."""
        keys = ("1", "2", "1")
        results = errors(org.upsert("Contact", *({"External_Id__c": key, "LastName": "A"} for key in keys)))
        assert results == ["DUPLICATE_VALUE: Duplicate external id specified: 1", "", results[0]]

    def test_missing_key(self, org: Org) -> None:
        """A null key is an error of its row."""
        results = errors(org.upsert("Contact", {"LastName": "A"}, {"External_Id__c": None, "LastName": "B"}))
        assert results == ["MISSING_ARGUMENT: External_Id__c not specified"] * 2

    def test_too_many_and_none(self, org: Org) -> None:
        """201 records and no record at all are refused as a whole."""
        record = {"attributes": {"type": "Contact"}, "LastName": "A"}
        many = org.call("POST", "/composite/sobjects", json={"records": [record] * 201})
        none = org.call("POST", "/composite/sobjects", json={"records": []})
        assert refused(many) == (400, "EXCEEDED_ID_LIMIT")
        assert refused(none) == (400, "REQUIRED_FIELD_MISSING")
        assert org.admin("GET", "/records") == []

    def test_all_or_none(self, org: Org) -> None:
        """One bad row takes all back: creates, updates, and the books with them."""
        org.upsert("Contact", {"External_Id__c": "1", "LastName": "A"})
        rows = [
            {"External_Id__c": "1", "LastName": "B"},
            {"External_Id__c": "2", "LastName": "C"},
            {"External_Id__c": "3"},
        ]
        results = errors(org.upsert("Contact", *rows, all_or_none=True))
        assert [result.split(":")[0] for result in results] == [
            "ALL_OR_NONE_OPERATION_ROLLED_BACK",
            "ALL_OR_NONE_OPERATION_ROLLED_BACK",
            "REQUIRED_FIELD_MISSING",
        ]
        assert [(record["key"], record["fields"]["LastName"]) for record in org.admin("GET", "/records")] == [
            ({"External_Id__c": "1"}, "A")
        ]
        assert org.admin("GET", "/books")["writes"] == 1
        assert errors(org.upsert("Contact", {"External_Id__c": "2", "LastName": "C"})) == [""]

    def test_create_and_unique_key(self, org: Org) -> None:
        """A plain create cannot make a second record with a unique key."""
        record = {"attributes": {"type": "Contact"}, "LastName": "A", "External_Id__c": "1"}
        first = org.call("POST", "/composite/sobjects", json={"records": [record]}).json()
        second = org.call("POST", "/composite/sobjects", json={"records": [record]}).json()
        assert "created" not in first[0]
        words = "DUPLICATE_VALUE: duplicate value found: External_Id__c duplicates value on record with id:"
        assert errors(second) == [f"{words} {first[0]['id'][:15]}"]

    def test_update_by_id(self, org: Org) -> None:
        """An update by id may change the key; a missing, wrong or repeated id is an error."""
        record_id = org.upsert("Contact", {"External_Id__c": "1", "LastName": "A"})[0]["id"]

        def update(*records: dict[str, Any]) -> list[str]:
            body = {"records": [{"attributes": {"type": "Contact"}, **record} for record in records]}
            return errors(org.call("PATCH", "/composite/sobjects", json=body).json())

        assert update({"id": record_id, "External_Id__c": "2"}) == [""]
        assert org.contact("2")["Id"] == record_id
        assert [
            error.split(":")[0] for error in update({"LastName": "B"}, {"id": "x"}, {"id": new_id("003", 500)})
        ] == [
            "MISSING_ARGUMENT",
            "MALFORMED_ID",
            "INVALID_CROSS_REFERENCE_KEY",
        ]
        assert (
            update({"id": record_id, "Title": "x"}, {"id": record_id, "Title": "y"})
            == [f"DUPLICATE_VALUE: Duplicate id specified: {record_id}"] * 2
        )

    def test_parent_by_key(self, org: Org) -> None:
        """A parent is found by its key; one that is not there fails the row; null empties the reference."""
        parent = org.upsert("Account", {"External_Id__c": "a", "Name": "A"})[0]["id"]
        child = {"External_Id__c": "1", "LastName": "A", "Account": {"External_Id__c": "a"}}
        orphan = {"External_Id__c": "2", "LastName": "A", "Account": {"External_Id__c": "b"}}
        assert errors(org.upsert("Contact", child, orphan)) == [
            "",
            "INVALID_FIELD: Foreign key external ID: b not found for field External_Id__c in entity Account",
        ]
        assert org.contact("1")["AccountId"] == parent
        org.upsert("Contact", {"External_Id__c": "1", "Account": None})
        assert org.contact("1")["AccountId"] is None

    def test_polymorphic_parent(self, org: Org) -> None:
        """A reference to several objects needs the type."""
        org.upsert("Lead", {"External_Id__c": "l", "LastName": "A", "Company": "B"})
        typed = {"External_Id__c": "1", "Who": {"attributes": {"type": "Lead"}, "External_Id__c": "l"}}
        bare = {"External_Id__c": "2", "Who": {"External_Id__c": "l"}}
        results = errors(org.upsert("Task", typed, bare))
        assert (results[0], results[1].split(":")[0]) == ("", "INVALID_FIELD")

    def test_delete(self, org: Org) -> None:
        """Deletes by id: done, gone already, never there, no id."""
        record_id = org.upsert("Contact", {"External_Id__c": "1", "LastName": "A"})[0]["id"]

        def delete(*ids: str) -> list[str]:
            answer = org.call("DELETE", "/composite/sobjects", params={"ids": ",".join(ids), "allOrNone": "false"})
            return [error.split(":")[0] for error in errors(answer.json())]

        assert delete(record_id) == [""]
        assert delete(record_id, new_id("003", 500), "x") == [
            "ENTITY_IS_DELETED",
            "INVALID_CROSS_REFERENCE_KEY",
            "MALFORMED_ID",
        ]
        assert org.upsert("Contact", {"External_Id__c": "1", "LastName": "A"})[0]["created"] is True
        assert org.admin("GET", "/books")["double_creates"] == 0

    def test_cascade(self, org: Org) -> None:
        """An account takes its contacts, opportunities and their tasks along; other references are emptied."""
        accounts = org.upsert("Account", {"External_Id__c": "a", "Name": "A"}, {"External_Id__c": "b", "Name": "B"})
        org.upsert("Account", {"External_Id__c": "b", "ParentId": accounts[0]["id"]})
        contact = org.upsert("Contact", {"External_Id__c": "1", "LastName": "A", "AccountId": accounts[0]["id"]})[0][
            "id"
        ]
        org.upsert("Task", {"External_Id__c": "t", "Subject": "Call", "WhoId": contact})
        org.call("DELETE", f"/sobjects/Account/{accounts[0]['id']}")
        assert org.query("SELECT Id FROM Contact") == org.query("SELECT Id FROM Task") == []
        assert org.query("SELECT ParentId FROM Account") == [{"ParentId": None}]
        assert refused(org.call("DELETE", f"/sobjects/Contact/{contact}")) == (404, "ENTITY_IS_DELETED")
        assert org.admin("GET", "/books")["deletes"] == 1

    def test_books_see_versions(self, org: Org) -> None:
        """The version field of this org shows a write that comes too late."""
        for version in (2, 1):
            org.upsert("Contact", {"External_Id__c": "1", "LastName": "A", "Version__c": version})
        org.upsert("Contact", {"External_Id__c": "1", "LastName": "A", "Version__c": 1})
        books = org.admin("GET", "/books")
        assert (books["steps_back"], books["noop_writes"]) == (2, 1)
        assert books["details"]["steps_back"][0]["highest"] == 2

    def test_scripted_lock(self, org: Org) -> None:
        """A lock fault fails single rows, as many as it says."""
        org.fault(kind="lock", match={"object": "Contact"}, times=1)
        rows = [{"External_Id__c": key, "LastName": "A"} for key in "12"]
        results = errors(org.upsert("Contact", *rows))
        assert results[0].startswith("UNABLE_TO_LOCK_ROW: unable to obtain exclusive access to this record")
        assert results[1] == ""

    def test_real_locks(self, org: Org) -> None:
        """A running job's hold on an account fails a request that touches its children."""
        org.upsert("Account", {"External_Id__c": "a", "Name": "A"})
        org.admin("PUT", "/settings", {"real_locks": True, "rows_per_second": 20.0})
        job = org.open_job()
        org.upload(job, "External_Id__c,LastName,Account.External_Id__c\n1,A,a\n2,B,a\n")
        org.close_job(job)
        eventually(lambda: org.job(job)["numberRecordsProcessed"])
        child = {"External_Id__c": "3", "LastName": "C", "Account": {"External_Id__c": "a"}}
        assert errors(org.upsert("Contact", child))[0].startswith("UNABLE_TO_LOCK_ROW")
        eventually(lambda: errors(org.upsert("Contact", child)) == [""])


class TestQuery:
    """SOQL."""

    @pytest.fixture(autouse=True)
    def records(self, org: Org) -> None:
        """Make a few records."""
        org.upsert("Account", {"External_Id__c": "a", "Name": "Acme"})
        org.upsert(
            "Contact",
            {"External_Id__c": "1", "LastName": "O'Neil", "Score__c": 5, "Account": {"External_Id__c": "a"}},
            {"External_Id__c": "2", "LastName": "back\\slash", "Score__c": 7, "Active__c": True},
            {"External_Id__c": "3", "LastName": "100%", "Signed_Up__c": "2024-01-31T10:00:00Z"},
        )

    @pytest.mark.parametrize(
        ("where", "keys"),
        [
            ("LastName = 'o\\'neil'", ["1"]),
            ("LastName = 'back\\\\slash'", ["2"]),
            ("External_Id__c IN ('1', '3', 'x')", ["1", "3"]),
            ("External_Id__c NOT IN ('1')", ["2", "3"]),
            ("External_Id__c = '1' AND Score__c > 5", []),
            ("(Score__c >= 5 AND Score__c < 7) OR Active__c = true", ["1", "2"]),
            ("Score__c = null", ["3"]),
            ("NOT Score__c = 5", ["2", "3"]),
            ("LastName LIKE '%neil'", ["1"]),
            ("LastName LIKE '100\\%'", ["3"]),
            ("Account.External_Id__c = 'a'", ["1"]),
            ("Signed_Up__c > 2024-01-31T09:00:00+00:00", ["3"]),
            ("Id != null ORDER BY Score__c DESC LIMIT 2", ["2", "1"]),
        ],
    )
    def test_where(self, org: Org, where: str, keys: list[str]) -> None:
        """Conditions find what they mean."""
        found = [record["External_Id__c"] for record in org.query(f"SELECT External_Id__c FROM Contact WHERE {where}")]
        assert found == keys if "ORDER" in where else sorted(found) == keys

    @pytest.mark.parametrize(
        ("soql", "code"),
        [
            ("SELECT Id FROM Contact WHERE LastName = 'O'Neil'", "MALFORMED_QUERY"),
            ("SELECT Id FROM Contact WHERE LastName = '\\x'", "MALFORMED_QUERY"),
            ("SELECT Id FROM Contact WHERE", "MALFORMED_QUERY"),
            ("SELECT FROM Contact", "MALFORMED_QUERY"),
            ("SELECT Id FROM Contact LIMIT x", "MALFORMED_QUERY"),
            ("SELECT Nope FROM Contact", "INVALID_FIELD"),
            ("SELECT Id FROM Contact WHERE Score__c = 'a'", "INVALID_FIELD"),
            ("SELECT Id FROM Nope", "INVALID_TYPE"),
        ],
    )
    def test_mistakes(self, org: Org, soql: str, code: str) -> None:
        """Mistakes have Salesforce's codes."""
        assert refused(org.call("GET", "/query", params={"q": soql})) == (400, code)

    def test_count_and_parents(self, org: Org) -> None:
        """``count()`` has no rows; a parent's field is nested, and null without a parent."""
        assert org.call("GET", "/query", params={"q": "SELECT count() FROM Contact"}).json()["totalSize"] == 3
        rows = org.query("SELECT Account.Name FROM Contact ORDER BY External_Id__c")
        assert rows[0]["Account"]["Name"] == "Acme"
        assert rows[1]["Account"] is None

    def test_deleted_rows(self, org: Org) -> None:
        """The recycle bin is seen by queryAll only."""
        org.call("DELETE", "/sobjects/Contact/External_Id__c/1")
        assert len(org.query("SELECT Id FROM Contact")) == 2
        found = org.call("GET", "/queryAll", params={"q": "SELECT IsDeleted FROM Contact WHERE IsDeleted = true"})
        assert found.json()["totalSize"] == 1

    def test_client_pages(self, org: Org, client: Any) -> None:
        """simple-salesforce follows the pages, and its escaping is understood."""
        org.admin("PUT", "/settings", {"query_page": 2})
        names = {record["LastName"] for record in client.query_all("SELECT LastName FROM Contact")["records"]}
        assert names == {"O'Neil", "back\\slash", "100%"}
        for name in names:
            assert client.query(format_soql("SELECT Id FROM Contact WHERE LastName = {}", name))["totalSize"] == 1


class TestBulk:
    """Bulk 2.0 ingest."""

    def test_life_of_a_job(self, org: Org) -> None:
        """Open, complete, results: every row is in one of them, as it was sent."""
        job = org.load("External_Id__c,LastName,Email\n1,A,a@example.com\n2,,b@example.com\n3,C,nobody\n")
        shown = org.job(job)
        assert (shown["state"], shown["numberRecordsProcessed"], shown["numberRecordsFailed"]) == ("JobComplete", 3, 2)
        good = org.results(job, "successfulResults")
        assert [(row["sf__Created"], row["External_Id__c"], row["Email"]) for row in good] == [
            ("true", "1", "a@example.com")
        ]
        assert good[0]["sf__Id"] == org.contact("1")["Id"]
        bad = {row["External_Id__c"]: (row["sf__Id"], row["sf__Error"]) for row in org.results(job, "failedResults")}
        assert bad == {
            "2": ("", "REQUIRED_FIELD_MISSING:Required fields are missing: [LastName]:LastName --"),
            "3": ("", "INVALID_EMAIL_ADDRESS:Email: invalid email address: nobody:Email --"),
        }
        assert org.results(job, "unprocessedrecords") == []

    def test_shape_of_a_new_job(self, org: Org) -> None:
        """The answer to a create has what clients read."""
        body = {"object": "Contact", "operation": "insert", "contentType": "CSV"}
        job = org.call("POST", "/jobs/ingest", json=body).json()
        assert job["id"].startswith("750")
        assert (job["state"], job["apiVersion"]) == ("Open", 60.0)
        assert job["contentUrl"] == f"services/data/v60.0/jobs/ingest/{job['id']}/batches"

    @pytest.mark.parametrize(
        ("body", "code", "message"),
        [
            ({"object": "Nope"}, "INVALIDJOB", "InvalidJob : Unable to find object: Nope"),
            (
                {"externalIdFieldName": "LastName"},
                "INVALIDJOB",
                "InvalidJob : Field name provided, LastName does not match an External ID for Contact",
            ),
            ({"operation": ""}, "API_ERROR", "Invalid value: '' supplied for property: 'operation'"),
            ({"lineEnding": "CR"}, "API_ERROR", "Invalid value: 'CR' supplied for property: 'lineEnding'"),
        ],
    )
    def test_refused_jobs(self, org: Org, body: dict[str, str], code: str, message: str) -> None:
        """A job that cannot be is refused at once."""
        whole = {"object": "Contact", "operation": "upsert", "externalIdFieldName": "External_Id__c", **body}
        answer = org.call("POST", "/jobs/ingest", json=whole)
        assert refused(answer) == (400, code)
        assert answer.json()[0]["message"] == message

    def test_second_upload(self, org: Org) -> None:
        """A job takes one upload, even a repeated one."""
        job = org.open_job()
        content = "External_Id__c,LastName\n1,A\n"
        assert (org.upload(job, content).status_code, org.upload(job, content).status_code) == (201, 400)
        answer = org.upload(job, content)
        assert refused(answer) == (400, "BULK_API_ERROR")
        assert f"<{job[:15]}>" in answer.json()[0]["message"]
        org.close_job(job)
        assert org.finished(job)["numberRecordsProcessed"] == 1

    def test_second_close(self, org: Org) -> None:
        """Closing again is an error, and the job goes on."""
        job = org.load("External_Id__c,LastName\n1,A\n")
        answer = org.close_job(job)
        assert refused(answer) == (400, "INVALIDJOBSTATE")
        assert answer.json()[0]["message"] == "Closing already Completed Job not allowed"
        assert org.job(job)["state"] == "JobComplete"

    @pytest.mark.parametrize(
        ("content", "operation", "message"),
        [
            ("External_Id__c,Nope,Nope2\n1,A,B\n", "upsert", "InvalidBatch : Field name not found : Nope"),
            (
                "\ufeffExternal_Id__c,LastName\n1,A\n",
                "upsert",
                "InvalidBatch : Field name not found : \ufeffExternal_Id__c",
            ),
            (
                "External_Id__c,Who:Account.External_Id__c\n",
                "upsert",
                "InvalidBatch : Field name not found : Who:Account.External_Id__c",
            ),
            ("Id,LastName\nx,A\n", "delete", "InvalidBatch : The 'delete' batch must contain only ids"),
            (
                "External_Id__c,LastName\r\n1,A\r\n",
                "upsert",
                "ClientInputError : LineEnding is invalid on user data. Current LineEnding setting is LF",
            ),
        ],
    )
    def test_failed_jobs(self, org: Org, content: str, operation: str, message: str) -> None:
        """What is wrong with the file fails the job before it looks at any row."""
        job = org.load(content, operation)
        shown = org.job(job)
        assert (shown["state"], shown["errorMessage"]) == ("Failed", message)
        assert (shown["numberRecordsProcessed"], shown["numberRecordsFailed"]) == (0, 0)

    def test_empty_cell_keeps_and_na_clears(self, org: Org) -> None:
        """Empty leaves alone, #N/A empties, for fields and for parents."""
        org.upsert("Account", {"External_Id__c": "a", "Name": "A"})
        header = "External_Id__c,LastName,FirstName,Title,Account.External_Id__c\n"
        org.load(f"{header}1,A,B,C,a\n")
        account = org.contact("1")["AccountId"]
        org.load(f"{header}1,,#N/A,,\n")
        shown = org.contact("1")
        assert (shown["LastName"], shown["FirstName"], shown["Title"], shown["AccountId"]) == ("A", None, "C", account)
        org.load(f"{header}1,,,,#N/A\n")
        assert org.contact("1")["AccountId"] is None

    def test_quoting(self, org: Org) -> None:
        """Delimiters, quotes and line breaks inside quotes survive, there and back."""
        text = 'a,"b"\nc; ü'
        job = org.load('External_Id__c,LastName,Notes__c\n1,"A","a,""b""\nc; ü"\n')
        assert org.contact("1")["Notes__c"] == text
        assert org.results(job, "successfulResults")[0]["Notes__c"] == text

    def test_malformed_rows(self, org: Org) -> None:
        """A blank beside a quote, or a cell too many, is an error of that row."""
        job = org.load('External_Id__c,LastName\n1,"A" \n2,B,C\n3,D\n')
        assert org.job(job)["numberRecordsFailed"] == 2
        assert [row["External_Id__c"] for row in org.results(job, "successfulResults")] == ["3"]

    @pytest.mark.parametrize(
        ("column", "cell", "error"),
        [
            (
                "Birth__c",
                "01.02.2024",
                "Failed to deserialize field at col 2. Due to, '01.02.2024' is not a valid value for the type xsd:date",
            ),
            ("Signed_Up__c", "2024-01-31 10:00:00Z", "xsd:dateTime"),
            ("NumberOfEmployees", "1.5", "xsd:int"),
            ("Active__c", "t", "xsd:boolean"),
            (
                "Account.External_Id__c",
                "z",
                "Foreign key external ID: z not found for field External_Id__c in entity Account",
            ),
        ],
    )
    def test_unreadable_cells(self, org: Org, column: str, cell: str, error: str) -> None:
        """A cell of a wrong type is an error of its row, which names the column's number."""
        name = "Lead" if column == "NumberOfEmployees" else "Contact"
        job = org.load(f"External_Id__c,LastName,{column}\n1,A,{cell}\n", object_name=name)
        assert org.results(job, "failedResults")[0]["sf__Error"].startswith("INVALID_FIELD:")
        assert error in org.results(job, "failedResults")[0]["sf__Error"]

    def test_repeated_keys(self, org: Org) -> None:
        """Within 200 rows a repeated key fails all its rows; further apart they are applied in turn."""
        job = org.load("External_Id__c,LastName\n1,A\n2,B\n1,C\n")
        assert {row["sf__Error"] for row in org.results(job, "failedResults")} == {
            "DUPLICATE_VALUE:Duplicate external id specified: 1:External_Id__c --"
        }
        rows = ["1,First", *(f"x{number},X" for number in range(300)), "1,Last"]
        job = org.load("External_Id__c,LastName\n" + "\n".join(rows) + "\n")
        assert org.job(job)["numberRecordsFailed"] == 0
        assert org.contact("1")["LastName"] == "Last"

    def test_delete_and_update(self, org: Org) -> None:
        """Deletes and updates go by id; a wrong id comes back with its row."""
        ids = [
            result["id"]
            for result in org.upsert("Contact", *({"External_Id__c": key, "LastName": "A"} for key in "12"))
        ]
        org.load(f"Id,Title\n{ids[0]},Boss\n", "update")
        assert org.contact("1")["Title"] == "Boss"
        gone = new_id("003", 900)
        job = org.load(f"Id\n{ids[0]}\n{ids[1][:15]}\n{gone}\n", "delete")
        assert {row["sf__Id"] for row in org.results(job, "successfulResults")} == set(ids)
        assert org.results(job, "failedResults") == [
            {"sf__Id": gone, "sf__Error": "INVALID_CROSS_REFERENCE_KEY:invalid cross reference id:--", "Id": gone}
        ]
        assert org.query("SELECT Id FROM Contact") == []

    def test_work_is_done_without_polling(self, org: Org) -> None:
        """The records change when the time has come, not when somebody asks for the job."""
        job = org.open_job()
        org.upload(job, "External_Id__c,LastName\n1,A\n")
        org.close_job(job)
        eventually(lambda: org.query("SELECT Id FROM Contact"))

    def test_states_over_time(self, org: Org) -> None:
        """A slow job is seen waiting, then at work."""
        org.admin("PUT", "/settings", {"job_seconds": 1.0})
        job = org.open_job()
        org.upload(job, "External_Id__c,LastName\n1,A\n")
        org.close_job(job)
        assert org.job(job)["state"] == "UploadComplete"
        assert refused(org.call("GET", f"/jobs/ingest/{job}/successfulResults")) == (400, "INVALIDJOBSTATE")
        eventually(lambda: org.job(job)["state"] == "InProgress")
        assert org.finished(job)["state"] == "JobComplete"

    def test_abort_keeps_what_is_done(self, org: Org) -> None:
        """Rows done before an abort stay done; the others are given back unprocessed."""
        org.admin("PUT", "/settings", {"rows_per_second": 1000.0})
        job = org.open_job()
        org.upload(job, "External_Id__c,LastName\n" + "".join(f"{number},A\n" for number in range(5000)))
        org.close_job(job)
        eventually(lambda: org.job(job)["numberRecordsProcessed"])
        assert org.call("PATCH", f"/jobs/ingest/{job}", json={"state": "Aborted"}).json()["state"] == "Aborted"
        done = org.job(job)["numberRecordsProcessed"]
        assert 0 < done < 5000
        assert len(org.admin("GET", "/records")) == done
        assert len(org.results(job, "unprocessedrecords")) == 5000 - done
        assert len(org.results(job, "successfulResults")) == done

    def test_stuck_job(self, org: Org) -> None:
        """A stuck job stays in progress until its fault is taken away; other jobs pass it by."""
        org.fault(kind="stuck_job", times=1)
        stuck = org.open_job()
        org.upload(stuck, "External_Id__c,LastName\n1,A\n")
        org.close_job(stuck)
        org.load("External_Id__c,LastName\n2,B\n")
        assert org.job(stuck)["state"] == "InProgress"
        assert [record["key"]["External_Id__c"] for record in org.admin("GET", "/records")] == ["2"]
        org.admin("DELETE", "/faults")
        assert org.finished(stuck)["state"] == "JobComplete"

    def test_scripted_lock(self, org: Org) -> None:
        """Locked rows of a job fail one by one."""
        org.fault(kind="lock", match={"path": "jobs/ingest"}, times=2)
        job = org.load("External_Id__c,LastName\n1,A\n2,B\n3,C\n")
        assert org.job(job)["numberRecordsFailed"] == 2
        assert org.results(job, "failedResults")[0]["sf__Error"].startswith("UNABLE_TO_LOCK_ROW:")

    def test_batches_are_counted(self, org: Org) -> None:
        """A job of one row takes a batch of the day's allowance; without one it fails, and no more are created."""
        org.admin("PUT", "/settings", {"daily_batches": 1})
        late = org.open_job()
        org.load("External_Id__c,LastName\n1,A\n")
        org.upload(late, "External_Id__c,LastName\n2,B\n")
        org.close_job(late)
        assert org.finished(late)["errorMessage"] == "ExceededQuota : ApiBatchItems Limit exceeded."
        assert [row["External_Id__c"] for row in org.results(late, "unprocessedrecords")] == ["2"]
        body = {"object": "Contact", "operation": "insert"}
        assert org.call("POST", "/jobs/ingest", json=body).status_code == 400

    def test_list_and_delete(self, org: Org) -> None:
        """Jobs of all users are listed with their makers; a finished one can be deleted."""
        mine = org.load("External_Id__c,LastName\n1,A\n")
        org.login("another app")
        other = org.open_job()
        listed = org.call("GET", "/jobs/ingest", params={"jobType": "V2Ingest"}).json()
        assert listed["done"]
        makers = {job["id"]: job["createdById"] for job in listed["records"]}
        assert set(makers) == {mine, other}
        assert makers[mine] != makers[other]
        deleted = org.call("DELETE", f"/jobs/ingest/{mine}")
        assert (deleted.status_code, deleted.content) == (204, b"")
        assert refused(org.call("GET", f"/jobs/ingest/{mine}")) == (404, "NOT_FOUND")

    def test_compressed_upload(self, org: Org) -> None:
        """A gzip'd body is taken."""
        job = org.open_job()
        org.upload(job, gzip.compress(b"External_Id__c,LastName\n1,A\n"), **{"Content-Encoding": "gzip"})
        org.close_job(job)
        assert org.finished(job)["numberRecordsProcessed"] == 1

    def test_other_delimiters(self, org: Org) -> None:
        """Delimiter and line ending are the job's."""
        job = org.open_job(columnDelimiter="TAB", lineEnding="CRLF")
        org.upload(job, "External_Id__c\tLastName\r\n1\tA,B\r\n")
        org.close_job(job)
        org.finished(job)
        assert org.contact("1")["LastName"] == "A,B"
        assert org.call("GET", f"/jobs/ingest/{job}/successfulResults").content.startswith(
            b'"sf__Id"\t"sf__Created"\tExt'
        )

    def test_large_job(self, org: Org) -> None:
        """30,000 rows in three batches, all there, none twice."""
        org.admin("PUT", "/settings", {"rows_per_second": 1e9})
        job = org.load("External_Id__c,LastName\n" + "".join(f"{number},A\n" for number in range(30_000)))
        assert org.job(job)["numberRecordsProcessed"] == 30_000
        assert org.call("GET", "/limits").json()["DailyBulkApiBatches"]["Remaining"] == 15_000 - 3
        assert org.admin("GET", "/books")["creates"] == 30_000


class TestClient:
    """The vendor-neutral client library, unchanged, on the sandbox."""

    def test_rows(self, client: Any) -> None:
        """Create, upsert, read, delete."""
        made = client.Contact.create({"LastName": "A", "External_Id__c": "1"})
        assert client.Contact.upsert("External_Id__c/1", {"FirstName": "B"}) == 200
        assert client.Contact.get(made["id"])["FirstName"] == "B"
        assert client.Contact.get_by_custom_id("External_Id__c", "1")["Id"] == made["id"]
        assert client.Contact.delete(made["id"]) == 204

    def test_usage(self, client: Any) -> None:
        """The client reads the usage header."""
        client.query("SELECT Id FROM Contact")
        assert client.api_usage["api-usage"].total == 1_000_000

    def test_bulk(self, org: Org, client: Any) -> None:
        """A bulk upsert from records; nulls are left out by the client."""
        rows = [{"External_Id__c": str(number), "LastName": f"N{number}"} for number in range(10)]
        done = client.bulk2.Contact.upsert(records=rows, external_id_field="External_Id__c", wait=0.01)
        assert (done[0]["numberRecordsProcessed"], done[0]["numberRecordsFailed"]) == (10, 0)
        good = client.bulk2.Contact.get_successful_records(done[0]["job_id"])
        assert good.count("\n") == 11
        assert org.contact("7")["LastName"] == "N7"

    def test_errors(self, org: Org, client: Any) -> None:
        """Errors arrive as the client's exceptions, with the body."""
        with pytest.raises(SalesforceMalformedRequest) as caught:
            client.Contact.create({"FirstName": "A"})
        assert "REQUIRED_FIELD_MISSING" in str(caught.value)
        org.fault(kind="expire_token")
        with pytest.raises(SalesforceExpiredSession):
            client.bulk2.Contact.upsert(
                records=[{"External_Id__c": "1"}], external_id_field="External_Id__c", wait=0.01
            )


def test_times_are_whole_seconds(org: Org) -> None:
    """System times are printed as Salesforce prints them, and move with every write."""
    org.upsert("Contact", {"External_Id__c": "1", "LastName": "A"})
    stamp = org.contact("1")["SystemModstamp"]
    assert dt.datetime.strptime(stamp, "%Y-%m-%dT%H:%M:%S.000%z").tzinfo is not None
