"""PostgreSQL's texts → CRM values, type by type, with the values that no CRM takes."""

from __future__ import annotations

import datetime as dt
import subprocess
import sys
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cdcsync.errors import RowRejectedError
from cdcsync.mappers.values import HASH_BYTES, converter, field_hash, nearest
from cdcsync.model import Ref, Value

INT8, NUMERIC, FLOAT8, BOOL, BPCHAR, TEXT_ARRAY = 20, 1700, 701, 16, 1042, 1009
DATE, TIMESTAMP, TIMESTAMPTZ, TIME, TIMETZ = 1082, 1114, 1184, 1083, 1266


def moment(*parts: int) -> dt.datetime:
    """Make a UTC timestamp."""
    return dt.datetime(*parts, tzinfo=dt.UTC)  # type: ignore[misc, arg-type]  # the parts are in their order


@pytest.mark.parametrize(
    ("oid", "printed", "value"),
    [
        (INT8, "-9223372036854775808", -(1 << 63)),
        (21, "7", 7),
        (26, "4294967295", 4294967295),
        (NUMERIC, "1.10", Decimal("1.10")),
        (NUMERIC, "9" * 1000, Decimal("9" * 1000)),
        (NUMERIC, "0." + "0" * 399 + "1", Decimal("1e-400")),
        (FLOAT8, "5e-324", 5e-324),
        (FLOAT8, "1.7976931348623157e+308", 1.7976931348623157e308),
        (700, "0.1", 0.1),
        (BOOL, "t", True),
        (BOOL, "f", False),
        (DATE, "2024-02-29", dt.date(2024, 2, 29)),
        (DATE, "9999-12-31", dt.date(9999, 12, 31)),
        (TIMESTAMP, "2024-01-31 10:00:00", moment(2024, 1, 31, 10)),
        (TIMESTAMPTZ, "2024-01-31 10:00:00.5+00", moment(2024, 1, 31, 10, 0, 0, 500000)),
        (TIMESTAMPTZ, "0001-01-01 00:00:00.000001+00", moment(1, 1, 1, 0, 0, 0, 1)),
        (TIMESTAMPTZ, "1890-01-01 00:00:00+00:19:32", moment(1889, 12, 31, 23, 40, 28)),
        (BPCHAR, "ab   ", "ab"),
        (25, "", ""),
        (25, " a\r\n\U0001f600 ", " a\r\n\U0001f600 "),
        (1083, "23:59:59.999999", "23:59:59.999999"),
        (1266, "10:00:00+15:59:59", "10:00:00+15:59:59"),
        (790, "-$1,234.50", "-$1,234.50"),
        (114, '{"a": 1, "a": 2}', '{"a": 1, "a": 2}'),
        (2950, "6b29fc40-ca47-1067-b31d-00dd010662da", "6b29fc40-ca47-1067-b31d-00dd010662da"),
        (99999, "(1,2)", "(1,2)"),
        (TEXT_ARRAY, "{}", ""),
        (TEXT_ARRAY, "{a,b}", "a;b"),
        (TEXT_ARRAY, '{NULL,"NULL","",x}', "NULL;;x"),
        (TEXT_ARRAY, r'{"a,b","c\"d","\\"}', 'a,b;c"d;\\'),
        (TEXT_ARRAY, '{"{x}"}', "{x}"),
        (TEXT_ARRAY, '{"two\nlines"}', "two\nlines"),
        (1007, "[2:3]={1,2}", "1;2"),
        (1014, '{"ab   ","     "}', "ab;"),
        (3907, '{empty,"[1.5,2.5)"}', "empty;[1.5,2.5)"),
        (1020, "{(2,2),(1,1);(4,4),(3,3)}", "{(2,2),(1,1);(4,4),(3,3)}"),
    ],
)
def test_texts_become_values(oid: int, printed: str, value: Value) -> None:
    """Each type's text, at its borders too, is the value that was stored, and of the right Python type."""
    got = converter(oid)(printed.encode())
    assert got == value
    assert type(got) is type(value)


