"""The sandbox HubSpot: what the real one does with batches, values, keys, associations and quotas.

Most tests call the sandbox directly, with a clock of their own; the last ones go through HTTP and the vendor's client.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest
import urllib3
from hubspot import HubSpot
from hubspot.crm.objects.exceptions import ApiException

from cdcsync.sandbox.crm import Request, SettingsError
from cdcsync.sandbox.hubspot import Hubspot
from cdcsync.sandbox.server import SandboxThread

START = 1_790_000_000.0
TOKEN = "pat-na1-tests"
OBJECTS = "/crm/v3/objects"


@dataclass(frozen=True)
class Answer:
    """An answer, with its JSON read."""

    status: int
    body: Any
    headers: Mapping[str, str]

    @property
    def by_key(self) -> dict[str, dict[str, Any]]:
        """The results by customer id."""
        return {one["properties"]["customer_id"]: one for one in self.body["results"]}


@dataclass
class Portal:
    """A sandbox portal with a clock that only the test moves."""

    crm: Hubspot = field(default_factory=Hubspot)
    now: float = START
    token: str = TOKEN

    def call(self, method: str, path: str, body: Any = None, *, raw: bytes | None = None) -> Answer:
        """Send one request."""
        content = raw if raw is not None else b"" if body is None else json.dumps(body).encode()
        path, _, query = path.partition("?")
        parameters = dict(part.split("=", 1) for part in query.split("&")) if query else {}
        headers = {"authorization": f"Bearer {self.token}"}
        response = self.crm.handle(Request(method, path, parameters, headers, content, query), self.now)
        is_json = response.headers.get("Content-Type", "").startswith("application/json")
        return Answer(response.status, json.loads(response.body) if is_json else response.body, response.headers)

    def batch(self, verb: str, inputs: Iterable[Any], kind: str = "contacts", **more: Any) -> Answer:
        """Send one batch."""
        return self.call("POST", f"{OBJECTS}/{kind}/batch/{verb}", {"inputs": list(inputs), **more})

    def create(self, kind: str = "contacts", /, **properties: Any) -> str:
        """Create one record; returns its id."""
        answer = self.call("POST", f"{OBJECTS}/{kind}", {"properties": properties})
        assert answer.status == 201, answer.body
        return str(answer.body["id"])

    def read(self, record_id: str, *names: str, kind: str = "contacts") -> dict[str, Any]:
        """Read properties of one record."""
        answer = self.call("GET", f"{OBJECTS}/{kind}/{record_id}?properties={','.join(names)}")
        assert answer.status == 200, answer.body
        found: dict[str, Any] = answer.body["properties"]
        return found

    def refusal(self, **properties: Any) -> tuple[str, str]:
        """Create a contact that is refused for one value; returns code and message."""
        answer = self.call("POST", f"{OBJECTS}/contacts", {"properties": properties})
        assert (answer.status, answer.body["category"]) == (400, "VALIDATION_ERROR")
        (error,) = answer.body["errors"]
        assert error["context"] == {"propertyName": list(properties)}
        return error["code"], error["message"]


@pytest.fixture
def portal() -> Portal:
    """Give an empty portal."""
    return Portal()


def upsert(key: str, trace: str | None = None, **properties: Any) -> dict[str, Any]:
    """Make an input that upserts by customer id."""
    traced = {"objectWriteTraceId": trace} if trace else {}
    return {"id": key, "idProperty": "customer_id", "properties": properties, **traced}


# Batches


def test_upsert_creates_then_updates(portal: Portal) -> None:
    """The first upsert creates, the second changes the same record; ``new`` says which, the key finds the result."""
    first = portal.batch("upsert", [upsert("1", firstname="Ada"), upsert("2", firstname="Grace")])
    second = portal.batch("upsert", [upsert("2", firstname="Hopper"), upsert("3")])
    assert (first.status, second.status) == (200, 200)
    assert {key: one["new"] for key, one in first.by_key.items()} == {"1": True, "2": True}
    assert {key: one["new"] for key, one in second.by_key.items()} == {"2": False, "3": True}
    assert second.by_key["2"]["id"] == first.by_key["2"]["id"]
    assert portal.read(first.by_key["2"]["id"], "firstname")["firstname"] == "Hopper"


def test_results_come_in_any_order(portal: Portal) -> None:
    """The results of a large batch are not in the order of its inputs, and do not echo trace ids."""
    keys = [str(n) for n in range(100)]
    answer = portal.batch("upsert", [upsert(key, trace=f"t{key}") for key in keys])
    answered = [one["properties"]["customer_id"] for one in answer.body["results"]]
    assert answered != keys
    assert sorted(answered) == sorted(keys)
    assert "objectWriteTraceId" not in json.dumps(answer.body)


@pytest.mark.parametrize("verb", ["create", "update", "upsert"])
def test_without_trace_ids_a_batch_is_all_or_nothing(portal: Portal, verb: str) -> None:
    """One bad row without trace ids fails the request, and nothing is written."""
    record_id = portal.create(customer_id="1", tier="gold")
    inputs = [
        {"id": record_id if verb == "update" else "1", "properties": {"tier": "silver"}},
        {"id": "2", "properties": {"tier": "tin"}},
    ]
    if verb == "update":
        inputs[1]["id"] = portal.create(customer_id="2")
    if verb == "upsert":
        inputs = [{**one, "idProperty": "customer_id"} for one in inputs]
    before = len(portal.crm.records("contacts"))
    answer = portal.batch(verb, inputs)
    assert answer.status == 400
    assert answer.body["errors"][0]["code"] == "INVALID_OPTION"
    assert "objectWriteTraceId" not in json.dumps(answer.body)
    assert len(portal.crm.records("contacts")) == before
    assert portal.read(record_id, "tier")["tier"] == "gold"


@pytest.mark.parametrize("verb", ["create", "upsert"])
def test_distinct_trace_ids_make_a_batch_partial(portal: Portal, verb: str) -> None:
    """With distinct trace ids the good rows are written, and each bad one is named by its trace id."""
    inputs: list[dict[str, Any]] = [
        {"id": "1", "idProperty": "customer_id", "objectWriteTraceId": "a", "properties": {"customer_id": "1"}},
        {"id": "2", "idProperty": "customer_id", "objectWriteTraceId": "b", "properties": {"birth_date": "never"}},
    ]
    answer = portal.batch(verb, inputs)
    assert (answer.status, answer.body["numErrors"], len(answer.body["results"])) == (207, 1, 1)
    (error,) = answer.body["errors"]
    assert set(error) == {"status", "category", "message", "context"}
    assert error["context"] == {"objectWriteTraceId": ["b"]}
    assert '"error":"INVALID_DATE"' in error["message"]


def test_equal_trace_ids_do_not_make_a_batch_partial(portal: Portal) -> None:
    """Trace ids that are not distinct are as good as none."""
    answer = portal.batch("upsert", [upsert("1", "a"), upsert("2", "a", tier="tin")])
    assert answer.status == 400


def test_update_has_no_partial_mode(portal: Portal) -> None:
    """Trace ids change nothing for an update."""
    ids = [portal.create(), portal.create()]
    inputs = [
        {"id": one, "objectWriteTraceId": one, "properties": {"tier": tier}}
        for one, tier in zip(ids, ("gold", "tin"), strict=True)
    ]
    assert portal.batch("update", inputs).status == 400
    assert portal.read(ids[0], "tier")["tier"] is None


def test_update_of_unknown_ids_is_a_grouped_error(portal: Portal) -> None:
    """Unknown, archived and senseless ids stand in one entry of a 207; the others are updated."""
    good, gone = portal.create(), portal.create()
    portal.call("DELETE", f"{OBJECTS}/contacts/{gone}")
    answer = portal.batch("update", [{"id": one, "properties": {"city": "Bern"}} for one in (good, gone, "404", "x")])
    assert answer.status == 207
    assert [one["id"] for one in answer.body["results"]] == [good]
    (error,) = answer.body["errors"]
    assert (error["category"], error["context"]) == ("OBJECT_NOT_FOUND", {"ids": [gone, "404", "x"]})
    assert answer.body["numErrors"] == 1


def test_duplicate_inputs_fail_the_batch(portal: Portal) -> None:
    """Two inputs for one record are a 400, trace ids or not; e-mails are compared without case."""
    record_id = portal.create(customer_id="1", email="ada@example.com")
    doubles = [
        portal.batch("upsert", [upsert("7", "a"), upsert("7", "b")]),
        portal.batch("update", [{"id": record_id, "properties": {}}] * 2),
        portal.batch("upsert", [{"id": e, "idProperty": "email", "properties": {}} for e in ("x@a.org", "X@A.ORG")]),
    ]
    for answer in doubles:
        assert answer.status == 400
        assert re.fullmatch(r"Duplicate IDs found in batch input: \[.+\]\. IDs must be unique", answer.body["message"])
        assert len(answer.body["context"]["ids"]) == 1
    assert len(portal.crm.records("contacts")) == 1


@pytest.mark.parametrize(
    ("kind", "verb", "name"),
    [
        ("deals", "upsert", "dealname"),
        ("companies", "upsert", "domain"),
        ("contacts", "upsert", "hs_object_id"),
        ("contacts", "update", "email"),
        ("contacts", "update", "phone"),
    ],
)
def test_only_unique_properties_address_records(portal: Portal, kind: str, verb: str, name: str) -> None:
    """Upserts by a property that is not unique, and updates by one that is not custom, are refused."""
    answer = portal.batch(verb, [{"id": "1", "idProperty": name, "properties": {}}], kind)
    type_id = {"deals": "0-3", "companies": "0-2", "contacts": "0-1"}[kind]
    assert answer.status == 400
    assert answer.body["message"] == f"Unable to perform {verb} by non-unique {type_id} property {name}"


def test_update_by_custom_unique_property(portal: Portal) -> None:
    """An update may address by a custom unique property, and may change that very property."""
    record_id = portal.create(customer_id="1")
    update = {"id": "1", "idProperty": "customer_id", "properties": {"customer_id": "2"}}
    assert portal.batch("update", [update]).body["results"][0]["id"] == record_id
    assert portal.batch("update", [update]).body["errors"][0]["context"] == {"ids": ["1"]}
    assert portal.batch("upsert", [upsert("2")]).by_key["2"]["id"] == record_id


def test_email_conflicts(portal: Portal) -> None:
    """A taken e-mail is a row error of a traced create, and fails a whole upsert; both name the other record."""
    existing = portal.create(customer_id="1", email="ada@example.com")
    create = portal.batch("create", [{"objectWriteTraceId": "a", "properties": {"email": "Ada@Example.com"}}])
    assert create.status == 207
    (error,) = create.body["errors"]
    assert (error["category"], error["message"]) == ("CONFLICT", f"Contact already exists. Existing ID: {existing}")
    assert error["context"] == {"objectWriteTraceId": ["a"], "existingId": [existing]}
    upserts = [upsert("2", "a", email="ada@example.com"), upsert("3", "b")]
    answer = portal.batch("upsert", upserts)
    assert (answer.status, answer.body["category"]) == (409, "CONFLICT")
    assert answer.body["message"] == f"Contact already exists. Existing ID: {existing}"
    assert len(portal.crm.records("contacts")) == 1


def test_same_email_twice_in_a_create(portal: Portal) -> None:
    """Two new contacts with one e-mail in one batch are a 409 without an id."""
    inputs = [{"objectWriteTraceId": trace, "properties": {"email": "a@b.org"}} for trace in "ab"]
    answer = portal.batch("create", inputs)
    assert (answer.status, answer.body["message"]) == (409, "Contact already exists")
    assert "context" not in answer.body


def test_unique_value_conflict_names_the_holder(portal: Portal) -> None:
    """A taken custom unique value is a 400 whose text ends with the id of the record that has it."""
    holder, other = portal.create(customer_id="1"), portal.create(customer_id="2")
    answer = portal.batch("update", [{"id": other, "properties": {"customer_id": "1"}}])
    assert answer.status == 400
    assert answer.body["errors"][0]["code"] == "CONFLICTING_UNIQUE_VALUE"
    found = re.search(r"(\d+) already has that value", answer.body["message"])
    assert found
    assert found[1] == holder


def test_partial_upsert_by_email_is_a_setting(portal: Portal) -> None:
    """Upserts of contacts by e-mail are all or nothing, unless the setting says otherwise."""
    rows = [
        {"id": f"{n}@b.org", "idProperty": "email", "objectWriteTraceId": str(n), "properties": {"tier": tier}}
        for n, tier in enumerate(["gold", "tin"])
    ]
    assert portal.batch("upsert", rows).status == 400
    portal.crm.configure({"partial_upsert_by_email": True})
    assert portal.batch("upsert", rows).status == 207


def test_property_errors_name_properties_but_no_row(portal: Portal) -> None:
    """The message lists every property error of the batch; ``errors`` has only the first three."""
    answer = portal.batch("create", [{"properties": {"nope": 1, "neither": 2}}] * 2)
    listed = json.loads(answer.body["message"].removeprefix("Property values were not valid: "))
    assert [one["name"] for one in listed] == ["nope", "neither"] * 2
    assert {one["error"] for one in listed} == {"PROPERTY_DOESNT_EXIST"}
    assert len(answer.body["errors"]) == 3
    assert answer.body["errors"][0]["message"] == 'Property "nope" does not exist'


def test_required_properties(portal: Portal) -> None:
    """A deal without name and stage is refused, as a row where trace ids are; an update may leave them out."""
    answer = portal.batch("create", [{"properties": {"amount": 1}}], "deals")
    assert (answer.status, answer.body["category"]) == (400, "VALIDATION_ERROR")
    assert answer.body["message"] == "Error creating DEAL. Some required properties were not set."
    assert answer.body["context"] == {"properties": ["dealname", "dealstage"]}
    row = {"id": "1", "idProperty": "order_id", "objectWriteTraceId": "a", "properties": {"dealname": "x"}}
    (error,) = portal.batch("upsert", [row], "deals").body["errors"]
    assert error["context"] == {"objectWriteTraceId": ["a"], "properties": ["dealstage"]}
    portal.create("deals", order_id="1", dealname="x", dealstage="closedwon")
    row = {"id": "1", "idProperty": "order_id", "properties": {"amount": "9.50"}}
    assert portal.batch("upsert", [row], "deals").status == 200


@pytest.mark.parametrize("verb", ["create", "read", "update", "upsert", "archive"])
def test_at_most_100_inputs(portal: Portal, verb: str) -> None:
    """101 inputs are refused as a whole."""
    inputs = [upsert(str(n)) for n in range(101)]
    assert portal.batch(verb, inputs).status == 400
    assert portal.crm.records("contacts") == []


def test_broken_bodies(portal: Portal) -> None:
    """Bodies that are no batch are told where they break, without a category unless fields are missing."""
    path = f"{OBJECTS}/contacts/batch/upsert"
    missing = portal.call("POST", path, {})
    assert missing.status == 400
    assert missing.body["message"].endswith("Some required fields were not set: [inputs]")
    assert missing.body["category"] == "VALIDATION_ERROR"
    for raw in (
        b"",
        b"[]",
        b'{"inputs": 1}',
        b'{"inputs": [1]}',
        b"\xff",
        b'{"inputs": [{"id": {}, "properties": {}}]}',
    ):
        answer = portal.call("POST", path, raw=raw)
        assert answer.status == 400
        assert answer.body["message"].startswith("Invalid input JSON on line ")
        assert "category" not in answer.body
    assert portal.batch("upsert", [{"id": "1", "idProperty": "customer_id"}]).body["message"].endswith("[properties]")
    unknown = portal.batch("upsert", [], "butterflies")
    assert (unknown.status, unknown.body["message"]) == (400, "Unable to infer object type from: butterflies")


# Values


@pytest.mark.parametrize(
    ("name", "sent", "stored"),
    [
        ("firstname", "  Zoë ☃ ", "  Zoë ☃ "),
        ("firstname", 89, "89"),
        ("firstname", True, "true"),
        ("score", 89, "89"),
        ("score", "-0.50", "-0.50"),
        ("score", ".5", ".5"),
        ("active", False, "false"),
        ("tier", "gold", "gold"),
        ("interests", "music;cycling;music", "music;cycling"),
        ("birth_date", "1815-12-10", "1815-12-10"),
        ("birth_date", "1717200000000", "2024-06-01"),
        ("birth_date", "-86400000", "1969-12-31"),
        ("signed_up_at", "2024-06-01T12:25:00+02:00", "2024-06-01T10:25:00Z"),
        ("signed_up_at", "2024-06-01T10:25:00.123987Z", "2024-06-01T10:25:00.123Z"),
        ("signed_up_at", "1717237500120", "2024-06-01T10:25:00.120Z"),
        ("email", "Ada@Example.COM", "ada@example.com"),
        ("hubspot_owner_id", "41629779", "41629779"),
    ],
)
def test_accepted_values(portal: Portal, name: str, sent: Any, stored: str) -> None:
    """What is accepted reads back as text, in HubSpot's form."""
    assert portal.read(portal.create(**{name: sent}), name)[name] == stored


