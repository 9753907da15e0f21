"""Compiled mappers: they equal an interpreted reference, and what does not fit a table is refused before any row."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cdcsync.config import FieldConfig, MapConfig, template_parts
from cdcsync.errors import ConfigError, DecodeError, RowRejectedError
from cdcsync.mappers.compile import Mapped, Parent, RowMapper, WantedLink, compile_mapper
from cdcsync.mappers.values import converter, nearest
from cdcsync.model import ABSENT, Column, Ref, Relation, Text, Value
from cdcsync.wal.tuples import join_tuple, split_tuple

ENUM, DOMAIN = 16400, 16401
TYPES = {ENUM: 25, DOMAIN: 20}
COLUMNS = {
    "id": 20,
    "name": 25,
    "active": 16,
    "tier": 1042,
    "company": DOMAIN,
    "amount": 1700,
    "seen": 1184,
    "mood": ENUM,
    "tags": 1009,
    "opens": 1083,
    "blob": 17,
}


def relation(identity: str = "d", key: tuple[str, ...] = ("id",), columns: Mapping[str, int] = COLUMNS) -> Relation:
    """Make a relation of ``COLUMNS``, or of the given ones."""
    return Relation(
        7,
        "public",
        "people",
        identity,
        tuple(Column(name, oid, -1, name in key) for name, oid in columns.items()),
    )


def mapping(fields: Mapping[str, Any], **rest: Any) -> MapConfig:
    """Make a mapping of the table."""
    given_ = {"table": "people", "to": "crm.Contact", "key": {"Key__c": "id"}, "fields": fields, **rest}
    return MapConfig.model_validate(given_)


def compiled(fields: Mapping[str, Any], **rest: Any) -> RowMapper:
    """Compile a mapping for the table."""
    return compile_mapper(mapping(fields, **rest), relation(), TYPES)


def row(**values: Text) -> bytes:
    """Make a tuple of the table; columns that are not named are NULL, the key is 1."""
    return join_tuple([values.get(name, b"1" if name == "id" else None) for name in COLUMNS])


# --- an interpreted reference: says what a mapping means, one column at a time


def reference(config: MapConfig, raw: bytes) -> Mapped:
    """Map a row slowly."""
    values = dict(zip(COLUMNS, split_tuple(raw), strict=True))
    key = values[config.key_column]
    if key is None or key is ABSENT or key == b"":
        code = "key-null" if key is None else "key-empty" if key == b"" else "key-absent"
        raise RowRejectedError(code, config.key_field, "")
    fields: dict[str, Value] = {}
    parents: list[Parent] = []
    links: list[WantedLink] = []
    absent: list[str] = []
    for name, field in config.fields.items():
        columns = [column for _, column in template_parts(field.template or "{" + (field.column or "") + "}") if column]
        texts = [values[column] for column in columns]
        if all(text is None for text in texts):
            fields |= _reference_null(config, name, field)
        elif any(text is ABSENT for text in texts):
            absent.append(name)
        else:
            fields |= _reference_value(config, name, field, values, parents)
    for link in config.associate:
        text = values[link.column]
        if text is ABSENT:
            absent.append(f"{link.to_object}:{link.type}")
        elif text or config.nulls == "clear":
            target = _reference_text(f"{link.to_object}:{link.type}", link.column, text) if text else None
            links.append(WantedLink(link.to_object, link.type, target))
    return Mapped(printed(config.key_column, key), fields, tuple(parents), tuple(links), tuple(absent))


def printed(column: str, text: Text) -> str:
    """Print a column's text as keys and templates have it."""
    assert isinstance(text, bytes)
    return text.decode().rstrip(" ") if COLUMNS[column] == 1042 else text.decode()


def _reference_text(label: str, column: str, text: Text) -> str:
    try:
        return printed(column, text)
    except UnicodeDecodeError:
        raise RowRejectedError("not-utf8", label, "") from None


