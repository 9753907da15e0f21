"""The config file as a pydantic model: every key of this release, its default and what it means.

A model's docstrings are the descriptions of the JSON Schema. Values are stored parsed (seconds, bytes, shares).
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from cdcsync.config.alert import AlertConfig
from cdcsync.config.crm import CRM_KINDS, CrmConfig
from cdcsync.config.mapping import MapConfig
from cdcsync.config.service import BatchConfig, LogConfig, PostgresConfig, StateConfig, StatusConfig
from cdcsync.config.table import Table


def _named_kinds(given: Any) -> Any:
    """Write the kind into each CRM table whose name says it."""
    if not isinstance(given, dict):
        return given
    return {
        name: {"kind": name, **table} if isinstance(table, dict) and name in CRM_KINDS else table
        for name, table in given.items()
    }


def _without_none(value: object) -> object:
    """Drop what TOML has no word for."""
    if isinstance(value, dict):
        return {key: _without_none(part) for key, part in value.items() if part is not None}
    if isinstance(value, list):
        return [_without_none(part) for part in value]
    return value


class Config(Table):
    """The whole file."""

    version: Literal[1] = 1
    """Version of the config's format."""
    postgres: PostgresConfig
    batch: BatchConfig = BatchConfig()
    state: StateConfig = StateConfig()
    status: StatusConfig = StatusConfig()
    log: LogConfig = LogConfig()
    alert: AlertConfig = AlertConfig()
    crm: Annotated[dict[str, CrmConfig], BeforeValidator(_named_kinds), Field(min_length=1)]
    """The CRMs, by a name that is yours."""
    maps: Annotated[list[MapConfig], Field(min_length=1)] = Field(alias="map")
    """The mappings."""

    def masked(self) -> dict[str, object]:
        """Give the effective config in the file's own form, defaults included; secrets stay references."""
        whole = self.model_dump(mode="json", by_alias=True)
        for one, given in zip(self.maps, whole["map"], strict=True):
            given["name"] = one.name
        pruned = _without_none(whole)
        return pruned if isinstance(pruned, dict) else {}
