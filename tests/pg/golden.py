"""The golden table: a value of each type as SQL, its text as every server prints it, and what a CRM gets of it."""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass
from decimal import Decimal
from typing import Final

from cdcsync.model import Value


@dataclass(frozen=True, slots=True)
class Refused:
    """No CRM has the value: the row's rejection code, or ``config`` where the mapping itself is refused."""

    code: str


@dataclass(frozen=True, slots=True)
class Case:
    """``sql`` is an expression of ``type``, which came with the major version ``since``, or comes with an extension."""

    type: str
    sql: str
    text: str
    value: Value | Refused
    since: int = 13
    extension: str | None = None


def _at(*parts: int) -> dt.datetime:
    return dt.datetime(*parts, tzinfo=dt.UTC)  # type: ignore[misc, arg-type]  # the parts are in their order


def _as_text(kind: str, sql: str, printed: str, *, since: int = 13, extension: str | None = None) -> Case:
    """Make a case of a type that a CRM gets as it is printed."""
    return Case(kind, sql, printed, printed, since, extension)


NO_NUMBER: Final = Refused("number-not-finite")
NO_TIME: Final = Refused("time-out-of-range")
NO_LIST: Final = Refused("array-dimensions")

DEFINITIONS: Final = """
    CREATE TYPE mood AS ENUM ('so so', 'it''s "fine"', 'gut, größer');
    CREATE DOMAIN amount AS numeric(10, 2);
    CREATE DOMAIN price AS amount CHECK (VALUE > 0);
    CREATE DOMAIN feeling AS mood;
    CREATE DOMAIN day AS date;
    CREATE DOMAIN code AS char(5);
    CREATE DOMAIN numbers AS int[] CHECK (cardinality(VALUE) < 9);
    CREATE DOMAIN feelings AS mood[];
    CREATE TYPE pair AS (a text, b int);
    CREATE TYPE nested AS (p pair, moods mood[]);
    CREATE TYPE steps AS RANGE (SUBTYPE = float8);
"""

DIGITS: Final = "1234567890" * 100

NUMBERS: Final = [
    Case("smallint", "-32768", "-32768", -32768),
    Case("integer", "2147483647", "2147483647", 2147483647),
    Case("bigint", "'-9223372036854775808'", "-9223372036854775808", -(1 << 63)),
    Case("bigint", "9223372036854775807", "9223372036854775807", (1 << 63) - 1),
    Case("oid", "4294967295", "4294967295", 4294967295),
    Case("numeric", "'NaN'", "NaN", NO_NUMBER),
    Case("numeric", "'Infinity'", "Infinity", NO_NUMBER, since=14),
    Case("numeric", "'-Infinity'", "-Infinity", NO_NUMBER, since=14),
    Case("numeric", "1.10", "1.10", Decimal("1.10")),
    Case("numeric", DIGITS, DIGITS, Decimal(DIGITS)),
    Case("numeric", "1e-400", "0." + "0" * 399 + "1", Decimal("1e-400")),
    Case("numeric", "'-0.00'", "0.00", Decimal("0.00")),
    Case("numeric(10,2)", "1.005", "1.01", Decimal("1.01")),
    Case("numeric(5,-2)", "12345", "12300", Decimal(12300), since=15),
    Case("double precision", "'NaN'", "NaN", NO_NUMBER),
    Case("double precision", "'Infinity'", "Infinity", NO_NUMBER),
    Case("double precision", "'-Infinity'", "-Infinity", NO_NUMBER),
    Case("double precision", "'-0'", "-0", 0.0),
    Case("double precision", "5e-324", "5e-324", 5e-324),
    Case("double precision", "1.7976931348623157e308", "1.7976931348623157e+308", 1.7976931348623157e308),
    Case("double precision", "0.1", "0.1", 0.1),
    Case("double precision", "1e15", "1e+15", 1e15),
    Case("real", "0.1", "0.1", 0.1),
    Case("real", "16777216", "1.6777216e+07", 16777216.0),
    Case("real", "'NaN'", "NaN", NO_NUMBER),
    _as_text("money", "1234.5", "$1,234.50"),
    _as_text("money", "-0.01", "-$0.01"),
    Case("boolean", "true", "t", True),
    Case("boolean", "false", "f", False),
]

