"""Looking records up: which keys exist, which ids exist, what fields hold. Strongly consistent, unlike search.

``IN`` of SOQL does not mind the case of a text (unless the field is case-sensitive) and pads nothing, so what comes
back is compared with what was asked for. Sources: SOQL guide, "WHERE", "Quoted String Escape Sequences"; REST guide,
"Get Records With a Request Body Using sObject Collections".
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from decimal import Decimal
from typing import Any, Final
from urllib.parse import quote

from simple_salesforce.format import quote_soql_value

from cdcsync.apply.salesforce_objects import Field, Objects
from cdcsync.apply.salesforce_session import SalesforceSession
from cdcsync.apply.salesforce_values import BLANKS, number
from cdcsync.errors import FatalError, TransientError
from cdcsync.model import Target

URI_LIMIT: Final = 12_000
"""Bytes of a query's address; 16,384 are allowed together with all headers, and a token can have 2,000."""
KEY_LIMIT: Final = 255
"""Characters that an external-id field holds at most: nothing has a longer key."""
SHORT_ID: Final = 15
READ: Final = 2_000
"""Records of one Collections request that reads."""


class Finder:
    """Looks records up."""

    def __init__(self, session: SalesforceSession, objects: Objects) -> None:
        self._session = session
        self._objects = objects

    def by_key(self, target: Target, keys: Iterable[str]) -> dict[str, str]:
        """Find which keys exist: key → id (the lowest, if a field that is not unique has several)."""
        field = self._objects.key_field(target.object, target.key_field)
        asked: dict[str, list[str]] = {}
        for key in dict.fromkeys(keys):
            comparable = _comparable(field, key)
            if comparable is not None:
                asked.setdefault(comparable, []).append(key)
        literal = {key: key if field.is_number else quote_soql_value(key) for key in asked}
        found: dict[str, str] = {}
        for row in self._rows(target.object, ("Id", field.name), field.name, literal.values()):
            stored, crm_id = row.get(field.name), str(row["Id"])
            comparable = None if stored is None else _comparable(field, str(stored))
            for key in asked.get(comparable, ()) if comparable is not None else ():
                found[key] = min(crm_id, found.get(key, crm_id))
        return found

    def existing(self, object_name: str, ids: Iterable[str]) -> set[str]:
        """Tell which of these ids exist; they may be of either length (15, or 18 with a checksum)."""
        asked = {one[:SHORT_ID]: one for one in ids}
        rows = self._rows(object_name, ("Id",), "Id", [quote_soql_value(one) for one in asked.values()])
        return {asked[short] for row in rows if (short := str(row["Id"])[:SHORT_ID]) in asked}

    def values(self, object_name: str, ids: Sequence[str], fields: Sequence[str]) -> dict[str, dict[str, object]]:
        """Read fields of the records that exist: id → field → value, None where it is empty."""
        shape = self._objects.shape(object_name)
        names = {name: known.name if (known := shape.field(name)) else name for name in fields}
        found: dict[str, dict[str, object]] = {}
        for start in range(0, len(ids), READ):
            part = ids[start : start + READ]
            for crm_id, record in zip(part, self._retrieved(object_name, part, list(names.values())), strict=True):
                if record is not None:
                    found[crm_id] = {name: _content(record.get(known)) for name, known in names.items()}
        return found

    def _retrieved(self, object_name: str, ids: Sequence[str], names: list[str]) -> list[Mapping[str, Any] | None]:
        body = json.dumps({"ids": list(ids), "fields": ["Id", *names]})
        try:
            entries = self._session.call("POST", f"composite/sobjects/{object_name}", body).json()
        except FatalError:
            self._objects.forget(object_name)  # a field may have gone
            raise
        whole = isinstance(entries, list) and len(entries) == len(ids)
        if not whole or not all(entry is None or isinstance(entry, dict) for entry in entries):
            raise TransientError("Salesforce did not answer with one record for each id")
        return list(entries)

    def _rows(
        self, object_name: str, columns: tuple[str, ...], key: str, literals: Iterable[str]
    ) -> Iterator[Mapping[str, Any]]:
        select = f"SELECT {','.join(columns)} FROM {object_name} WHERE {key} IN ("  # noqa: S608 - the config's names
        start = quote(select, safe="(),='")
        for values in _chunks(literals, URI_LIMIT - len(start)):
            path: str | None = f"query?q={start}{values})"
            while path is not None:
                answer = self._session.call("GET", path).object()
                records = answer.get("records")
                if not isinstance(records, list):
                    raise TransientError("Salesforce answered a query without records")
                yield from records
                path = None if answer.get("done", True) else str(answer["nextRecordsUrl"])


def _content(value: object) -> object:
    return None if value == "" else value


def _chunks(literals: Iterable[str], room: int) -> Iterator[str]:
    """Join literals, percent-encoded, with commas, into texts of at most ``room`` characters (or one literal)."""
    chunk: list[str] = []
    size = 0
    for literal in literals:
        encoded = quote(literal, safe="(),='")
        if chunk and size + len(encoded) + 1 > room:
            yield ",".join(chunk)
            chunk, size = [], 0
        chunk.append(encoded)
        size += len(encoded) + 1
    if chunk:
        yield ",".join(chunk)


def _comparable(field: Field, key: str) -> str | None:
    """Bring a key to the form in which equal ones are equal; None if no record can have it.

    Texts are exact: two rows may differ in case only, and a delete must not take the other one's record. Addresses are
    stored in lower case. A blank key would ask for every record without a key.
    """
    if field.is_number:
        plain = number(key)
        return None if plain is None else format(Decimal(plain).normalize(), "f")
    if not key.strip(BLANKS) or len(key) > KEY_LIMIT:
        return None
    return key.lower() if field.type == "email" else key