@pytest.mark.parametrize(
    ("name", "sent", "code", "message"),
    [
        ("score", "1e3", "INVALID_INTEGER", "1e3 was not a valid number."),
        ("score", "1,000", "INVALID_INTEGER", "1,000 was not a valid number."),
        ("score", "NaN", "INVALID_INTEGER", "NaN was not a valid number."),
        ("active", "t", "INVALID_OPTION", "t was not one of the allowed options: [true, false]"),
        ("tier", "Gold", "INVALID_OPTION", "Gold was not one of the allowed options: [gold, silver, bronze]"),
        ("tier", "gold;silver", "INVALID_OPTION", None),
        ("interests", "music;chess", "INVALID_OPTION", "chess was not one of the allowed options"),
        ("hubspot_owner_id", "1", "INVALID_OPTION", None),
        ("birth_date", "2024-02-30", "INVALID_DATE", None),
        ("birth_date", "infinity", "INVALID_DATE", None),
        ("birth_date", "1717255920000", "INVALID_DATE", "1717255920000 is at 15:32:0.0 UTC, not midnight!"),
        ("signed_up_at", "2024-06-01 10:25:00+00", "INVALID_LONG", "2024-06-01 10:25:00+00 was not a valid long."),
        ("signed_up_at", "2024-06-01T10:25:00", "INVALID_LONG", None),
        ("signed_up_at", "99999-01-01T00:00:00Z", "INVALID_LONG", None),
        ("email", "ada@example.con", "INVALID_EMAIL", "Email address ada@example.con is invalid"),
        ("email", "ada@crm.test", "INVALID_EMAIL", None),
        ("email", "ada", "INVALID_EMAIL", None),
        ("hs_object_id", "1", "READ_ONLY_VALUE", None),
        ("createdate", "2024-06-01T10:25:00Z", "READ_ONLY_VALUE", None),
        ("firstname", "x" * 65_537, "INVALID_STRING", None),
    ],
)
def test_refused_values(portal: Portal, name: str, sent: object, code: str, message: str | None) -> None:
    """What is refused is refused with HubSpot's code and words."""
    found, words = portal.refusal(**{name: sent})
    assert found == code
    assert message is None or words.startswith(message)