@pytest.mark.parametrize(
    ("oid", "printed", "code"),
    [
        (NUMERIC, "NaN", "number-not-finite"),
        (NUMERIC, "-Infinity", "number-not-finite"),
        (FLOAT8, "NaN", "number-not-finite"),
        (FLOAT8, "Infinity", "number-not-finite"),
        (DATE, "infinity", "time-out-of-range"),
        (DATE, "4713-01-01 BC", "time-out-of-range"),
        (DATE, "5874897-12-31", "time-out-of-range"),
        (TIMESTAMP, "-infinity", "time-out-of-range"),
        (TIMESTAMP, "294276-12-31 23:59:59.999999", "time-out-of-range"),
        (TIMESTAMPTZ, "0044-03-15 00:00:00+00 BC", "time-out-of-range"),
        (TIMESTAMPTZ, "9999-12-31 23:59:59-05", "time-out-of-range"),
        (TIME, "24:00:00", "time-out-of-range"),
        (TIMETZ, "24:00:00-08", "time-out-of-range"),
        (TEXT_ARRAY, "{{a},{b}}", "array-dimensions"),
        (TEXT_ARRAY, '{"a;b"}', "array-separator"),
    ],
)
def test_what_no_crm_takes_rejects_the_row(oid: int, printed: str, code: str) -> None:
    """A value without a form in a CRM is never bent into another one; and the reason does not repeat the value."""
    with pytest.raises(RowRejectedError) as caught:
        converter(oid)(printed.encode())
    assert caught.value.code == code
    assert printed not in caught.value.message.replace("NaN and infinity", "")


@pytest.mark.parametrize(
    ("oid", "printed", "value"),
    [
        (DATE, "infinity", dt.date.max),
        (DATE, "-infinity", dt.date.min),
        (DATE, "4713-01-01 BC", dt.date.min),
        (DATE, "5874897-12-31", dt.date.max),
        (TIMESTAMP, "infinity", moment(9999, 12, 31, 23, 59, 59, 999999)),
        (TIMESTAMP, "-infinity", moment(1, 1, 1)),
        (TIMESTAMP, "0044-03-15 12:00:00 BC", moment(1, 1, 1)),
        (TIMESTAMPTZ, "294276-12-31 23:59:59.999999+00", moment(9999, 12, 31, 23, 59, 59, 999999)),
        (TIMESTAMPTZ, "9999-12-31 23:59:59-05", moment(9999, 12, 31, 23, 59, 59, 999999)),
        (TIMESTAMPTZ, "0001-01-01 00:00:00+05", moment(1, 1, 1)),
        (TIME, "24:00:00", "23:59:59.999999"),
        (TIMETZ, "24:00:00+05:30", "23:59:59.999999+05:30"),
    ],
)
def test_the_nearest_date_or_time_is_on_the_right_side(oid: int, printed: str, value: Value) -> None:
    """What is refused has a neighbour at the border that it lies beyond, of the type that good values have."""
    with pytest.raises(RowRejectedError):
        converter(oid)(printed.encode())
    clamp = nearest(oid)
    assert clamp is not None
    assert clamp(printed.encode()) == value
    assert type(clamp(printed.encode())) is type(value)


@pytest.mark.parametrize("oid", [NUMERIC, FLOAT8, TEXT_ARRAY, 25, 99999])
def test_what_is_no_date_or_time_has_no_nearest(oid: int) -> None:
    """NaN has no neighbour, and the largest number of a CRM field is the CRM's to say."""
    assert nearest(oid) is None


def test_minus_zero_is_zero() -> None:
    """``-0`` would be a change that no CRM keeps."""
    assert str(converter(FLOAT8)(b"-0")) == "0.0"


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_floats_keep_their_shortest_text(number: float) -> None:
    """A float that the server prints is the same float here."""
    assert converter(FLOAT8)(repr(number).encode()) == number


_values: st.SearchStrategy[Value] = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(allow_nan=False),
    st.decimals(allow_nan=False),
    st.text(),
    st.dates(),
    st.datetimes(timezones=st.just(dt.UTC)),
    st.builds(Ref, st.text(), st.text(), st.text()),
)


@given(_values, _values)
def test_hashes_tell_values_apart(one: Value, other: Value) -> None:
    """Equal values of one type have one hash, different ones (1, True, "1", 1.0 too) have different ones."""
    assert len(field_hash(one)) == HASH_BYTES
    same = type(one) is type(other) and str(one) == str(other)
    assert (field_hash(one) == field_hash(other)) is same


def test_hashes_are_the_same_in_every_process() -> None:
    """The ledger outlives the process: hashes must not depend on anything of this one."""
    values = 'None, True, 1, "1", "some longer text", 1.5, Decimal("1.10"), dt.date(2024, 1, 2), Ref("A", "K", "1")'
    code = (
        "import datetime as dt; from decimal import Decimal; from cdcsync.model import Ref;"
        f"from cdcsync.mappers.values import field_hash; print([field_hash(v).hex() for v in ({values})])"
    )
    runs = {
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=env).stdout
        for env in ({"PYTHONHASHSEED": "1"}, {"PYTHONHASHSEED": "2"})
    }
    assert len(runs) == 1
    assert field_hash("some longer text").hex() in runs.pop()


def test_hashes_do_not_change_between_releases() -> None:
    """A changed hash would send every record of every user again: it needs a new format of the state file."""
    assert field_hash(None).hex() == "6effffffffffffff"
    assert field_hash("some longer text").hex() == "2b7e037370802df7"
