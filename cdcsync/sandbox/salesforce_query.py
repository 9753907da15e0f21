"""Running SOQL against the store, and the cursors of long results (2,000 rows a page)."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from decimal import Decimal
from typing import Any, Final

from cdcsync.sandbox.salesforce_errors import ApiError
from cdcsync.sandbox.salesforce_ids import canonical, new_id
from cdcsync.sandbox.salesforce_schema import NUMBER_TYPES, Entity, Field
from cdcsync.sandbox.salesforce_soql import Compare, Condition, Every, Literal, Not, Query, Some, malformed, parse
from cdcsync.sandbox.salesforce_store import Record, Store, index_key
from cdcsync.sandbox.salesforce_values import UnreadableError, format_time, read_moment

PAGE: Final = 2_000
CURSORS: Final = 10  # kept per org here; the real limit is by user

Test = Callable[[Record], bool]


class Queries:
    """Runs queries. A cursor keeps the rows that a query found."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._cursors: dict[str, list[dict[str, Any]]] = {}
        self._opened = 0

    def run(self, text: str, root: str, *, deleted: bool, page: int) -> dict[str, Any]:
        """Answer ``/query`` (or ``/queryAll`` with ``deleted``). Raises ApiError."""
        query = parse(text)
        entity = self._store.schema.entity(query.object)
        if entity is None:
            message = f"sObject type '{query.object}' is not supported. If you are attempting to use a custom object, "
            raise ApiError(400, "INVALID_TYPE", message + "be sure to append the '__c' after the entity name.")
        records = self._select(query, entity, deleted=deleted)
        if not query.fields:
            return {"totalSize": len(records), "done": True, "records": []}
        paths = [self._path(entity, name) for name in query.fields]
        rows = [self._row(record, paths, root) for record in records]
        return self._page(rows, root, page, None, 0)

    def more(self, locator: str, root: str, *, page: int) -> dict[str, Any]:
        """Answer ``/query/{cursor}-{offset}``. Raises ApiError for an unknown cursor."""
        cursor, _, offset = locator.partition("-")
        rows = self._cursors.get(cursor)
        if rows is None or not offset.isdigit():
            raise ApiError(400, "INVALID_QUERY_LOCATOR", "invalid query locator")
        return self._page(rows, root, page, cursor, int(offset))

    def _page(
        self, rows: list[dict[str, Any]], root: str, page: int, cursor: str | None, offset: int
    ) -> dict[str, Any]:
        answer: dict[str, Any] = {"totalSize": len(rows), "done": offset + page >= len(rows)}
        if not answer["done"]:
            cursor = cursor or self._open(rows)
            answer["nextRecordsUrl"] = f"{root}/query/{cursor}-{offset + page}"
        return {**answer, "records": rows[offset : offset + page]}

    def _open(self, rows: list[dict[str, Any]]) -> str:
        self._opened += 1
        cursor = new_id("01g", self._opened)
        self._cursors[cursor] = rows
        while len(self._cursors) > CURSORS:
            del self._cursors[next(iter(self._cursors))]
        return cursor

    def _select(self, query: Query, entity: Entity, *, deleted: bool) -> list[Record]:
        candidates = None if deleted else self._indexed(entity, query.where)
        records = self._store.each(entity) if candidates is None else candidates
        test = self._test(entity, query.where) if query.where else None
        found = [record for record in records if (deleted or not record.deleted) and (test is None or test(record))]
        for name, descending in reversed(query.order):
            member = self._member(entity, name)
            found.sort(key=lambda record: _sortable(record.present(member)), reverse=descending)
        end = None if query.limit is None else query.offset + query.limit
        return found[query.offset : end]

    def _indexed(self, entity: Entity, where: Condition | None) -> Iterable[Record] | None:
        """Find candidates by an index, if a condition that must hold names one."""
        for part in where.parts if isinstance(where, Every) else (where,):
            if not isinstance(part, Compare) or part.operator not in {"=", "in"}:
                continue
            member = entity.field(part.field)
            if member is None or not (member in entity.indexed or member.type == "id"):
                continue
            values = part.value if isinstance(part.value, tuple) else (part.value,)
            if all(isinstance(value, str) for value in values) and (member.case_sensitive or member.type == "id"):
                keys = [canonical(value) if member.type == "id" else _unwild(str(value)) for value in values]
                ids = {found for key in keys if key for found in self._store.find(entity, member, key)}
                return [self._store.records[found] for found in sorted(ids)]
        return None

    def _test(self, entity: Entity, where: Condition) -> Test:
        match where:
            case Every(parts):
                tests = [self._test(entity, part) for part in parts]
                return lambda record: all(test(record) for test in tests)
            case Some(parts):
                tests = [self._test(entity, part) for part in parts]
                return lambda record: any(test(record) for test in tests)
            case Not(part):
                inner = self._test(entity, part)
                return lambda record: not inner(record)
            case Compare(name, operator, value):
                return self._comparison(self._path(entity, name), operator, value)

    def _comparison(self, path: list[Field], operator: str, value: Literal | tuple[Literal, ...]) -> Test:
        member = path[-1]
        if operator == "like":
            if not isinstance(value, str):
                raise malformed("invalid operator")
            pattern = _like(value)
            return lambda record: pattern.fullmatch(str(self._value(record, path) or "")) is not None
        if operator == "in":
            wanted = {_comparable(member, one) for one in (value if isinstance(value, tuple) else (value,))}
            return lambda record: _stored(member, self._value(record, path)) in wanted
        right = _comparable(member, value if not isinstance(value, tuple) else None)
        if operator in {"=", "!="}:
            return lambda record: (_stored(member, self._value(record, path)) == right) == (operator == "=")
        compare = {"<": "__lt__", "<=": "__le__", ">": "__gt__", ">=": "__ge__"}[operator]
        return lambda record: _ordered(_stored(member, self._value(record, path)), compare, right)

    def _path(self, entity: Entity, name: str) -> list[Field]:
        """Find a field, or a parent's field through a relationship. Raises ApiError INVALID_FIELD."""
        *relations, last = name.split(".")
        path = []
        present: Entity | None = entity
        if (
            relations
            and relations[0].lower() == entity.name.lower()
            and relations[0].lower() not in entity.relationships
        ):
            relations = relations[1:]
        for relation in relations:
            member = present.relationships.get(relation.lower()) if present else None
            if member is None:
                message = f"Didn't understand relationship '{relation}' in field path."
                raise ApiError(400, "INVALID_FIELD", message)
            path.append(member)
            present = self._store.schema.entity(member.reference_to[0])
        return [*path, self._member(present or entity, last)]

    def _member(self, entity: Entity, name: str) -> Field:
        member = entity.field(name)
        if member is None:
            message = (
                f"No such column '{name}' on entity '{entity.name}'. If you are attempting to use a custom field, "
            )
            advice = "be sure to append the '__c' after the custom field name."
            raise ApiError(400, "INVALID_FIELD", message + advice)
        return member

    def _value(self, record: Record, path: list[Field]) -> Any:
        present: Record | None = record
        for member in path[:-1]:
            present = self._store.records.get(str(present.values.get(member.name))) if present else None
        return present.present(path[-1]) if present else None

    def _row(self, record: Record, paths: list[list[Field]], root: str) -> dict[str, Any]:
        row = _attributes(record, root)
        for path in paths:
            inner, present = row, record
            for member in path[:-1]:
                parent = self._store.records.get(str(present.values.get(member.name)))
                if parent is None:
                    inner[str(member.relationship)] = None
                    break
                inner = inner.setdefault(str(member.relationship), _attributes(parent, root))
                present = parent
            else:
                inner[path[-1].name] = present.present(path[-1])
        return row