def test_null_is_a_no_op_and_the_empty_text_clears(portal: Portal) -> None:
    """JSON null leaves a value alone; an empty text clears it, and it then reads empty, not null."""
    record_id = portal.create(score=1, tier="gold", firstname="Ada")
    portal.call("PATCH", f"{OBJECTS}/contacts/{record_id}", {"properties": {"score": None, "tier": ""}})
    found = portal.read(record_id, "score", "tier", "firstname", "lastname")
    assert [found[name] for name in ("score", "tier", "firstname", "lastname")] == ["1", "", "Ada", None]


def test_null_key_does_not_make_a_record_without_one(portal: Portal) -> None:
    """An upsert whose properties hold null for the key still creates the record with it."""
    answer = portal.batch("upsert", [upsert("1", customer_id=None)])
    assert set(answer.by_key) == {"1"}


def test_appending_to_a_multiple_choice(portal: Portal) -> None:
    """A leading semicolon adds to the stored choices."""
    record_id = portal.create(interests="hiking")
    portal.batch("update", [{"id": record_id, "properties": {"interests": ";music;hiking"}}])
    assert portal.read(record_id, "interests")["interests"] == "hiking;music"


def test_life_cycle_only_moves_forward(portal: Portal) -> None:
    """An earlier stage is ignored with success; clearing first lets it in."""
    record_id = portal.create(lifecyclestage="customer")
    path = f"{OBJECTS}/contacts/{record_id}"
    for value, stored in (("lead", "customer"), ("evangelist", "evangelist"), ("", ""), ("lead", "lead")):
        assert portal.call("PATCH", path, {"properties": {"lifecyclestage": value}}).status == 200
        assert portal.read(record_id, "lifecyclestage")["lifecyclestage"] == stored