def _reference_null(config: MapConfig, name: str, field: FieldConfig) -> dict[str, Value]:
    if field.default is not None:
        return {name: field.default}
    return {name: None} if config.nulls == "clear" else {}


def _reference_value(
    config: MapConfig, name: str, field: FieldConfig, values: Mapping[str, Text], parents: list[Parent]
) -> dict[str, Value]:
    if field.template is not None:
        try:
            return {name: _filled(field.template, values)}
        except UnicodeDecodeError:
            return _reference_invalid(config, name, field, b"", "not-utf8")
    column = field.column or ""
    text = values[column]
    assert isinstance(text, bytes)
    if field.values is not None:
        known = {_BOOLS.get(key, key) if COLUMNS[column] == 16 else key: value for key, value in field.values.items()}
        shown = text.decode(errors="replace").rstrip(" ") if COLUMNS[column] == 1042 else text.decode(errors="replace")
        if shown in known:
            return {name: known[shown]}
        if field.otherwise == "keep":
            return {}
        if field.otherwise == "clear":
            return {name: None}
        raise RowRejectedError("value-unmapped", name, "")
    if field.ref is not None:
        if not (parent := _reference_text(name, column, text)):
            return _reference_null(config, name, field)
        parents.append(Parent(field.ref.object, field.ref.key_field, parent))
        return {name: Ref(field.ref.object, field.ref.key_field, parent)}
    try:
        return {name: converter(builtin(column))(text)}
    except RowRejectedError as error:
        return _reference_invalid(config, name, field, text, error.code)
    except UnicodeDecodeError:
        return _reference_invalid(config, name, field, text, "not-utf8")


def builtin(column: str) -> int:
    """Give the builtin type that a column's values are printed as."""
    return TYPES.get(COLUMNS[column], COLUMNS[column])


def _reference_invalid(config: MapConfig, name: str, field: FieldConfig, text: bytes, code: str) -> dict[str, Value]:
    if field.on_invalid == "null":
        return _reference_null(config, name, field)
    clamp = nearest(builtin(field.column or "id"))
    if field.on_invalid == "clamp" and clamp is not None:
        return {name: clamp(text)}
    raise RowRejectedError(code, name, "")


def _filled(template: str, values: Mapping[str, Text]) -> str:
    return "".join(
        literal + ("" if column is None or values[column] is None else _word(column, values[column]))
        for literal, column in template_parts(template)
    )


_BOOLS = {"true": "t", "false": "f"}


def _word(column: str, text: Text) -> str:
    if COLUMNS[column] == 16:
        return "true" if text == b"t" else "false"
    return printed(column, text)


_text = st.one_of(
    st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=20).map(str.encode), st.just(b"\xff")
)
_texts = {
    "id": st.integers().map(lambda number: b"%d" % number),
    "name": _text,
    "active": st.sampled_from([b"t", b"f"]),
    "tier": st.sampled_from([b"g   ", b"s   ", b"x   ", b"    "]),
    "company": st.integers(0, 3).map(lambda number: b"%d" % number),
    "amount": st.sampled_from([b"1.10", b"-0.5", b"NaN", b"1000000"]),
    "seen": st.sampled_from([b"2024-01-01 00:00:00+00", b"2024-01-01 00:00:00.25+00", b"infinity", b"-infinity"]),
    "opens": st.sampled_from([b"09:00:00", b"24:00:00"]),
    "mood": _text,
    "tags": st.sampled_from([b"{}", b"{a,b}", b"{{a},{b}}"]),
    "blob": _text,
}
_rows = st.tuples(
    *(st.one_of(st.just(ABSENT), st.none(), _texts[name], _texts[name], _texts[name]) for name in COLUMNS)
).map(lambda values: join_tuple(list(values)))