TEXTS: Final = [
    _as_text("text", "''", ""),
    _as_text("text", "'NULL'", "NULL"),
    _as_text("text", r"E' a\r\n\t\\ '", " a\r\n\t\\ "),
    _as_text("text", "'ü💶'", "ü💶"),
    _as_text("text", r"E'\uFFFF\u0001'", "\uffff\x01"),
    _as_text("varchar(3)", "'abc'", "abc"),
    Case("char(5)", "'ab'", "ab   ", "ab"),
    Case("char(3)", "''", "   ", ""),
    _as_text('"char"', "'x'", "x"),
    _as_text("name", "'n'", "n"),
    _as_text("citext", "'MiXed'", "MiXed", extension="citext"),
    _as_text("uuid", "'A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11'", "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11"),
    Case("bytea", r"'\x00ff'", r"\x00ff", Refused("config")),
    _as_text(
        "json",
        r"""'{"a": 1, "a": 12345678901234567890,  "b":"\u0000\ud800"}'""",
        r"""{"a": 1, "a": 12345678901234567890,  "b":"\u0000\ud800"}""",
    ),
    _as_text("jsonb", """'{"bb": 1, "a": 1.50, "a": [null, "ü"]}'""", """{"a": [null, "ü"], "bb": 1}"""),
    _as_text("jsonpath", "'$.a'", '$."a"'),
    _as_text("xml", """'<a b="1">ü</a>'""", '<a b="1">ü</a>'),
    _as_text("tsvector", "'a fat:2A cat'", "'a' 'cat' 'fat':2A"),
    _as_text("tsquery", "'fat & !rat'", "'fat' & !'rat'"),
    _as_text("ltree", "'top.sub_1'", "top.sub_1", extension="ltree"),
    _as_text("hstore", "'a=>1, b=>NULL'", '"a"=>"1", "b"=>NULL', extension="hstore"),
    _as_text("hstore", "''", "", extension="hstore"),
    _as_text("hstore", r"""hstore('"q"', E'\\')""", r'''"\"q\""=>"\\"''', extension="hstore"),
]