def test_stages_belong_to_their_pipeline(portal: Portal) -> None:
    """A deal's stage has to be one of its pipeline's."""
    record_id = portal.create("deals", dealname="x", dealstage="closedwon")
    assert portal.read(record_id, "pipeline", kind="deals")["pipeline"] == "default"
    answer = portal.batch("update", [{"id": record_id, "properties": {"dealstage": "won"}}], "deals")
    assert answer.body["errors"][0]["code"] == "INVALID_OPTION"


def test_unchanged_writes_do_not_move_the_modification_time(portal: Portal) -> None:
    """A write of what is stored succeeds and changes nothing; a real one moves the time; so does the background."""
    record_id = portal.create(customer_id="1", firstname="Ada")

    def modified() -> str:
        return str(portal.read(record_id)["lastmodifieddate"])

    created = modified()
    portal.now += 1
    portal.batch("upsert", [upsert("1", firstname="Ada", lastname="")])
    assert modified() == created
    portal.batch("upsert", [upsert("1", firstname="Grace")])
    changed = modified()
    assert changed > created
    portal.now += 60
    assert modified() > changed


# Life of a record


def test_contacts_are_found_by_all_their_addresses(portal: Portal) -> None:
    """An additional address finds the contact, and is taken for everyone else."""
    record_id = portal.create(email="ada@example.com", hs_additional_emails="ADA@b.org;a@c.org")
    row = {"id": "Ada@B.org", "idProperty": "email", "properties": {"city": "London"}}
    (found,) = portal.batch("upsert", [row]).body["results"]
    assert (found["id"], found["new"]) == (record_id, False)
    assert found["properties"]["email"] == "ada@example.com"
    answer = portal.call("POST", f"{OBJECTS}/contacts", {"properties": {"email": "a@c.org"}})
    assert answer.status == 409


def test_archive_is_idempotent_and_a_later_upsert_creates(portal: Portal) -> None:
    """Archiving ignores what is not there; the key is free again, for a record with another id."""
    record_id = portal.create(customer_id="1", email="a@b.org")
    for _ in range(2):
        assert portal.batch("archive", [{"id": record_id}, {"id": "404"}]).status == 204
        assert portal.call("DELETE", f"{OBJECTS}/contacts/{record_id}").status == 204
    assert portal.call("GET", f"{OBJECTS}/contacts/{record_id}").status == 404
    assert portal.call("GET", f"{OBJECTS}/contacts/{record_id}?archived=true").body["archived"] is True
    again = portal.batch("upsert", [upsert("1", email="a@b.org")]).by_key["1"]
    assert again["new"]
    assert again["id"] != record_id
    assert portal.crm.books.summary()["double_creates"] == 0


def test_archived_values_can_be_held_back(portal: Portal) -> None:
    """With the setting, an archived record keeps its unique value for a while."""
    portal.crm.configure({"archived_unique_hold": 60})
    record_id = portal.create(customer_id="1")
    portal.call("DELETE", f"{OBJECTS}/contacts/{record_id}")
    answer = portal.batch("upsert", [upsert("1", "a")])
    assert answer.status == 400
    assert f"{record_id} already has that value" in answer.body["message"]
    portal.now += 61
    assert portal.batch("upsert", [upsert("1", "a")]).status == 200


def test_merged_records_answer_under_a_new_id(portal: Portal) -> None:
    """After a merge both old ids mean the survivor, which has a third id, both addresses and all associations."""
    first = portal.create(customer_id="1", email="a@b.org", firstname="Ada")
    second = portal.create(email="c@d.org", firstname="Augusta", city="London")
    company = portal.create("companies", name="Engines")
    portal.call("PUT", f"/crm/v4/objects/contacts/{second}/associations/default/companies/{company}")
    survivor = portal.crm.merge("contacts", first, second, portal.now)
    assert survivor not in {first, second}
    for old in (first, second):
        found = portal.call("GET", f"{OBJECTS}/contacts/{old}?properties=firstname,city,hs_additional_emails").body
        assert found["id"] == survivor
        shown = [found["properties"][name] for name in ("firstname", "city", "hs_additional_emails")]
        assert shown == ["Ada", "London", "c@d.org"]
    assert portal.batch("upsert", [upsert("1")]).by_key["1"]["id"] == survivor
    linked = portal.call("GET", f"/crm/v4/objects/companies/{company}/associations/contacts").body["results"]
    assert [one["toObjectId"] for one in linked] == [int(survivor)]
    assert portal.crm.books.summary()["double_creates"] == 0


def test_read_by_id_and_by_unique_property(portal: Portal) -> None:
    """A batch read finds by id, custom key and e-mail; unknown ones are one entry of a 207."""
    record_id = portal.create(customer_id="1", email="a@b.org")
    for name, value in ((None, record_id), ("customer_id", "1"), ("email", "A@B.org")):
        answer = portal.batch("read", [{"id": value}, {"id": "404"}], idProperty=name, properties=["customer_id"])
        assert answer.status == 207
        assert answer.by_key["1"]["id"] == record_id
        assert answer.body["errors"][0]["context"] == {"ids": ["404"]}
    assert portal.batch("read", [{"id": record_id}]).status == 200
    assert portal.batch("read", [{"id": "x"}], idProperty="city").status == 400


