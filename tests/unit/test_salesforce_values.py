"""Values as Salesforce wants them: the same meaning in JSON and in CSV."""

from __future__ import annotations

import csv
import datetime as dt
import io
import json
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cdcsync.apply.salesforce_csv import fits, match_of, read, write
from cdcsync.apply.salesforce_objects import Field, Shape, read_shape
from cdcsync.apply.salesforce_values import JsonForm, clean, number, unsendable, written
from cdcsync.errors import FatalError, TransientError
from cdcsync.model import Batch, Op, Record, Ref, Target, Value

CONTACT = Target("Contact", "Key__c")
PARENT = Ref("Account", "Key__c", "a1")


def described(name: str, **more: object) -> dict[str, object]:
    """Describe a field as Salesforce does."""
    return {"name": name, "type": "string", "createable": True, "updateable": True, "nillable": True, **more}


SHAPE = read_shape(
    {
        "name": "Contact",
        "createable": True,
        "fields": [
            described("Key__c", externalId=True),
            described("Number__c", type="double", externalId=True),
            described("LastName", nillable=False),
            described("AccountId", type="reference", relationshipName="Account", referenceTo=["Account"]),
            described("Boss__c", type="reference", relationshipName="Boss__r", referenceTo=["Contact"]),
            described("WhoId", type="reference", relationshipName="Who", referenceTo=["Contact", "Lead"]),
        ],
    }
)


def key_field(object_name: str, name: str) -> Field:
    """Look a key field up; all objects are alike here."""
    del object_name
    found = SHAPE.field(name)
    assert found
    return found


def as_json(fields: dict[str, Value], key: str = "k", target: Target = CONTACT) -> dict[str, Any]:
    """Write a record for an upsert, and read the JSON."""
    text = JsonForm(target, SHAPE, key_field).upsert(Record(key, fields))
    parsed: dict[str, Any] = json.loads(text, parse_float=Decimal)
    return parsed


def as_rows(batch: Batch, shape: Shape = SHAPE) -> list[list[str]]:
    """Write an upload, and read the CSV."""
    return list(csv.reader(io.StringIO(write(batch, shape).decode(), newline="")))


def as_cells(fields: dict[str, Value], key: str = "k") -> dict[str, str]:
    """Write one record, and read its cells."""
    header, row = as_rows(Batch(CONTACT, Op.UPSERT, (Record(key, fields),)))
    return dict(zip(header, row, strict=True))


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("Zoë", "Zoë"),
        (True, "true"),
        (False, "false"),
        (0, "0"),
        (12345678901234567890, "12345678901234567890"),
        (1e22, "10000000000000000000000"),
        (0.1, "0.1"),
        (1e-7, "0.0000001"),
        (Decimal("1.50"), "1.50"),
        (Decimal("1E+3"), "1000"),
        (dt.date(2024, 2, 29), "2024-02-29"),
        (dt.datetime(2024, 1, 31, 10, 0, 59, 999_999, dt.UTC), "2024-01-31T10:00:59Z"),
        (dt.datetime(2024, 1, 31, 1, tzinfo=dt.timezone(dt.timedelta(hours=2))), "2024-01-30T23:00:00Z"),
        (None, None),
        ("", None),
        (" \t\n", None),
        ("\u00a0", "\u00a0"),
        (" x ", " x "),
        ("a\r\nb\rc\n", "a\nb\nc\n"),
    ],
)
def test_values_as_text(value: Value, text: str | None) -> None:
    """Numbers are plain, times are whole seconds of UTC, line breaks are LF, and nothing clears."""
    assert written(value) == text


def test_json_numbers_keep_their_digits() -> None:
    """A Decimal is a JSON number, with every digit it came with; bool is no number."""
    assert as_json({"N": Decimal("12345678901234567.10"), "B": True, "S": "1"}) == {
        "attributes": {"type": "Contact"},
        "Key__c": "k",
        "N": Decimal("12345678901234567.10"),
        "B": True,
        "S": "1",
    }


def test_null_and_absent_on_both_ways() -> None:
    """NULL and the empty text clear; what is absent is no member, or an empty cell if other rows have the column."""
    assert as_json({"A": None, "B": ""}) == {"attributes": {"type": "Contact"}, "Key__c": "k", "A": None, "B": None}
    batch = Batch(CONTACT, Op.UPSERT, (Record("1", {"A": None, "B": ""}), Record("2", {"C": "c"})))
    assert as_rows(batch) == [["Key__c", "A", "B", "C"], ["1", "#N/A", "#N/A", ""], ["2", "", "", "c"]]


def test_references_go_by_the_parents_key() -> None:
    """A reference names the relationship and the parent's key; NULL empties the field itself in JSON."""
    assert as_json({"AccountId": PARENT})["Account"] == {"Key__c": "a1"}
    assert as_json({"AccountId": None})["AccountId"] is None
    assert as_cells({"AccountId": PARENT, "Boss__c": Ref("Contact", "Key__c", "b")}) == {
        "Key__c": "k",
        "Account.Key__c": "a1",
        "Boss__r.Key__c": "b",
    }


def test_a_reference_column_holds_nulls_too() -> None:
    """One column for the reference, whichever row comes first; a job in which all are NULL clears the field by name."""
    rows = (Record("1", {"AccountId": None}), Record("2", {"AccountId": PARENT}), Record("3", {}))
    assert as_rows(Batch(CONTACT, Op.UPSERT, rows)) == [
        ["Key__c", "Account.Key__c"],
        ["1", "#N/A"],
        ["2", "a1"],
        ["3", ""],
    ]
    assert as_rows(Batch(CONTACT, Op.UPSERT, rows[:1]))[0] == ["Key__c", "AccountId"]


