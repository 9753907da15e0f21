"""What mapping a row costs: the generated function against a dict of columns and a loop over the fields.

    python bench/map_rows.py [ROWS]

Prints CPU µs per row (user + system of this process, best of five runs). The row has 12 columns of about 250 bytes,
10 fields are made of it. "with hashes" adds the 8 bytes per field by which the ledger tells what has changed.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence

from cdcsync.config import MapConfig
from cdcsync.mappers.compile import compile_mapper
from cdcsync.mappers.values import Converter, converter, field_hash
from cdcsync.model import ABSENT, Column, Relation, Text, Value
from cdcsync.wal.tuples import join_tuple, split_tuple

COLUMNS: dict[str, int] = {
    "id": 20,
    "email": 25,
    "first_name": 25,
    "last_name": 25,
    "phone": 25,
    "company_id": 20,
    "city": 25,
    "active": 16,
    "score": 1700,
    "notes": 25,
    "created_at": 1184,
    "updated_at": 1184,
}
FIELDS = {
    "Email": "email",
    "FirstName": "first_name",
    "LastName": "last_name",
    "Phone": "phone",
    "Company__c": "company_id",
    "City": "city",
    "Active__c": "active",
    "Score__c": "score",
    "Notes__c": "notes",
    "Created__c": "created_at",
}
RELATION = Relation(
    1, "public", "contacts", "d", tuple(Column(name, oid, -1, name == "id") for name, oid in COLUMNS.items())
)
Run = Callable[[bytes], object]


def row(number: int, *, nulls: bool) -> bytes:
    """Make one row; with ``nulls`` a third of its columns are NULL."""
    values: list[Text] = [
        b"%d" % number,
        b"person%d@example.com" % number,
        b"Maria",
        b"Lindqvist-Andersson",
        b"+46 8 123 45 67",
        b"%d" % (number % 1000),
        "Göteborg".encode(),
        b"t",
        b"%d.50" % (number % 100),
        b"A note of some length about this customer, so that the row is of a usual size. " * 2,
        b"2026-03-01 10:25:00.123456+00",
        b"2026-03-02 11:00:00+00",
    ]
    return join_tuple([None if nulls and place % 3 == 1 else value for place, value in enumerate(values)])


def naive() -> Run:
    """Map as one writes it first."""
    names = list(COLUMNS)
    converters: dict[str, Converter] = {name: converter(oid) for name, oid in COLUMNS.items()}

    def run(raw: bytes) -> object:
        columns = dict(zip(names, split_tuple(raw), strict=True))
        fields: dict[str, Value] = {}
        for field, column in FIELDS.items():
            given = columns[column]
            if given is None:
                fields[field] = None
            elif given is not ABSENT:
                fields[field] = converters[column](given)
        key = columns["id"]
        return {"key": key.decode() if isinstance(key, bytes) else None, "fields": fields}

    return run


def measure(run: Run, rows: Sequence[bytes]) -> float:
    """Return CPU µs per row."""
    best = float("inf")
    for _ in range(5):
        begin = time.process_time()
        for raw in rows:
            run(raw)
        best = min(best, time.process_time() - begin)
    return best / len(rows) * 1e6


def main() -> None:
    """Print the table."""
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 50_000
    config = MapConfig.model_validate(
        {"table": "contacts", "to": "salesforce.Contact", "key": {"External_Id__c": "id"}, "fields": FIELDS}
    )
    mapper = compile_mapper(config, RELATION, {})

    def with_hashes(raw: bytes) -> object:
        fields = mapper.map(raw).fields
        return b"".join([field_hash(fields[name]) for name in FIELDS])

    ways = {"dict and loop": naive(), "generated": mapper.map, "generated, with hashes": with_hashes}
    ways["key only"] = mapper.key_of
    full, sparse = ([row(number, nulls=nulls) for number in range(count)] for nulls in (False, True))
    print(f"{'CPU µs per row':<24}{'full rows':>12}{'with NULLs':>12}")
    for name, run in ways.items():
        print(f"{name:<24}{measure(run, full):>12.2f}{measure(run, sparse):>12.2f}")


if __name__ == "__main__":
    main()