def test_lists_page_through_everything(portal: Portal) -> None:
    """The pages of a list together hold every live record once, although some vanish on the way."""
    ids = [portal.create() for _ in range(25)]
    seen: list[str] = []
    after = ""
    while True:
        body = portal.call("GET", f"{OBJECTS}/contacts?limit=10{after}").body
        seen += [one["id"] for one in body["results"]]
        if "paging" not in body:
            break
        after = f"&after={body['paging']['next']['after']}"
        portal.call("DELETE", f"{OBJECTS}/contacts/{ids[0]}")
    assert seen == ids
    assert portal.call("GET", f"{OBJECTS}/contacts?limit=101").status == 400


def test_search_trails_the_records(portal: Portal) -> None:
    """A search finds new records and new values late, shows the present ones, and drops archived ones at once."""
    record_id = portal.create(customer_id="1", tier="gold")

    def found(tier: str) -> tuple[int, list[str]]:
        filters = [{"propertyName": "tier", "operator": "EQ", "value": tier}]
        body = portal.call(
            "POST", f"{OBJECTS}/contacts/search", {"filterGroups": [{"filters": filters}], "properties": ["tier"]}
        ).body
        return body["total"], [one["properties"]["tier"] for one in body["results"]]

    assert found("gold") == (0, [])
    portal.now += 30
    assert found("GOLD") == (1, ["gold"])
    portal.batch("upsert", [upsert("1", tier="silver")])
    assert found("gold") == (1, ["silver"])
    assert found("silver") == (0, [])
    portal.now += 30
    assert found("silver") == (1, ["silver"])
    portal.call("DELETE", f"{OBJECTS}/contacts/{record_id}")
    assert found("silver") == (1, [])
    portal.now += 30
    assert found("silver") == (0, [])


@pytest.mark.parametrize(
    ("operator", "more", "expected"),
    [
        ("GT", {"value": 9}, ["10", "100"]),
        ("LTE", {"value": "10"}, ["9", "10"]),
        ("BETWEEN", {"value": "10", "highValue": "99"}, ["10"]),
        ("IN", {"values": ["9", "100"]}, ["9", "100"]),
        ("NOT_IN", {"values": ["9"]}, ["", "10", "100"]),
        ("NEQ", {"value": "9"}, ["", "10", "100"]),
        ("HAS_PROPERTY", {}, ["9", "10", "100"]),
        ("NOT_HAS_PROPERTY", {}, [""]),
    ],
)
def test_search_operators(portal: Portal, operator: str, more: Mapping[str, Any], expected: list[str]) -> None:
    """Numbers are compared and sorted as numbers, empty ones first."""
    for score in ("100", "9", "10", ""):
        portal.create(score=score)
    portal.now += 30
    filters = [{"propertyName": "score", "operator": operator, **more}]
    body = {
        "filterGroups": [{"filters": filters}],
        "sorts": [{"propertyName": "score", "direction": "ASCENDING"}],
        "properties": ["score"],
    }
    results = portal.call("POST", f"{OBJECTS}/contacts/search", body).body["results"]
    assert [one["properties"]["score"] or "" for one in results] == expected


# Associations


@pytest.fixture
def couple(portal: Portal) -> tuple[str, str]:
    """Give a contact and a company."""
    return portal.create(customer_id="1"), portal.create("companies", company_id="1")


def link(source: str, target: str, *type_ids: int) -> dict[str, Any]:
    """Make an input that associates two records."""
    types = [{"associationCategory": "HUBSPOT_DEFINED", "associationTypeId": one} for one in type_ids]
    return {"from": {"id": source}, "to": {"id": target}, "types": types}


def linked(portal: Portal, kind: str, record_id: str, to: str) -> dict[int, set[int]]:
    """Read a record's associations: other record's id → type ids."""
    results = portal.call("GET", f"/crm/v4/objects/{kind}/{record_id}/associations/{to}").body["results"]
    return {one["toObjectId"]: {each["typeId"] for each in one["associationTypes"]} for one in results}


def test_association_appears_in_both_directions(portal: Portal, couple: tuple[str, str]) -> None:
    """An association is there from both ends, each with its own type id; result ids are JSON numbers."""
    contact, company = couple
    answer = portal.call(
        "POST", "/crm/v4/associations/contacts/0-2/batch/create", {"inputs": [link(contact, company, 279)]}
    )
    assert answer.status == 201
    assert answer.body["results"] == [
        {
            "fromObjectTypeId": "0-1",
            "fromObjectId": int(contact),
            "toObjectTypeId": "0-2",
            "toObjectId": int(company),
            "labels": [],
        }
    ]
    assert linked(portal, "contacts", contact, "companies") == {int(company): {279}}
    assert linked(portal, "companies", company, "contacts") == {int(contact): {280}}


def test_association_writes_are_idempotent_and_counted(portal: Portal, couple: tuple[str, str]) -> None:
    """Repeats change nothing, and the books say so."""
    contact, company = couple
    for _ in range(2):
        body: Any = {"inputs": [{"from": {"id": contact}, "to": {"id": company}}]}
        answer = portal.call("POST", "/crm/v4/associations/contacts/companies/batch/associate/default", body)
        assert answer.status == 200
    assert portal.crm.books.summary()["noop_writes"] == 1
    for _ in range(2):
        body = {"inputs": [{"from": {"id": contact}, "to": [{"id": company}]}]}
        assert portal.call("POST", "/crm/v4/associations/contacts/companies/batch/archive", body).status == 204
    assert portal.crm.books.summary()["noop_writes"] == 2
    assert linked(portal, "companies", company, "contacts") == {}


def test_both_ends_have_to_exist(portal: Portal, couple: tuple[str, str]) -> None:
    """Unknown ids are rows of a 207 that only their text tells apart; the good rows are written."""
    contact, company = couple
    inputs = [link(contact, company, 279), link(contact, "404", 279), link("x", company, 279)]
    answer = portal.call("POST", "/crm/v4/associations/contacts/companies/batch/create", {"inputs": inputs})
    assert (answer.status, len(answer.body["results"]), answer.body["numErrors"]) == (207, 1, 2)
    assert [(one["subCategory"], one["message"], one["context"]) for one in answer.body["errors"]] == [
        ("crm.associations.INVALID_IDENTIFIER", f"{text} is not a valid ID", {"id": [text]}) for text in ("404", "x")
    ]


