"""A mapping at work: its config, its rows, and the compiled mapper of each table shape that they have."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from cdcsync.backlog import Backlog
from cdcsync.config import MapConfig
from cdcsync.mappers.compile import RowMapper, compile_mapper
from cdcsync.model import Relation, Target


@dataclass(slots=True, eq=False)
class Route:
    """One mapping's way from a table to a CRM object. ``types`` is the source's table of user types, which grows."""

    config: MapConfig
    types: Mapping[int, int]
    backlog: Backlog = field(init=False)
    target: Target = field(init=False)
    fields: tuple[str, ...] = field(init=False)
    children: list[Route] = field(default_factory=list)
    """Mappings of the same CRM whose rows refer to records of this one."""
    whole: bool = False
    """Whether all rows of the table were copied once."""
    read: int = 0
    """Rows that the last finished copy read."""
    emitted: int = 0
    """Chunks of copies that were fed; those up to ``written`` are in the state file."""
    written: int = 0
    paused: str | None = None
    deferred: set[str] = field(default_factory=set)
    """Keys of deletes that wait for rows of the children."""
    reasons: Counter[tuple[str, str | None]] = field(default_factory=Counter)
    """Parked rows by code and field."""
    jobs: int = 0
    applied: int = 0
    _mappers: dict[Relation, RowMapper] = field(default_factory=dict)
    _recent: tuple[Relation, RowMapper] | None = None

    def __post_init__(self) -> None:
        self.backlog = Backlog(self.config.name)
        self.target = Target(self.config.object, self.config.key_field)
        self.fields = tuple(sorted(self.config.fields))

    @property
    def name(self) -> str:
        """The mapping's name."""
        return self.config.name

    @property
    def copied(self) -> bool:
        """Whether every row of the table was offered to the CRM once, so that an unknown parent is a missing one."""
        return not self.config.backfill or self.whole

    def mapper(self, relation: Relation) -> RowMapper:
        """Return the mapper for a table shape. Raises ConfigError where the mapping does not fit it."""
        recent = self._recent  # read once: a lane maps large batches in a thread of its own
        if recent is not None and recent[0] is relation:
            return recent[1]
        mapper = self._mappers.get(relation)
        if mapper is None:
            mapper = self._mappers[relation] = compile_mapper(self.config, relation, self.types)
        self._recent = (relation, mapper)
        return mapper