def test_polymorphic_references_name_the_object() -> None:
    """A field that may refer to several objects needs the object said."""
    lead = Ref("Lead", "Key__c", "l1")
    assert as_json({"WhoId": lead})["Who"] == {"attributes": {"type": "Lead"}, "Key__c": "l1"}
    assert as_cells({"WhoId": lead})["Lead:Who.Key__c"] == "l1"


@pytest.mark.parametrize("field", ["LastName", "AccountId", "Nowhere__c"])
def test_a_reference_that_cannot_be_is_a_fault_of_the_mapping(field: str) -> None:
    """No reference field, one to another object, or none at all: no record is sent."""
    with pytest.raises(FatalError, match=field):
        as_json({field: Ref("Opportunity", "Key__c", "o")})


def test_number_keys_are_numbers() -> None:
    """A key of a numeric field is a JSON number; what is none stays text, for Salesforce to refuse."""
    target = Target("Contact", "Number__c")
    assert as_json({}, "7", target)["Number__c"] == 7
    assert as_json({}, "x", target)["Number__c"] == "x"
    assert as_json({"AccountId": Ref("Account", "Number__c", "12")})["Account"] == {"Number__c": 12}
    assert number("1e2") == "100"
    assert number("NaN") is None


def test_an_update_carries_id_and_key() -> None:
    """The id finds the record; the key is one of the values, on both ways."""
    record = Record("new", {"LastName": "x"}, "003A")
    written_json = json.loads(JsonForm(CONTACT, SHAPE, key_field).update(record))
    assert written_json == {"attributes": {"type": "Contact"}, "id": "003A", "Key__c": "new", "LastName": "x"}
    assert as_rows(Batch(CONTACT, Op.UPDATE, (record,))) == [["Id", "Key__c", "LastName"], ["003A", "new", "x"]]
    assert match_of(Batch(CONTACT, Op.UPDATE, (record,)), record) == "003A"


def test_a_delete_job_holds_ids_only() -> None:
    """Bulk delete demands exactly the column Id."""
    assert write(Batch(CONTACT, Op.DELETE, (Record("k", crm_id="003A"),)), SHAPE) == b"Id\n003A\n"


@pytest.mark.parametrize("value", [float("nan"), float("-inf"), Decimal("NaN"), Decimal("Infinity")])
def test_what_is_no_number_is_never_sent(value: Value) -> None:
    """NaN and infinity have no form in JSON or CSV."""
    record = Record("k", {"A": "x", "Score__c": value})
    rejected = unsendable(record)
    assert rejected
    assert rejected.field == "Score__c"
    assert not fits(Op.UPSERT, record)


def test_the_text_for_null_is_not_said_in_csv() -> None:
    """A text that CSV takes for null is left out of the file, wherever it stands."""
    good = Record("1", {"A": "#N/A or so"})
    bad = [
        Record("2", {"A": "#N/A"}),
        Record("#N/A", {}),
        Record("3", {"AccountId": Ref("Account", "Key__c", " #N/A ")}),
    ]
    assert [fits(Op.UPSERT, record) for record in (good, *bad)] == [True, False, False, False]
    assert as_rows(Batch(CONTACT, Op.UPSERT, (*bad, good)))[1:] == [["1", "#N/A or so", ""]]
    assert as_json({"A": "#N/A"})["A"] == "#N/A"


def test_an_upload_ends_where_its_limit_is() -> None:
    """The rows that do not fit are left out whole."""
    rows = tuple(Record(str(number), {"A": "é" * 10}) for number in range(5))
    content = write(Batch(CONTACT, Op.UPSERT, rows), SHAPE, limit=60)
    assert content.decode() == "Key__c,A\n0,éééééééééé\n1,éééééééééé\n"
    assert len(content) <= 60


TEXTS = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=30)


@given(st.lists(st.tuples(TEXTS, st.none() | TEXTS), min_size=1, max_size=5))
def test_what_is_uploaded_can_be_read_back(pairs: list[tuple[str, str | None]]) -> None:
    """Any text survives the CSV, apart from line breaks, blanks alone, and what is no text there."""
    rows = tuple(Record(f"k{number}{key}", {"A": value}) for number, (key, value) in enumerate(pairs))
    batch = Batch(CONTACT, Op.UPSERT, rows)
    content = write(batch, SHAPE)
    assert b"\r" not in content
    expected = [
        (match_of(batch, row), clean(str(row.fields["A"] or "")) or "#N/A") for row in rows if fits(Op.UPSERT, row)
    ]
    _, *read_rows = csv.reader(io.StringIO(content.decode(), newline=""))
    assert [tuple(row) for row in read_rows] == expected


def test_results_are_read_by_column_name() -> None:
    """Line breaks, separators and odd characters in cells do not shift rows; the order of columns does not matter."""
    content = '"sf__Id","sf__Error",A,Key__c\n"","X:a,\nb:--","1\u2028\x0b2","k"\n'.encode()
    assert [tuple(row) for row in read(content, "Key__c", "sf__Error")] == [("k", "", "X:a,\nb:--")]
    assert list(read(b"", "Key__c", "sf__Error")) == []


@pytest.mark.parametrize(
    "content",
    [
        b"<html>wait</html>",
        b'"sf__Id","sf__Created",Key__c\n"a","true"\n',
        b'"sf__Id","sf__Created",Key__c\n"a","tr',
        b"\xff",
    ],
)
def test_what_is_no_result_file_is_transient(content: bytes) -> None:
    """A proxy's page or a cut file says nothing about the rows."""
    with pytest.raises(TransientError):
        list(read(content, "Key__c", "sf__Created"))