def test_wrong_direction_is_a_400(portal: Portal, couple: tuple[str, str]) -> None:
    """A type id of the other direction fails the batch, and nothing is written."""
    contact, company = couple
    inputs = [link(contact, company, 279), link(contact, company, 280)]
    answer = portal.call("POST", "/crm/v4/associations/contacts/companies/batch/create", {"inputs": inputs})
    assert answer.status == 400
    assert linked(portal, "contacts", contact, "companies") == {}


def test_a_contact_has_one_primary_company(portal: Portal, couple: tuple[str, str]) -> None:
    """A new primary company takes the label from the one before, which stays associated."""
    contact, company = couple
    other = portal.create("companies", company_id="2")
    path = "/crm/v4/associations/contacts/companies/batch/create"
    portal.call("POST", path, {"inputs": [link(contact, company, 1)]})
    answer = portal.call("POST", path, {"inputs": [link(contact, other, 1)]})
    assert answer.body["results"][0]["labels"] == ["Primary"]
    assert linked(portal, "contacts", contact, "companies") == {int(company): {279}, int(other): {1, 279}}
    assert linked(portal, "companies", company, "contacts") == {int(contact): {280}}


def test_archiving_a_record_drops_its_associations(portal: Portal, couple: tuple[str, str]) -> None:
    """When one end is archived the other has no association left; the admin port shows the same."""
    contact, company = couple
    portal.call("PUT", f"/crm/v4/objects/contacts/{contact}/associations/default/companies/{company}")
    (shown,) = portal.crm.records("contacts")
    assert shown["associations"] == {"companies": [company]}
    portal.call("DELETE", f"{OBJECTS}/companies/{company}")
    assert linked(portal, "contacts", contact, "companies") == {}
    (shown,) = portal.crm.records("contacts")
    assert shown["associations"] == {}


def test_reading_associations_of_records_without_any(portal: Portal, couple: tuple[str, str]) -> None:
    """A batch read answers 207 with an entry per record that has none."""
    contact, company = couple
    portal.call("PUT", f"/crm/v4/objects/contacts/{contact}/associations/default/companies/{company}")
    lonely = portal.create()
    body = {"inputs": [{"id": contact}, {"id": lonely}]}
    answer = portal.call("POST", "/crm/v4/associations/contacts/companies/batch/read", body)
    assert answer.status == 207
    (result,) = answer.body["results"]
    assert result["from"] == {"id": contact}
    assert result["to"] == [
        {
            "toObjectId": int(company),
            "associationTypes": [{"category": "HUBSPOT_DEFINED", "typeId": 279, "label": None}],
        }
    ]
    (error,) = answer.body["errors"]
    assert error["subCategory"] == "crm.associations.NO_ASSOCIATIONS_FOUND"
    assert error["context"]["fromObjectId"] == [lonely]


@pytest.mark.parametrize(
    ("source", "target", "type_id"),
    [
        ("deals", "contacts", 3),
        ("contacts", "deals", 4),
        ("deals", "companies", 341),
        ("companies", "deals", 342),
        ("tickets", "companies", 339),
        ("calls", "contacts", 194),
        ("companies", "tasks", 191),
    ],
)
def test_type_ids(portal: Portal, source: str, target: str, type_id: int) -> None:
    """The unlabelled type of each direction has HubSpot's id."""
    types = portal.call("GET", f"/crm/v4/associations/{source}/{target}/labels").body["results"]
    assert types[0] == {"category": "HUBSPOT_DEFINED", "typeId": type_id, "label": None}


def test_own_labels_and_creates_with_associations(portal: Portal, couple: tuple[str, str]) -> None:
    """A label of the portal's own works in both directions; a create may carry associations."""
    _, company = couple
    body = {"name": "partner", "label": "Partner", "inverseLabel": "Employer"}
    made = portal.call("POST", "/crm/v4/associations/contacts/companies/labels", body).body["results"]
    types = [{"associationCategory": "USER_DEFINED", "associationTypeId": made[0]["typeId"]}]
    create = {"properties": {}, "associations": [{"to": {"id": company}, "types": types}]}
    (result,) = portal.batch("create", [create]).body["results"]
    assert set(linked(portal, "contacts", result["id"], "companies")[int(company)]) == {279, made[0]["typeId"]}
    assert made[1]["typeId"] in linked(portal, "companies", company, "contacts")[int(result["id"])]


# Definitions


def test_property_definitions(portal: Portal) -> None:
    """Definitions say what is unique, read-only and allowed; new ones can be made, but not twice."""
    found = {one["name"]: one for one in portal.call("GET", "/crm/v3/properties/contacts").body["results"]}
    assert found["customer_id"]["hasUniqueValue"]
    assert not found["customer_id"]["hubspotDefined"]
    assert found["createdate"]["modificationMetadata"]["readOnlyValue"]
    assert [one["value"] for one in found["tier"]["options"]] == ["gold", "silver", "bronze"]
    body = {"name": "shoe", "label": "Shoe", "type": "number", "fieldType": "number", "groupName": "contactinformation"}
    assert portal.call("POST", "/crm/v3/properties/0-1", body).status == 201
    assert portal.call("GET", "/crm/v3/properties/contact/shoe").body["type"] == "number"
    assert portal.call("POST", "/crm/v3/properties/contacts", body).status == 409
    assert portal.call("GET", "/crm/v3/properties/contacts/nope").status == 404
    assert portal.refusal(shoe="large")[0] == "INVALID_INTEGER"


def test_settings_extend_the_schema(portal: Portal) -> None:
    """Custom objects, properties and required ones come from the settings; a bad one changes nothing."""
    machine: dict[str, Any] = {
        "name": "machines",
        "labels": {"singular": "Machine", "plural": "Machines"},
        "requiredProperties": ["serial"],
        "properties": [{"name": "serial", "type": "string", "fieldType": "text", "hasUniqueValue": True}],
    }
    plan = {"name": "plan", "type": "string", "fieldType": "text"}
    portal.crm.configure(
        {"objects": [machine], "properties": {"contacts": [plan]}, "required": {"contacts": ["lastname"]}}
    )
    row = {"id": "m1", "idProperty": "serial", "properties": {}}
    assert portal.batch("upsert", [row], "p44237313_machines").status == 200
    assert portal.call("GET", "/crm/v3/schemas").body["results"][0]["objectTypeId"] == "2-1"
    assert portal.call("POST", f"{OBJECTS}/contacts", {"properties": {"plan": "x"}}).status == 400
    record_id, contact = portal.create("2-1", serial="m2"), portal.create(lastname="Byron", plan="x")
    answer = portal.call("PUT", f"/crm/v4/objects/machines/{record_id}/associations/default/contacts/{contact}")
    assert answer.status == 200
    with pytest.raises(SettingsError, match="butterflies"):
        portal.crm.configure({"required": {"butterflies": []}})


