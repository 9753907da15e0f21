"""A mapping at work: its config, its rows, and the compiled mapper of each table shape that they have."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from cdcsync.backlog import Backlog
from cdcsync.backoff import Backoff
from cdcsync.config import MapConfig
from cdcsync.drift import Drift, mapped_types, shape_drift, table_drift, what_is_left
from cdcsync.entries import DriftMark, Seen
from cdcsync.errors import ConfigError
from cdcsync.mappers.compile import RowMapper, compile_mapper
from cdcsync.model import START, Position, Relation, Target
from cdcsync.plan import Shape
from cdcsync.tombstone import Tombstone
from cdcsync.wal.row_filter import RowFilter
from cdcsync.wal.sight import TableSight


class Follow(NamedTuple):
    """A column with the key of a row that goes first, though the record does not refer to it."""

    column: str
    parent: Route


@dataclass(slots=True, eq=False)
class Route:
    """One mapping's way from a table to a CRM object. ``types`` is the source's table of user types, which grows."""

    config: MapConfig
    types: Mapping[int, int]
    backlog: Backlog = field(init=False)
    target: Target = field(init=False)
    shape: Shape = field(init=False)
    children: list[Route] = field(default_factory=list)
    """Mappings of the same CRM whose rows refer to records of this one."""
    follows: list[Follow] = field(default_factory=list)
    """By foreign keys that the config does not speak of."""
    whole: bool = False
    """Whether all rows of the table were copied once."""
    copied_to: Position = START
    """Rows that wait, with positions up to here, may be of the last copy of all rows."""
    read: int = 0
    """Rows that the last finished copy read."""
    emitted: int = 0
    """Chunks of copies that were fed; those up to ``written`` are in the state file."""
    written: int = 0
    paused: str | None = None
    seen: Seen | None = None
    """The table as it was when the mapping fitted it last."""
    drift_mark: DriftMark | None = None
    """Set while the mapping is paused because its table changed: whether the table's rows are kept meanwhile."""
    backoff: Backoff = field(default_factory=Backoff)
    bulk_refused: bool = False
    """Whether the CRM refused an upload: until the next start, rows go by requests."""
    active: int = 0
    """Batches that are being planned or sent."""
    reasons: Counter[tuple[str, str | None]] = field(default_factory=Counter)
    """Parked rows by code and field."""
    row_filter: RowFilter | None = None
    """The mapping's ``where``, if it is not the publication's row filter."""
    jobs: int = 0
    applied: int = 0
    _mappers: dict[Relation, RowMapper] = field(default_factory=dict)
    _recent: tuple[Relation, RowMapper] | None = None
    _older: set[Relation] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.backlog = Backlog(self.config.name)
        self.target = Target(self.config.object, self.config.key_field)
        fields = tuple(sorted({*self.config.fields, *self.config.constants}))
        tombstone = Tombstone(self.config.tombstone.set) if self.config.tombstone is not None else None
        self.shape = Shape(fields, self.config.only_if_empty, tombstone)

    @property
    def name(self) -> str:
        """The mapping's name."""
        return self.config.name

    @property
    def copied(self) -> bool:
        """Whether every row of the table was offered to the CRM once, so that an unknown parent is a missing one."""
        return not self.config.backfill or self.whole

    @property
    def table(self) -> str:
        """``schema.name`` of the table as it was last seen: it may have been renamed."""
        return self.seen.table if self.seen is not None else self.config.table

    @property
    def passes_over(self) -> bool:
        """Whether the table's rows mean nothing to the mapping for now."""
        return self.drift_mark == "passed over"

    def is_of(self, oid: int, table: str) -> bool:
        """Whether this is the mapping's table: the same one under another name, and another one under the same."""
        return self.seen.oid == oid if self.seen is not None else self.config.table == table

    def mapper(self, relation: Relation) -> RowMapper:
        """Return the mapper for a table shape. Raises ConfigError where the mapping does not fit it."""
        recent = self._recent  # read once: a lane maps large batches in a thread of its own
        if recent is not None and recent[0] is relation:
            return recent[1]
        mapper = self._mappers.get(relation)
        if mapper is None:
            mapper = self._mappers[relation] = compile_mapper(self.applicable(relation), relation, self.types)
        self._recent = (relation, mapper)
        return mapper

    def check(self, relation: Relation) -> None:
        """See at the start, not at the first row, that the mapping fits. Raises ConfigError.

        A mapping that is new, or was changed, has to fit whole, whatever its ``on_drift`` says.
        """
        if self.seen is None or self.seen.meaning != self.config.meaning:
            compile_mapper(self.config, relation, self.types)
        self.mapper(relation)

    def drift(self, relation: Relation) -> Drift | None:
        """Judge a shape that rows of the table have, if it is a new one."""
        if self._recent is not None and self._recent[0] is relation:
            return None
        if relation in self._mappers or self.seen is None:
            return None
        return self._bearable(shape_drift(self.config, self.seen.types, relation, self.types), relation)

    def table_drift(self, sight: TableSight, *, anew: bool = False) -> Drift | None:
        """Judge what the catalogs show of the table; ``anew``: whatever it was before, it only has to fit."""
        seen = self.seen
        if seen is None:
            return None
        if anew and sight.relation is not None:
            seen = replace(seen, oid=sight.relation.oid, table=sight.relation.table, types={})
        drift = table_drift(self.config, seen, sight, self.types)
        fits = sight.relation is not None and sight.relation.oid == seen.oid and sight.unfit is None
        return self._bearable(drift, sight.relation) if fits else drift

    def _bearable(self, drift: Drift | None, relation: Relation | None) -> Drift | None:
        """Let a mapping that is to go on with what is left read the rows for which that is enough."""
        if drift is None or relation is None or drift.readable or self.config.on_drift != "warn":
            return drift
        try:
            self.mapper(relation)
        except ConfigError:
            return drift
        return replace(drift, readable=True)

    def reads_older(self, relation: Relation) -> bool:
        """Whether rows can be read that were written before the table was taken for what it is now.

        They may lack columns that came later; those are left alone, and sent when the table is compared.
        """
        self._older.add(relation)
        try:
            self.mapper(relation)
        except ConfigError:
            return False
        return True

    def fit(self, sight: TableSight) -> Seen:
        """Take a table as it is for the one that the mapping is meant for; returns what is to be remembered of it."""
        relation = sight.relation
        assert relation is not None  # noqa: S101 — for the type checker; who calls has seen it
        types = mapped_types(self.config, relation, self.types)
        # A look is not of one moment: a column that went away during it is missing here, and drift at the next one.
        columns = {name: sight.columns[name] for name in types if name in sight.columns}
        self.seen = Seen(
            self.config.meaning, relation.table, relation.oid, types, columns, sight.publication or "", sight.lsn
        )
        return self.seen

    def applicable(self, relation: Relation) -> MapConfig:
        """Return the mapping as far as the table has its columns, if it is to go on with what is left."""
        lenient = self.config.on_drift == "warn" or relation in self._older
        return what_is_left(self.config, relation) if lenient else self.config
