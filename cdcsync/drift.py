"""What a table's change of shape means for a mapping. Pure.

The stream describes a table before the first row of each shape, and says nothing of a table that is gone, renamed or
taken out of the publication; the catalogs say that (``wal.sight``). Columns that are not mapped are nothing to talk
about, whatever happens to them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from cdcsync.config import MapConfig
from cdcsync.entries import Seen
from cdcsync.errors import ConfigError, SourceError
from cdcsync.mappers.compile import columns_of, columns_used, compile_mapper
from cdcsync.mappers.values import converter
from cdcsync.model import Relation
from cdcsync.wal.sight import TableSight


@dataclass(frozen=True, slots=True)
class Drift:
    """A change of the table that its mapping does not fit any more, or not as it was meant.

    ``readable``: its rows still mean something to the mapping, so a paused mapping keeps them. Where they do not, its
    rows are passed over from here on, and the table is read again once it fits.
    """

    reason: str
    hint: str
    readable: bool

    def error(self, mapping: str) -> SourceError:
        """Return what ends the daemon where the mapping is to fail."""
        return SourceError(f"map {mapping}: {self.reason}", hint=self.hint)


def mapped_types(config: MapConfig, relation: Relation, types: Mapping[int, int]) -> dict[str, int]:
    """Return the builtin type oid of each mapped column that the table has; ``types`` is for those of users."""
    mapped = columns_used(config)
    return {c.name: types.get(c.type_oid, c.type_oid) for c in relation.columns if c.name in mapped}


def shape_drift(
    config: MapConfig, before: Mapping[str, int], relation: Relation, types: Mapping[int, int]
) -> Drift | None:
    """Judge a table's shape; ``before`` are the mapped columns' types of the last shape that fitted."""
    try:
        compile_mapper(config, relation, types)
    except ConfigError as error:
        reason = error.message.replace(f"map {config.name}: ", "").replace("\n", "; ")
        return Drift(reason, _CORRECT.format(config.name), readable=False)
    now = mapped_types(config, relation, types)
    changed = [name for name, oid in before.items() if name in now and converter(now[name]) is not converter(oid)]
    if changed:
        columns = "columns" if len(changed) > 1 else "column"
        reason = f"{columns} {', '.join(changed)} of {relation.table} became of another type"
        return Drift(reason, f"see that the CRM's fields take it, then cdcsync resume {config.name}", readable=True)
    return None


def what_is_left(config: MapConfig, relation: Relation) -> MapConfig:
    """Return the mapping without the fields and associations whose columns the table does not have."""
    names = {column.name for column in relation.columns}
    fields = {name: field for name, field in config.fields.items() if names.issuperset(columns_of(field))}
    links = [link for link in config.associate if link.column in names]
    if len(fields) == len(config.fields) and len(links) == len(config.associate):
        return config
    return config.model_copy(update={"fields": fields, "associate": links})


def table_drift(config: MapConfig, seen: Seen, sight: TableSight, types: Mapping[int, int]) -> Drift | None:
    """Judge what the catalogs show of a mapping's table, against how it was when it fitted last."""
    if sight.relation is None:
        return Drift(
            f"table {seen.table} was dropped; its records stay in the CRM", _GONE.format(config.name), readable=False
        )
    if sight.relation.oid != seen.oid:
        reason = f"{seen.table} is another table now: it was dropped and made anew, or took that one's name"
        hint = f"cdcsync resume {config.name} compares the CRM with it, and deletes what it does not have"
        return Drift(reason, hint, readable=False)
    if sight.unfit is not None:
        return Drift(sight.unfit, f"then cdcsync resume {config.name}; the table is compared again", readable=False)
    if drift := shape_drift(config, seen.types, sight.relation, types):
        return drift
    if sight.relation.table != seen.table:
        reason = f"table {seen.table} was renamed to {sight.relation.table}"
        return Drift(reason, f"correct table in the config; then cdcsync resume {config.name}", readable=True)
    return None


_CORRECT = "correct the mapping or the table, start again, then cdcsync resume {}; the table is compared again"
_GONE = "make the table again or take the mapping out of the config; cdcsync resume {} compares a new one"
