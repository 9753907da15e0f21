"""How values are written to HubSpot."""

from __future__ import annotations

import datetime as dt
import re
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cdcsync.apply.hubspot_values import comparable, encode, properties
from cdcsync.errors import FatalError
from cdcsync.model import Record, Ref, Target, Value

NUMBER = re.compile(r"-?\d+(\.\d+)?")


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, ""),
        ("", ""),
        (" a;b ", " a;b "),
        (True, "true"),
        (False, "false"),
        (42, "42"),
        (0.1, "0.1"),
        (1e21, "1000000000000000000000"),
        (0.123456789, "0.123456789"),
        (Decimal("1E+3"), "1000"),
        (Decimal("1.50"), "1.50"),
        (dt.date(2024, 2, 29), "2024-02-29"),
        (dt.datetime(2024, 6, 1, 10, 25, 0, 123_999, dt.UTC), "2024-06-01T10:25:00.123Z"),
        (dt.datetime(2024, 6, 1, 10, 25, tzinfo=dt.timezone(dt.timedelta(hours=2))), "2024-06-01T08:25:00.000Z"),
        (dt.datetime(44, 3, 15, tzinfo=dt.UTC), "0044-03-15T00:00:00.000Z"),
    ],
)
def test_each_type_has_hubspots_form(value: Value, text: str) -> None:
    """NULL and the empty text both clear; numbers have no exponent; instants are UTC with milliseconds."""
    assert encode(value) == text


@given(
    st.one_of(
        st.integers(),
        st.floats(allow_nan=False, allow_infinity=False),
        st.decimals(allow_nan=False, allow_infinity=False),
    )
)
def test_numbers_keep_their_value_and_have_no_exponent(number: float | Decimal) -> None:
    """Any finite number is printed as digits with at most one point, and means the same number."""
    text = encode(number)
    assert NUMBER.fullmatch(text)
    assert type(number)(text) == number


def test_a_reference_is_a_fault_of_the_mapping() -> None:
    """HubSpot has associations, no reference fields."""
    with pytest.raises(FatalError, match="companies"):
        encode(Ref("companies", "company_id", "7"))


def test_properties_hold_the_key_and_only_what_was_given() -> None:
    """The key is among the properties; a field that is absent from the record is left out."""
    record = Record("7", {"firstname": None, "age": 3})
    assert properties(Target("contacts", "customer_id"), record) == {"customer_id": "7", "firstname": "", "age": "3"}


def test_a_date_in_a_datetime_property_is_its_midnight() -> None:
    """Only dates, and only in the properties that are points in time, are changed."""
    record = Record("7", {"closedate": dt.date(2024, 6, 1), "born": dt.date(2024, 6, 1), "closed": None})
    sent = properties(Target("deals", "order_id"), record, frozenset({"closedate", "closed"}))
    assert sent == {"order_id": "7", "closedate": "2024-06-01T00:00:00.000Z", "born": "2024-06-01", "closed": ""}


def test_only_addresses_are_compared_in_lower_case() -> None:
    """HubSpot stores e-mail addresses in lower case; of other unique properties it says no such thing."""
    assert comparable("email", "A@B.example") == "a@b.example"
    assert comparable("customer_id", "A1") == "A1"
