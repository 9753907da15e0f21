"""The config file: TOML in, checked and typed settings out. Pydantic stands at this door only."""

from cdcsync.config.alert import AlertConfig
from cdcsync.config.crm import CrmConfig, HubspotConfig, SalesforceConfig
from cdcsync.config.load import find_config, json_schema, load
from cdcsync.config.mapping import AssociateConfig, FieldConfig, MapConfig, RefConfig, template_parts
from cdcsync.config.models import Config
from cdcsync.config.order import order
from cdcsync.config.secret import Secret
from cdcsync.config.service import BatchConfig, LogConfig, PostgresConfig, StateConfig, StatusConfig

__all__ = [
    "AlertConfig",
    "AssociateConfig",
    "BatchConfig",
    "Config",
    "CrmConfig",
    "FieldConfig",
    "HubspotConfig",
    "LogConfig",
    "MapConfig",
    "PostgresConfig",
    "RefConfig",
    "SalesforceConfig",
    "Secret",
    "StateConfig",
    "StatusConfig",
    "find_config",
    "json_schema",
    "load",
    "order",
    "template_parts",
]