def test_owners_pipelines_and_account(portal: Portal) -> None:
    """The descriptions that mappings need are there."""
    assert portal.call("GET", "/crm/v3/owners/").body["results"][0]["email"] == "ada@example.com"
    stages = portal.call("GET", "/crm/v3/pipelines/deals").body["results"][0]["stages"]
    assert "closedwon" in {one["id"] for one in stages}
    assert portal.call("GET", "/account-info/v3/details").body["portalId"] == 44_237_313


def test_unknown_paths_and_dated_paths(portal: Portal) -> None:
    """An unknown path is an HTML page; a path with a date for a version is the same as v3."""
    answer = portal.call("GET", "/crm/v9/objects/contacts")
    assert (answer.status, answer.headers["Content-Type"]) == (404, "text/html;charset=utf-8")
    dated = portal.call("POST", "/crm/objects/2026-03/contacts/batch/upsert", {"inputs": [upsert("1")]})
    assert dated.status == 200


# Access and quotas


def test_tokens_and_scopes(portal: Portal) -> None:
    """Unknown tokens are a 401, missing scopes a 403 that names them."""
    portal.token = "nonsense"
    answer = portal.call("GET", f"{OBJECTS}/contacts")
    assert (answer.status, answer.body["category"]) == (401, "INVALID_AUTHENTICATION")
    portal.token = TOKEN
    portal.crm.configure({"scopes": ["crm.objects.contacts.read"]})
    assert portal.call("GET", f"{OBJECTS}/contacts").status == 200
    answer = portal.batch("upsert", [upsert("1")])
    assert (answer.status, answer.body["category"]) == (403, "MISSING_SCOPES")
    assert answer.body["context"]["requiredGranularScopes"] == ["crm.objects.contacts.write"]


def test_oauth_tokens_expire_and_are_refreshed(portal: Portal) -> None:
    """A refresh token buys an access token that lives for a while; public apps have no daily quota."""
    portal.crm.configure({"refresh_tokens": ["good"], "token_lifetime": 60})
    grant = b"grant_type=refresh_token&client_id=a&client_secret=b&refresh_token="
    bad = portal.call("POST", "/oauth/v1/token", raw=grant + b"bad")
    assert (bad.status, bad.body["status"]) == (400, "BAD_REFRESH_TOKEN")
    good = portal.call("POST", "/oauth/v1/token", raw=grant + b"good")
    assert good.body["expires_in"] == 60
    portal.token = good.body["access_token"]
    answer = portal.call("GET", f"{OBJECTS}/contacts")
    assert answer.headers["X-HubSpot-RateLimit-Max"] == "110"
    assert "X-HubSpot-RateLimit-Daily" not in answer.headers
    portal.now += 135
    answer = portal.call("GET", f"{OBJECTS}/contacts")
    assert (answer.status, answer.body["category"]) == (401, "EXPIRED_AUTHENTICATION")
    assert "expired 75 second(s) ago" in answer.body["message"]


def test_ten_seconds_window_rolls(portal: Portal) -> None:
    """A refused request has to wait until the oldest one is ten seconds old, and counts against the day."""
    portal.crm.configure({"ten_secondly": 2, "daily": 100})
    path = f"{OBJECTS}/contacts"
    remaining = []
    for step in (0, 6, 3.5):
        portal.now += step
        answer = portal.call("GET", path)
        remaining.append(answer.headers["X-HubSpot-RateLimit-Remaining"])
    assert remaining == ["1", "0", "0"]
    assert answer.status == 429
    assert answer.body["policyName"] == "TEN_SECONDLY_ROLLING"
    assert answer.body["message"] == "You have reached your ten_secondly_rolling limit."
    assert "Retry-After" not in answer.headers
    assert answer.headers["X-HubSpot-RateLimit-Daily-Remaining"] == "97"
    portal.now += 0.6
    assert portal.call("GET", path).status == 200
    assert portal.call("GET", path).status == 429


def test_daily_quota_resets_at_the_accounts_midnight(portal: Portal) -> None:
    """Beyond the daily quota everything is refused until the next day of the account's time zone."""
    portal.now = 86_400 * 20_000 - 2 * 3600 - 10
    portal.crm.configure({"daily": 1, "utc_offset": 2})
    path = f"{OBJECTS}/contacts"
    assert portal.call("GET", path).status == 200
    answer = portal.call("GET", path)
    assert (answer.status, answer.body["policyName"]) == (429, "DAILY")
    portal.now += 11
    assert portal.call("GET", path).status == 200


def test_searches_have_a_limit_of_their_own(portal: Portal) -> None:
    """Searches are limited by the second, do not use up the ten-second window, and show only the daily quota."""
    answers = [portal.call("POST", f"{OBJECTS}/contacts/search", {}) for _ in range(6)]
    assert [one.status for one in answers] == [200] * 5 + [429]
    assert "X-HubSpot-RateLimit-Remaining" not in answers[0].headers
    assert "policyName" not in answers[5].body
    assert answers[5].body["category"] == "RATE_LIMITS"
    assert portal.call("GET", f"{OBJECTS}/contacts").headers["X-HubSpot-RateLimit-Remaining"] == "189"


# Books and the admin side


def test_books_see_no_ops_and_steps_back(portal: Portal) -> None:
    """A write that changes nothing, and one that lowers the version, are counted; a person's edit is not."""
    portal.batch("upsert", [upsert("1", row_version=5, firstname="Ada")])
    portal.batch("upsert", [upsert("1", row_version=5, firstname="Ada")])
    portal.batch("upsert", [upsert("1", row_version=4)])
    (record,) = portal.crm.records("contacts")
    portal.crm.edit("contacts", record["id"], {"row_version": 1, "city": "London"}, portal.now)
    summary = portal.crm.books.summary()
    counts = {name: summary[name] for name in ("creates", "updates", "noop_writes", "steps_back", "double_creates")}
    assert counts == {"creates": 1, "updates": 2, "noop_writes": 1, "steps_back": 1, "double_creates": 0}
    (record,) = portal.crm.records("contacts")
    assert (record["key"], record["fields"]["city"]) == ({"customer_id": "1"}, "London")
    with pytest.raises(SettingsError, match="INVALID_OPTION"):
        portal.crm.edit("contacts", record["id"], {"tier": "tin"}, portal.now)
    portal.crm.remove("contacts", record["id"], portal.now)
    assert portal.crm.books.summary()["deletes"] == 0