_field = st.one_of(
    st.sampled_from(["id", "name", "active", "tier", "company", "amount", "seen", "mood", "tags", "opens"]),
    st.sampled_from(
        [
            {"column": "name", "default": "(unknown)"},
            {"column": "amount", "default": 0},
            {"column": "active", "values": {"true": "yes", "f": 0}},
            {"column": "tier", "values": {"g": "Gold", "s": 2}},
            {"column": "tier", "values": {"g": "Gold", "": True}, "otherwise": "clear", "default": "none"},
            {"column": "mood", "values": {"": "empty"}, "otherwise": "keep"},
            {"column": "company", "ref": "crm.Account.Key__c"},
            {"column": "mood", "ref": "crm.Other.Key__c"},
            {"column": "tier", "ref": "crm.Other.Key__c"},
            {"column": "amount", "on_invalid": "null"},
            {"column": "amount", "on_invalid": "null", "default": 0},
            {"column": "name", "on_invalid": "null"},
            {"column": "tags", "on_invalid": "null"},
            {"column": "seen", "on_invalid": "reject"},
            {"column": "seen", "on_invalid": "clamp"},
            {"column": "opens", "on_invalid": "clamp"},
            {"template": "{name}-{mood}", "on_invalid": "null"},
            {"template": "Dear {name}"},
            {"template": "{{{name}}} {active}{tier}/{amount}"},
        ]
    ),
)
_mappings = st.builds(
    mapping,
    st.dictionaries(st.from_regex(r"[A-Z][a-z]{1,5}__c", fullmatch=True), _field, max_size=8),
    nulls=st.sampled_from(["clear", "keep"]),
    key=st.sampled_from([{"Key__c": "id"}]),
    associate=st.lists(
        st.sampled_from(
            [
                {"to": "crm.companies", "column": "company", "type": "a"},
                {"to": "crm.companies", "column": "mood", "type": "b"},
            ]
        ),
        max_size=2,
        unique_by=lambda link: link["type"],
    ),
)


def outcome(run: Any, *arguments: Any) -> object:
    """Give the result, or where the row was rejected."""
    try:
        return run(*arguments)
    except RowRejectedError as error:
        return "rejected", error.code, error.field


@given(_mappings, st.lists(_rows, min_size=1, max_size=5))
def test_the_generated_function_equals_the_reference(config: MapConfig, rows: list[bytes]) -> None:
    """For any mapping and any row, values, rejections and what was left out are those of the plain meaning."""
    mapper = compile_mapper(config, relation(), TYPES)
    for raw in rows:
        got = outcome(mapper.map, raw)
        assert got == outcome(reference, config, raw)
        if isinstance(got, Mapped):
            assert got.key == mapper.key_of(raw)
            assert [type(value) for value in got.fields.values()] == [
                type(value) for value in reference(config, raw).fields.values()
            ]


@given(st.binary(max_size=40))
def test_any_bytes_give_a_record_or_a_typed_error(raw: bytes) -> None:
    """A damaged tuple is an error of ours, whatever its bytes."""
    mapper = compiled({"A": "name", "B": "mood"})
    for run in (mapper.map, mapper.key_of):
        try:
            run(raw)
        except (DecodeError, RowRejectedError):
            continue


@pytest.mark.parametrize("cut", range(1, 12))
def test_a_tuple_that_was_cut_short_is_refused(cut: int) -> None:
    """Half a value is never mapped."""
    raw = row(name=b"Maria")
    short = raw[: 2 + 6 + cut]
    with pytest.raises(DecodeError):
        compiled({"A": "mood"}).map(short)


def test_a_row_of_another_shape_is_refused() -> None:
    """The number of columns is that of the relation the mapper was made for."""
    with pytest.raises(DecodeError):
        compiled({"A": "name"}).map(join_tuple([b"1", b"x"]))