TIMES: Final = [
    Case("date", "'2024-02-29'", "2024-02-29", dt.date(2024, 2, 29)),
    Case("date", "'0001-01-01'", "0001-01-01", dt.date(1, 1, 1)),
    Case("date", "'9999-12-31'", "9999-12-31", dt.date(9999, 12, 31)),
    Case("date", "'10000-01-01'", "10000-01-01", NO_TIME),
    Case("date", "'infinity'", "infinity", NO_TIME),
    Case("date", "'-infinity'", "-infinity", NO_TIME),
    Case("date", "'4713-01-01 BC'", "4713-01-01 BC", NO_TIME),
    Case("date", "'5874897-12-31'", "5874897-12-31", NO_TIME),
    _as_text("time", "'00:00:00.000001'", "00:00:00.000001"),
    Case("time", "'24:00'", "24:00:00", NO_TIME),
    Case("time", "'23:59:60'", "24:00:00", NO_TIME),
    _as_text("timetz", "'12:00+05:30'", "12:00:00+05:30"),
    _as_text("timetz", "'01:02:03+15:59:59'", "01:02:03+15:59:59"),
    Case("timetz", "'24:00-08'", "24:00:00-08", NO_TIME),
    Case("timestamp", "'2024-01-31 10:00:00.5'", "2024-01-31 10:00:00.5", _at(2024, 1, 31, 10, 0, 0, 500000)),
    Case("timestamp", "'infinity'", "infinity", NO_TIME),
    Case("timestamp", "'-infinity'", "-infinity", NO_TIME),
    Case("timestamp", "'0044-03-15 12:00 BC'", "0044-03-15 12:00:00 BC", NO_TIME),
    Case("timestamp", "'294276-12-31 23:59:59.999999'", "294276-12-31 23:59:59.999999", NO_TIME),
    Case("timestamp(0)", "'9999-12-31 23:59:59.7'", "10000-01-01 00:00:00", NO_TIME),
    Case("timestamptz", "'2024-06-01 12:00 Europe/Berlin'", "2024-06-01 10:00:00+00", _at(2024, 6, 1, 10)),
    Case(
        "timestamptz",
        "'1890-01-01 00:00:00.5+00:19:32'",
        "1889-12-31 23:40:28.5+00",
        _at(1889, 12, 31, 23, 40, 28, 500000),
    ),
    Case(
        "timestamptz",
        "'9999-12-31 23:59:59.999999+00'",
        "9999-12-31 23:59:59.999999+00",
        _at(9999, 12, 31, 23, 59, 59, 999999),
    ),
    Case("timestamptz", "'0001-01-01 00:30+01'", "0001-12-31 23:30:00+00 BC", NO_TIME),
    Case("timestamptz", "'0044-03-15 12:00+01 BC'", "0044-03-15 11:00:00+00 BC", NO_TIME),
    Case("timestamptz", "'infinity'", "infinity", NO_TIME),
    _as_text("interval", "'1 year 2 mons -3 days 04:05:06.789'", "1 year 2 mons -3 days +04:05:06.789"),
    _as_text("interval", "'-1 mon'", "-1 mons"),
    _as_text("interval", "'0'", "00:00:00"),
    _as_text("interval", "'infinity'", "infinity", since=17),
]

ARRAYS: Final = [
    Case("int[]", "'{}'", "{}", ""),
    Case("int[]", "'[2:3]={1,2}'", "[2:3]={1,2}", "1;2"),
    Case("int[]", "'{{1,2},{3,4}}'", "{{1,2},{3,4}}", NO_LIST),
    Case(
        "text[]",
        r"""'{NULL,"NULL","","a,b","c\"d","\\","{x}"}'""",
        r'{NULL,"NULL","","a,b","c\"d","\\","{x}"}',
        'NULL;;a,b;c"d;\\;{x}',
    ),
    Case("text[]", "ARRAY['a;b']", "{a;b}", Refused("array-separator")),
    Case("char(3)[]", "ARRAY['a','']", '{"a  ","   "}', "a;"),
    Case("boolean[]", "'{t,f,NULL}'", "{t,f,NULL}", "t;f"),
    Case("numeric[]", "'{1.10,NaN}'", "{1.10,NaN}", "1.10;NaN"),
    Case("timestamptz[]", "'{2024-01-01 00:00+00}'", '{"2024-01-01 00:00:00+00"}', "2024-01-01 00:00:00+00"),
    Case("jsonb[]", """ARRAY['{"a": 1}'::jsonb]""", r'{"{\"a\": 1}"}', '{"a": 1}'),
    Case("bytea[]", r"ARRAY['\x00'::bytea]", r'{"\\x00"}', Refused("config")),
    Case(
        "mood[]",
        """ARRAY['so so', 'it''s "fine"']::mood[]""",
        r'{"so so","it' "'" r's \"fine\""}',
        'so so;it\'s "fine"',
    ),
    Case("price[]", "'{1.5,2}'", "{1.50,2.00}", "1.50;2.00"),
    Case("pair[]", "ARRAY[ROW('x', 1)::pair]", '{"(x,1)"}', "(x,1)"),
    _as_text("box[]", "'{(2,2),(1,1);(4,4),(3,3)}'", "{(2,2),(1,1);(4,4),(3,3)}"),
    _as_text("int2vector", "'1 2'", "1 2"),
    Case("numbers", "'{1,NULL,3}'", "{1,NULL,3}", "1;3"),
    Case("feelings", "ARRAY['gut, größer']::mood[]", '{"gut, größer"}', "gut, größer"),
]

