"""A resync on demand: what it would read, send and cost, in numbers known beforehand, and the request for it.

The figures are bounds. What the CRM is known to hold already costs nothing, so a resync that finds little costs little;
``calls`` is what it takes if every record differs.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

import psycopg
from psycopg import sql

from cdcsync.apply.base import Limits, OpenGate
from cdcsync.apply.dryrun import CALLS_A_JOB
from cdcsync.apply.registry import create
from cdcsync.config import Config, MapConfig
from cdcsync.copies import COPY_ROOM, copy_condition
from cdcsync.entries import CopyState
from cdcsync.errors import ConfigError, SourceError
from cdcsync.mappers.values import BPCHAR
from cdcsync.model import Op, Relation
from cdcsync.state import State
from cdcsync.status import Snapshot, count, duration
from cdcsync.status_json import fields_json
from cdcsync.wal import catalog
from cdcsync.wal.connect import Connection, connect

COUNT_TIMEOUT: Final = "3s"
"""How long counting rows may take until the planner's estimate has to do."""
READS_A_SECOND: Final = 10_000
WRITES_A_SECOND: Final = {"batch": 1_500, "bulk": 1_500}
"""Rows, roughly, as measured; a CRM that is slow, or limits us, takes longer."""
DAY: Final = 86_400


@dataclass(frozen=True, slots=True)
class Request:
    """What is to be read again: all rows of a mapping, those that meet ``condition`` (SQL), or those with ``keys``."""

    mapping: str
    condition: str | None = None
    keys: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Prediction:
    """What a resync would take.

    ``rows`` are to be read, counted if ``exact``, else estimated. ``known``: records that the CRM is known to hold, of
    the whole mapping. ``deletes``: records to be deleted at least, because their rows are gone; None if nothing can be.
    ``path`` is ``batch`` or ``bulk``; ``calls`` at most; ``daily_share`` of the CRM's daily quota (None: not known).
    ``seconds`` roughly, at most.
    """

    mapping: str
    table: str
    target: str
    rows: int
    exact: bool
    known: int
    deletes: int | None
    path: str
    calls: int
    daily_share: float | None
    seconds: float
    paused: str | None


async def predict(config: Config, request: Request, snapshot: Snapshot | None) -> tuple[Request, Prediction]:
    """Ask database and state file; returns the request, its keys as PostgreSQL prints them, and what it would take.

    ``snapshot`` is the running daemon's, where one answers. Raises SourceError for a condition or key that PostgreSQL
    refuses, StateError without a state file.
    """
    mapping = next(entry for entry in config.maps if entry.name == request.mapping)
    state = State.read(config.state.path)
    known, paused = state.records(mapping.name), state.pauses.standing().of(mapping.name, mapping.crm)
    state.close()
    async with await connect(config.postgres.dsn) as connection:
        await connection.execute(
            "SET default_transaction_read_only = on; SET row_security = off; SET statement_timeout = 0"
        )
        relation = await _relation(connection, mapping, config.postgres.publication)
        request = Request(mapping.name, request.condition, await _printed(connection, relation, mapping, request.keys))
        entry = CopyState(
            id=0, mapping=mapping.name, reason="", requested=0, condition=request.condition, keys=request.keys
        )
        where = await copy_condition(connection, config.postgres.publication, mapping, entry)
        rows, exact = await _count(connection, relation, where)
    limits = create(mapping.crm, config.crm[mapping.crm], OpenGate()).limits
    path, calls = _calls(limits, rows)
    deletes = len(request.keys) - rows if request.keys else max(0, known - rows) if entry.whole else None
    return request, Prediction(
        mapping=mapping.name,
        table=mapping.table,
        target=f"{mapping.crm}.{mapping.object}",
        rows=rows,
        exact=exact,
        known=known,
        deletes=deletes,
        path=path,
        calls=calls,
        daily_share=_daily_share(snapshot, mapping.crm, calls),
        seconds=max(rows / READS_A_SECOND, rows / WRITES_A_SECOND[path]),
        paused=paused,
    )


def ask(config: Config, request: Request, prediction: Prediction) -> None:
    """Write the request down for the daemon, running or not."""
    state = State.beside(config.state.path, config.state.mirror)
    state.request_resync(
        request.mapping,
        "asked for by hand",
        time.time(),
        condition=request.condition,
        keys=request.keys,
        asker="person",
        estimate=prediction.rows,
    )
    state.close()