def test_null_empty_and_not_sent_stay_apart() -> None:
    """SQL NULL clears, the empty text is a value, what was not sent is left out and named."""
    mapper = compiled({"A": "name", "B": "mood", "C": "tags"})
    mapped = mapper.map(row(name=None, mood=b"", tags=ABSENT))
    assert (mapped.fields, mapped.absent) == ({"A": None, "B": ""}, ("C",))
    keep = compiled({"A": "name", "B": "mood"}, nulls="keep")
    assert (keep.map(row(mood=b"")).fields, keep.map(row(mood=b"")).absent) == ({"B": ""}, ())


def test_key_reference_and_link_have_one_text() -> None:
    """A parent is found by the same text that its own row has as its key, whatever the integer's width."""
    people = compiled(
        {"P": {"column": "company", "ref": "crm.Account.K"}},
        associate=[{"to": "crm.companies", "column": "company", "type": "t"}],
    ).map(row(company=b"42"))
    parent = compile_mapper(mapping({}, key={"K": "id"}), relation(columns={"id": 23}), TYPES)
    key = parent.key_of(join_tuple([b"42"]))
    assert people.parents == (Parent("Account", "K", "42"),)
    assert people.fields["P"] == Ref("Account", "K", "42")
    assert people.links == (WantedLink("companies", "t", "42"),)
    assert key == "42"


@pytest.mark.parametrize(
    ("key", "code", "text"),
    [(None, "key-null", None), (ABSENT, "key-absent", None), (b"", "key-empty", "")],
)
def test_a_row_without_a_key_is_rejected(key: Text, code: str, text: str | None) -> None:
    """There is no record to write to; nobody invents one."""
    mapper = compiled({"A": "name"})
    raw = join_tuple([key] + [None] * (len(COLUMNS) - 1))
    assert mapper.key_of(raw) == text
    with pytest.raises(RowRejectedError) as caught:
        mapper.map(raw)
    assert (caught.value.code, caught.value.field) == (code, "Key__c")


def test_the_key_of_an_old_key_tuple_is_read_though_the_rest_was_not_sent() -> None:
    """Deletes bring the identity only: its other slots say NULL and are not looked at."""
    assert compiled({"A": "name"}).key_of(row(id=b"9")) == "9"


def test_text_that_is_not_utf8_rejects_its_row_and_still_has_a_key() -> None:
    """A SQL_ASCII database may hold anything: one bad row is parked, with the field named, and nothing stops."""
    mapper = compiled({"A": "name"})
    with pytest.raises(RowRejectedError) as caught:
        mapper.map(row(name=b"\xff"))
    assert (caught.value.code, caught.value.field) == ("not-utf8", "A")
    by_name = compile_mapper(mapping({}, key={"K": "name"}), relation(key=("name",)), TYPES)
    assert by_name.key_of(row(name=b"\xff")) == "\\xff"
    with pytest.raises(RowRejectedError, match="UTF-8"):
        by_name.map(row(name=b"\xff"))


def test_the_rejection_names_the_field() -> None:
    """Who looks at parked rows sees which field of which mapping it was."""
    mapper = compiled({"A": "name", "B": "amount", "C": {"column": "tier", "values": {"g": "Gold"}}})
    for values, field in (({"amount": b"NaN"}, "B"), ({"tier": b"z   "}, "C")):
        with pytest.raises(RowRejectedError) as caught:
            mapper.map(row(**values))
        assert caught.value.field == field


def test_a_value_without_a_form_follows_its_fields_policy() -> None:
    """``null`` is what a NULL would be there, ``clamp`` the nearest time; the row's other fields are as ever."""
    mapper = compiled(
        {
            "A": {"column": "amount", "on_invalid": "null"},
            "B": {"column": "amount", "on_invalid": "null", "default": 0},
            "C": {"column": "seen", "on_invalid": "clamp"},
            "D": {"column": "opens", "on_invalid": "clamp"},
            "E": {"column": "name", "on_invalid": "null"},
            "F": "mood",
        }
    )
    bad = mapper.map(row(amount=b"NaN", seen=b"infinity", opens=b"24:00:00", name=b"\xff", mood=b"ok"))
    last = dt.datetime.max.replace(tzinfo=dt.UTC)
    assert bad.fields == {"A": None, "B": 0, "C": last, "D": "23:59:59.999999", "E": None, "F": "ok"}
    good = mapper.map(row(amount=b"1.5", opens=b"09:00:00", name=b"x"))
    assert good.fields == {"A": Decimal("1.5"), "B": Decimal("1.5"), "C": None, "D": "09:00:00", "E": "x", "F": None}
    keep = compiled({"A": {"column": "amount", "on_invalid": "null"}}, nulls="keep")
    assert keep.map(row(amount=b"NaN")).fields == {}