DEFINED: Final = [
    _as_text("mood", "'so so'", "so so"),
    _as_text("mood", """'it''s "fine"'""", 'it\'s "fine"'),
    Case("price", "1.5", "1.50", Decimal("1.50")),
    _as_text("feeling", "'gut, größer'", "gut, größer"),
    Case("day", "'2024-02-29'", "2024-02-29", dt.date(2024, 2, 29)),
    Case("day", "'infinity'", "infinity", NO_TIME),
    Case("code", "'ab'", "ab   ", "ab"),
    _as_text("pair", """ROW('x, "y"', 3)""", '("x, ""y""",3)'),
    _as_text("pair", "ROW(NULL, NULL)", "(,)"),
    _as_text("nested", "ROW(ROW('a b', 1), '{so so}')", '("(""a b"",1)","{""so so""}")'),
    _as_text("steps", "'[1.5,2.5)'", "[1.5,2.5)"),
    _as_text("numrange", "'empty'", "empty"),
    _as_text("numrange", "'(,)'", "(,)"),
    _as_text("int4range", "'[1,5]'", "[1,6)"),
    _as_text("daterange", "'(,2024-01-01]'", "(,2024-01-02)"),
    _as_text("tstzrange", "'[2024-01-01 00:00+00,infinity]'", '["2024-01-01 00:00:00+00",infinity]'),
    _as_text("int4multirange", "'{}'", "{}", since=14),
    _as_text("int4multirange", "'{[1,2),[5,6)}'", "{[1,2),[5,6)}", since=14),
    _as_text("datemultirange", "'{[2024-01-01,infinity)}'", "{[2024-01-01,infinity)}", since=14),
]

OTHERS: Final = [
    _as_text("inet", "'10.0.0.1/8'", "10.0.0.1/8"),
    _as_text("inet", "'::1'", "::1"),
    _as_text("cidr", "'10/8'", "10.0.0.0/8"),
    _as_text("macaddr", "'08-00-2b-01-02-03'", "08:00:2b:01:02:03"),
    _as_text("macaddr8", "'08:00:2b:01:02:03:04:05'", "08:00:2b:01:02:03:04:05"),
    _as_text("bit(3)", "B'101'", "101"),
    _as_text("varbit", "''", ""),
    _as_text("point", "'(0.1,-2e-300)'", "(0.1,-2e-300)"),
    _as_text("line", "'{1,-1,0}'", "{1,-1,0}"),
    _as_text("lseg", "'[(0,0),(1,1)]'", "[(0,0),(1,1)]"),
    _as_text("box", "'(1,1),(2,2)'", "(2,2),(1,1)"),
    _as_text("path", "'[(0,0),(1,1)]'", "[(0,0),(1,1)]"),
    _as_text("polygon", "'((0,0),(1,1),(1,0))'", "((0,0),(1,1),(1,0))"),
    _as_text("circle", "'<(0,0),1.5>'", "<(0,0),1.5>"),
    _as_text("pg_lsn", "'16/B374D848'", "16/B374D848"),
    _as_text("xid", "'7'", "7"),
    _as_text("regclass", "'pg_class'", "pg_class"),
    _as_text("cube", "'(1,2),(3,4)'", "(1, 2),(3, 4)", extension="cube"),
    _as_text("seg", "'1.0 .. 2.0'", "1.0 .. 2.0", extension="seg"),
    _as_text("isbn", "'0-393-04002-X'", "0-393-04002-X", extension="isn"),
    _as_text("vector(3)", "'[1,2.5,3]'", "[1,2.5,3]", extension="vector"),
]

CASES: Final = [*NUMBERS, *TEXTS, *TIMES, *ARRAYS, *DEFINED, *OTHERS]