def _attributes(record: Record, root: str) -> dict[str, Any]:
    return {"attributes": {"type": record.entity.name, "url": f"{root}/sobjects/{record.entity.name}/{record.id}"}}


def _sortable(value: Any) -> tuple[bool, Any]:
    """Order nulls first, and texts without case."""
    if value is None:
        return (False, 0)
    return (True, value.casefold() if isinstance(value, str) else value)


def _ordered(left: Any, compare: str, right: Any) -> bool:
    if left is None or right is None or isinstance(left, str) != isinstance(right, str):
        return False
    return bool(getattr(left, compare)(right))


def _like(text: str) -> re.Pattern[str]:
    """Turn a LIKE pattern, in which a backslash still stands before escaped wildcards, into a regular expression."""
    wild = {"%": ".*", "_": "."}
    parts = re.findall(r"\\[%_]|.", text, re.DOTALL)
    return re.compile("".join(wild.get(part) or re.escape(part[-1]) for part in parts), re.IGNORECASE | re.DOTALL)


def _stored(member: Field, value: Any) -> Any:
    """Bring a presented value to comparable form."""
    if isinstance(value, float | int) and not isinstance(value, bool):
        return Decimal(str(value))
    if isinstance(value, str) and member.type not in {"id", "reference", "date", "datetime"}:
        return index_key(member, value) if member.case_sensitive else value.casefold()
    return value


def _comparable(member: Field, value: Literal) -> Any:
    """Bring a literal to the form of the field's stored values. Raises ApiError INVALID_FIELD for a wrong type."""
    if value is None:
        return None
    if member.type in NUMBER_TYPES:
        if not isinstance(value, Decimal):
            raise _wrong(member)
        return value
    if isinstance(value, Decimal) or isinstance(value, bool) != (member.type == "boolean"):
        raise _wrong(member)
    if isinstance(value, bool):
        return value
    if member.type in {"id", "reference"}:
        found = canonical(value)
        if found is None:
            raise ApiError(400, "INVALID_QUERY_FILTER_OPERATOR", f"invalid ID field: {value}")
        return found
    if member.type == "datetime":
        try:
            return format_time(read_moment(value))
        except UnreadableError:
            raise _wrong(member) from None
    return _stored(member, _unwild(value))


def _unwild(text: str) -> str:
    """Take away the backslashes that only LIKE needs."""
    return text.replace("\\_", "_").replace("\\%", "%")


def _wrong(member: Field) -> ApiError:
    message = (
        f"filter criteria could not be parsed for field '{member.name}': value of filter criterion has a wrong type"
    )
    return ApiError(400, "INVALID_FIELD", message)