@pytest.mark.parametrize(
    ("fields", "rest", "words"),
    [
        ({"A": "nmae"}, {}, "field A: table public.people has no column nmae (did you mean name?)"),
        ({"A": {"template": "{name} {x1}"}}, {}, "field A: table public.people has no column x1"),
        ({"A": "blob"}, {}, "field A: column blob is binary"),
        (
            {"A": {"column": "amount", "on_invalid": "clamp"}},
            {},
            'field A: on_invalid = "clamp" is for dates and times, and column amount is neither',
        ),
        ({}, {"key": {"K": "idd"}}, "key K: table public.people has no column idd (did you mean id?)"),
        ({}, {"key": {"K": "name"}}, "key K: column name is not part of the replica identity of public.people"),
        (
            {},
            {"associate": [{"to": "crm.x", "column": "compnay", "type": "t"}]},
            "association t: table public.people has no column compnay (did you mean company?)",
        ),
    ],
)
def test_what_does_not_fit_the_table_is_refused_with_its_place(
    fields: dict[str, Any], rest: dict[str, Any], words: str
) -> None:
    """The error names mapping, field and column, and guesses what was meant."""
    with pytest.raises(ConfigError) as caught:
        compiled(fields, name="people-map", **rest)
    assert caught.value.message.startswith(f"map people-map: {words}")


def test_all_misfits_are_named_at_once() -> None:
    """Not one per start of the daemon."""
    with pytest.raises(ConfigError) as caught:
        compiled({"A": "x1", "B": "x2"}, key={"K": "x3"})
    assert [line.split(": ")[1] for line in caught.value.message.splitlines()] == ["key K", "field A", "field B"]


@pytest.mark.parametrize(("identity", "fits"), [("f", True), ("n", False), ("i", False), ("d", False)])
def test_the_key_must_come_with_deletes(identity: str, *, fits: bool) -> None:
    """With FULL any column does; else it has to be in the identity."""
    shape = relation(identity, key=())
    if fits:
        compile_mapper(mapping({}), shape, TYPES)
    else:
        with pytest.raises(ConfigError, match="replica identity"):
            compile_mapper(mapping({}), shape, TYPES)


def test_names_of_tables_columns_and_fields_are_never_code() -> None:
    """Whatever a name holds, it is data."""
    evil = '"]; raise SystemExit #\n\'"""'
    shape = relation(key=(evil,), columns={evil: 25})
    config = mapping(
        {"F" + evil: {"column": evil, "default": evil}, "T": {"template": "{{" + "{" + evil + "}"}},
        key={"K" + evil: evil},
    )
    mapped = compile_mapper(config, shape, {}).map(join_tuple([b"x"]))
    assert mapped.fields["F" + evil] == "x"


def test_a_table_may_have_the_most_columns_that_postgres_allows() -> None:
    """1,600 columns compile, and the last one is found."""
    shape = relation(key=("c1599",), columns={f"c{number}": 25 for number in range(1600)})
    mapper = compile_mapper(mapping({"A": "c0"}, key={"K": "c1599"}), shape, {})
    mapped = mapper.map(join_tuple([b"%d" % number for number in range(1600)]))
    assert (mapped.key, mapped.fields) == ("1599", {"A": "0"})