def to_text(prediction: Prediction, *, requested: bool) -> str:
    """Say what a resync takes, and what comes next."""
    one = prediction
    about = "" if one.exact else "about "
    lines = [f"{one.mapping}: {about}{count(one.rows, 'row')} of {one.table} to compare with {one.target}"]
    if one.deletes is None:
        lines.append("Nothing is deleted: rows that do not meet the condition were not looked for.")
    elif one.deletes:
        lines.append(
            f"At least {about}{count(one.deletes, 'record')} will be deleted: no such rows are there any more."
        )
    share = "" if one.daily_share is None else f", {one.daily_share:.1%} of the CRM's daily quota"
    lines.append(
        f"If every record differs: {count(one.calls, 'API call')} ({one.path}){share}, about {duration(one.seconds)}. "
        "What the CRM holds already costs nothing."
    )
    if not requested:
        lines.append("Nothing was asked for (--dry-run).")
    elif one.paused is not None:
        lines.append(f"Asked for; it waits because {one.mapping} is paused ({one.paused}).")
    else:
        lines.append(
            "Asked for: the daemon begins within some seconds, or at its next start; follow it with `cdcsync status`."
        )
    return "\n".join(lines)


def to_json(request: Request, prediction: Prediction, *, requested: bool) -> str:
    """Print the same as a line of JSON (docs/json.md)."""
    fields: dict[str, Any] = asdict(prediction) | {"where": request.condition, "requested": requested}
    return fields_json(fields | {"keys": len(request.keys) or None, "seconds": round(prediction.seconds, 1)})


async def _relation(connection: Connection, mapping: MapConfig, publication: str) -> Relation:
    schema, _, name = mapping.table.partition(".")
    relation = await catalog.load_relation(connection, schema, name, publication)
    await catalog.copy_key(connection, relation)
    return relation


async def _printed(
    connection: Connection, relation: Relation, mapping: MapConfig, keys: Sequence[str]
) -> tuple[str, ...]:
    """Return keys as the stream prints them: the record of key 5 is not asked for as 05."""
    column = next((column for column in relation.columns if column.name == mapping.key_column), None)
    if column is None:
        raise ConfigError(f"map {mapping.name}: {mapping.table} has no column {mapping.key_column}")
    printed = sql.SQL("SELECT format_type({}, {})").format(column.type_oid, column.typmod)
    ((kind,),) = await (await connection.execute(printed)).fetchall()
    cast = sql.SQL("SELECT DISTINCT format('%s', CAST(k AS {})) FROM unnest({}::text[]) AS k").format(
        sql.SQL(kind), sql.Literal(list(keys))
    )
    try:
        found = [text for (text,) in await (await connection.execute(cast)).fetchall()]
    except psycopg.Error as error:
        raise _refused(error, "key") from error
    return tuple(sorted(text.rstrip(" ") if column.type_oid == BPCHAR else text for text in found))


async def _count(connection: Connection, relation: Relation, where: str | None) -> tuple[int, bool]:
    """Count rows, or estimate them where counting takes long."""
    only = "" if await _partitioned(connection, relation) else "ONLY "
    rows = sql.SQL("FROM {}{}").format(sql.SQL(only), sql.Identifier(relation.namespace, relation.name))
    if where is not None:
        rows += sql.SQL(" WHERE ") + sql.SQL(where)
    try:
        explained = await connection.execute(sql.SQL("EXPLAIN (FORMAT JSON) SELECT 1 ") + rows)
        ((plan,),) = await explained.fetchall()
        estimate = int(plan[0]["Plan"]["Plan Rows"])
        await connection.execute(f"SET statement_timeout = '{COUNT_TIMEOUT}'")
        ((exact,),) = await (await connection.execute(sql.SQL("SELECT count(*) ") + rows)).fetchall()
    except psycopg.errors.QueryCanceled:
        return estimate, False
    except (psycopg.ProgrammingError, psycopg.DataError, psycopg.NotSupportedError) as error:
        raise _refused(error, "condition") from error
    return int(exact), True


async def _partitioned(connection: Connection, relation: Relation) -> bool:
    found = await catalog.rows(connection, "SELECT relkind = 'p' FROM pg_class WHERE oid = %s", [relation.oid])
    return bool(found and found[0][0])


def _refused(error: psycopg.Error, what: str) -> SourceError:
    words = error.diag.message_primary or str(error).strip()
    return SourceError(
        f"PostgreSQL refuses the {what}: {words}", hint="Nothing was asked for; correct it and try again."
    )


def _calls(limits: Limits, rows: int) -> tuple[str, int]:
    """Return the path that so many rows take, and the requests at most."""
    if limits.bulk_from is not None and rows >= limits.bulk_from:
        return "bulk", -(-rows // min(limits.bulk_records, COPY_ROOM)) * CALLS_A_JOB
    return "batch", -(-rows // limits.batch[Op.UPSERT])


def _daily_share(snapshot: Snapshot | None, crm: str, calls: int) -> float | None:
    for lane in snapshot.lanes if snapshot is not None else ():
        for quota in lane.quotas if lane.name == crm else ():
            if quota.seconds == DAY and quota.limit:
                return calls / quota.limit
    return None