def test_email_that_passes_to_another_row_is_no_step_back(portal: Portal) -> None:
    """Versions belong to the source's key: a deleted row's e-mail may come back in a row with a lower version."""
    first = portal.batch("upsert", [upsert("1", email="a@b.org", row_version=9)]).by_key["1"]["id"]
    portal.batch("archive", [{"id": first}])
    portal.batch("upsert", [upsert("2", email="a@b.org", row_version=1)])
    assert portal.crm.books.summary()["steps_back"] == 0


def test_keyless_creates_are_double_without_the_crm_minding(portal: Portal) -> None:
    """Records without any key can be doubled; the books count them as keyless."""
    for _ in range(2):
        portal.create("companies", name="Engines")
    assert portal.crm.books.summary()["keyless_creates"] == 2


def test_lock_fault_refuses_the_write(portal: Portal) -> None:
    """A lock rule makes the write a 423 and writes nothing; the next one passes."""
    portal.crm.faults.add([{"kind": "lock", "match": {"object": "contacts"}}])
    assert portal.batch("upsert", [upsert("1")]).status == 423
    assert portal.crm.records("contacts") == []
    assert portal.batch("upsert", [upsert("1")]).status == 200


# Over HTTP, with the vendor's client


class Admin:
    """A served sandbox, from the admin side."""

    def __init__(self, sandbox: SandboxThread) -> None:
        self.url = sandbox.url
        self._admin = sandbox.admin_url
        self._http = urllib3.PoolManager(retries=False)

    def ask(self, method: str, path: str, body: Any = None) -> Any:
        """Send one admin request."""
        response = self._http.request(method, self._admin + path, json=body)
        assert response.status == 200, response.data
        return response.json()

    def close(self) -> None:
        """Drop connections."""
        self._http.clear()


@pytest.fixture
def admin(hubspot_sandbox: SandboxThread) -> Iterator[Admin]:
    """Give the admin side of a served sandbox."""
    side = Admin(hubspot_sandbox)
    yield side
    side.close()


@pytest.fixture
def api(admin: Admin) -> Iterator[Any]:
    """Give the vendor's batch API of all objects."""
    batches = HubSpot(access_token=TOKEN, host=admin.url).crm.objects.batch_api
    yield batches
    batches.api_client.rest_client.pool_manager.clear()


def test_client_upserts_and_reads_partial_answers(api: Any, admin: Admin) -> None:
    """The vendor's client gets models from a 200 and, without raising, from a 207."""
    rows = [upsert("1", "a", email="ada@example.com", score=1.5), upsert("2", "b", email="nobody")]
    answer = api.upsert("contacts", {"inputs": rows}, _request_timeout=(5, 30))
    assert [one.properties["customer_id"] for one in answer.results] == ["1"]
    assert answer.results[0].new
    assert answer.num_errors == 1
    assert answer.errors[0].context == {"objectWriteTraceId": ["b"]}
    (record,) = admin.ask("GET", "/records?object=contacts")
    assert (record["id"], record["fields"]["score"]) == (answer.results[0].id, "1.5")
    api.archive("contacts", {"inputs": [{"id": record["id"]}]}, _request_timeout=(5, 30))
    (record,) = admin.ask("GET", "/records?object=contacts")
    assert record["archived"]


def test_client_sees_refusals_as_exceptions(api: Any) -> None:
    """A refused batch raises the client's exception with HubSpot's body."""
    with pytest.raises(ApiException) as caught:
        api.create("deals", {"inputs": [{"properties": {}}]}, _request_timeout=(5, 30))
    assert caught.value.status == 400
    assert json.loads(caught.value.body)["category"] == "VALIDATION_ERROR"


@pytest.mark.parametrize(
    ("status", "content_type", "words"),
    [
        (429, "application/json", "TEN_SECONDLY_ROLLING"),
        (502, "text/html", "502"),
        (503, "application/json", "internal error"),
        (401, "application/json", "EXPIRED_AUTHENTICATION"),
        (423, "application/json", "locked"),
    ],
)
def test_faults_speak_hubspots_words(admin: Admin, status: int, content_type: str, words: str) -> None:
    """A scripted refusal has the true body and headers, and no work is done."""
    admin.ask("POST", "/faults", [{"kind": "refuse", "status": status}])
    http = urllib3.PoolManager(retries=False)
    response = http.request(
        "POST",
        f"{admin.url}{OBJECTS}/contacts/batch/upsert",
        json={"inputs": [upsert("1")]},
        headers={"Authorization": f"Bearer {TOKEN}"},
    )
    assert response.status == status
    assert response.headers["Content-Type"].startswith(content_type)
    assert words in response.data.decode()
    assert "Retry-After" not in response.headers
    http.clear()
    assert admin.ask("GET", "/records") == []
    assert admin.ask("GET", "/books")["refused_429"] == (status == 429)


def test_client_keeps_associations(admin: Admin, api: Any) -> None:
    """The vendor's associations API writes and reads them; the admin port shows them."""
    hubspot = HubSpot(access_token=TOKEN, host=admin.url)
    (contact,) = api.upsert("contacts", {"inputs": [upsert("1")]}, _request_timeout=(5, 30)).results
    company_row: dict[str, Any] = {"id": "1", "idProperty": "company_id", "properties": {}}
    (company,) = api.upsert("companies", {"inputs": [company_row]}, _request_timeout=(5, 30)).results
    links = hubspot.crm.associations.v4.batch_api
    ends = {"inputs": [{"from": {"id": contact.id}, "to": {"id": company.id}}]}
    links.create_default("contacts", "companies", ends, _request_timeout=(5, 30))
    answer = links.get_page("contacts", "companies", {"inputs": [{"id": contact.id}]}, _request_timeout=(5, 30))
    assert str(answer.results[0].to[0].to_object_id) == company.id
    (record,) = admin.ask("GET", "/records?object=contacts")
    assert record["associations"] == {"companies": [company.id]}
    links.api_client.rest_client.pool_manager.clear()


def test_tokens_can_be_ended_by_a_fault(admin: Admin, api: Any) -> None:
    """The fault ``expire_token`` makes a token that was used invalid, until the sandbox is reset."""
    api.upsert("contacts", {"inputs": [upsert("1")]}, _request_timeout=(5, 30))
    admin.ask("POST", "/faults", [{"kind": "expire_token"}])
    with pytest.raises(ApiException) as caught:
        api.upsert("contacts", {"inputs": [upsert("2")]}, _request_timeout=(5, 30))
    assert caught.value.status == 401
    admin.ask("POST", "/reset")
    api.upsert("contacts", {"inputs": [upsert("2")]}, _request_timeout=(5, 30))
    assert len(admin.ask("GET", "/records")) == 1
