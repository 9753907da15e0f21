"""The config file: found, read, checked; all mistakes at once, each with its line."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from cdcsync.config.alert import AlertConfig
from cdcsync.config.crm import CRM_KINDS, HubspotConfig, SalesforceConfig, crm_kind
from cdcsync.config.crosscheck import Mistake, crosscheck, did_you_mean, unknown_crm
from cdcsync.config.lines import line_of, locate
from cdcsync.config.mapping import AssociateConfig, FieldConfig, MapConfig, TombstoneConfig
from cdcsync.config.models import Config
from cdcsync.config.secret import Secret
from cdcsync.config.service import BatchConfig, LogConfig, PostgresConfig, StateConfig, StatusConfig
from cdcsync.errors import ConfigError

_SECTIONS: Mapping[str, type[BaseModel]] = {
    "postgres": PostgresConfig,
    "batch": BatchConfig,
    "state": StateConfig,
    "status": StatusConfig,
    "log": LogConfig,
    "alert": AlertConfig,
}
# Keys of later releases, so that a reader of the full documentation learns that the spelling is not the problem.
_NOT_YET: Mapping[type[BaseModel], frozenset[str]] = {
    MapConfig: frozenset({"write"}),
    FieldConfig: frozenset({"python"}),
}
_TYPE_WORDS = {
    "string_type": "expected text",
    "bool_type": "expected true or false",
    "int_type": "expected a whole number",
    "dict_type": "expected a table",
    "list_type": "expected a list",
    "model_type": "expected a table",
    "path_type": "expected a path",
}


def find_config(explicit: Path | None, environ: Mapping[str, str]) -> Path:
    """Say which file to load: the given one, ``CDCSYNC_CONFIG``, ``./cdcsync.toml``, ``/etc/cdcsync/cdcsync.toml``.

    The first two are taken as they are, whether they exist or not. Raises ConfigError if nothing is found.
    """
    if explicit is not None:
        return explicit
    if named := environ.get("CDCSYNC_CONFIG"):
        return Path(named)
    usual = (Path("cdcsync.toml"), Path("/etc/cdcsync/cdcsync.toml"))
    for path in usual:
        if path.is_file():
            return path
    raise ConfigError(
        f"no config file: looked for {' and '.join(map(str, usual))}",
        hint="give one with --config or CDCSYNC_CONFIG",
    )


def load(path: Path, environ: Mapping[str, str]) -> Config:
    """Read and check a config file; secrets will be looked up in ``environ`` when they are read.

    Raises ConfigError whose message has one line per mistake: ``file:line: key: message``.
    """
    text = _read(path)
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise _syntax_error(path, text, error) from error
    config, mistakes = _check(data, environ)
    if config is None or mistakes:
        lines = locate(text)
        placed = sorted(
            {(line_of(lines, mistake.path), _dotted(mistake.path), mistake.message) for mistake in mistakes}
        )
        raise ConfigError(
            "\n".join(f"{path}:{line}: {f'{key}: ' if key else ''}{message}" for line, key, message in placed)
        )
    return config


def json_schema() -> dict[str, Any]:
    """Build the JSON Schema of the config file, for editors."""
    schema = Config.model_json_schema(by_alias=True)
    kinds = [{"$ref": f"#/$defs/{model.__name__}"} for model in (SalesforceConfig, HubspotConfig)]
    schema["properties"]["crm"] |= {
        "properties": dict(zip(CRM_KINDS, kinds, strict=True)),
        "additionalProperties": {"anyOf": [{**kind, "required": ["kind"]} for kind in kinds]},
    }
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "cdcsync.toml", **schema}


def _read(path: Path) -> str:
    try:
        # newline="" keeps CRLF as it is: TOML takes it, and lines are counted by LF.
        with path.open(encoding="utf-8", newline="") as file:
            return file.read()
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 text", hint="save the file as UTF-8") from error
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror or error}", hint="give a readable file with --config") from error


def _syntax_error(path: Path, text: str, error: tomllib.TOMLDecodeError) -> ConfigError:
    message = str(error)
    place = re.search(r" \(at (?:line (\d+), column \d+|end of document)\)$", message)
    line = int(place[1]) if place and place[1] else text.count("\n") + 1
    return ConfigError(f"{path}:{line}: not valid TOML: {message[: place.start()] if place else message}")


def _check(data: dict[str, Any], environ: Mapping[str, str]) -> tuple[Config | None, list[Mistake]]:
    context = {"environ": environ}
    mistakes: list[Mistake] = []
    config = None
    try:
        config = Config.model_validate(data, context=context)
        maps = dict(enumerate(config.maps))
        complete = True
    except ValidationError as error:
        mistakes.extend(_mistake(detail, data) for detail in error.errors(include_url=False))
        maps = dict(_readable_maps(data, context))
        given = data.get("map")
        complete = isinstance(given, list) and len(maps) == len(given)
    crms = data.get("crm")
    if isinstance(crms, dict):
        kinds = {name: crm_kind(name, table) for name, table in crms.items()}
        mistakes.extend(crosscheck(maps, kinds, complete=complete))
        for place, crm in _named_crms(data):
            if place not in maps:
                mistakes.extend(unknown_crm(place, crm, kinds))
    return config, mistakes


def _readable_maps(data: dict[str, Any], context: dict[str, Any]) -> Iterator[tuple[int, MapConfig]]:
    given = data.get("map")
    adapter = TypeAdapter(MapConfig)
    for place, one in enumerate(given if isinstance(given, list) else ()):
        try:
            yield place, adapter.validate_python(one, context=context)
        except ValidationError:
            continue


def _named_crms(data: dict[str, Any]) -> Iterator[tuple[int, str]]:
    given = data.get("map")
    for place, one in enumerate(given if isinstance(given, list) else ()):
        if isinstance(one, dict) and isinstance(target := one.get("to"), str) and "." in target:
            yield place, target.partition(".")[0]


def _mistake(detail: ErrorDetails, data: dict[str, Any]) -> Mistake:
    """Turn one of pydantic's errors into ours. Its input is never shown: it may be a secret."""
    path = tuple(part for part in detail["loc"] if not str(part).startswith("<") and part != "[key]")
    context = detail.get("ctx", {})
    kind = detail["type"]
    if kind == "extra_forbidden":
        return Mistake(path, _unknown_key(path, data))
    if kind == "missing":
        return Mistake(path, "is missing")
    if kind == "union_tag_invalid":
        return Mistake((*path, "kind"), _unknown_kind(path, data))
    if kind == "literal_error":
        word = detail["input"]
        guess = did_you_mean(word, re.findall(r"'(\w+)'", context["expected"])) if isinstance(word, str) else ""
        return Mistake(path, f"expected {context['expected'].replace(chr(39), chr(34))}{guess}")
    if kind == "value_error":
        return Mistake(path, str(context["error"]))
    if kind == "too_long" and path[-1] == "key":
        return Mistake(path, "expected exactly one { CRM field = column }")
    return Mistake(path, _TYPE_WORDS.get(kind) or detail["msg"][:1].lower() + detail["msg"][1:])


def _unknown_key(path: tuple[str | int, ...], data: dict[str, Any]) -> str:
    model = _model_at(path[:-1], data)
    name = str(path[-1])
    if name in _NOT_YET.get(model, ()):
        return "not available in this version"
    known = [field.alias or key for key, field in model.model_fields.items()]
    return f"unknown key{did_you_mean(name, known)}"


def _model_at(path: tuple[str | int, ...], data: dict[str, Any]) -> type[BaseModel]:
    """Find the model of the table at ``path``."""
    match path:
        case ():
            return Config
        case ("crm", str(name)):
            return SalesforceConfig if crm_kind(name, data["crm"][name]) == "salesforce" else HubspotConfig
        case ("map", int()):
            return MapConfig
        case ("map", int(), "fields", str()):
            return FieldConfig
        case ("map", int(), "on_delete"):
            return TombstoneConfig
        case ("map", int(), "associate", int()):
            return AssociateConfig
        case (str(section),):
            return _SECTIONS[section]
        case _:
            return Secret


def _unknown_kind(path: tuple[str | int, ...], data: dict[str, Any]) -> str:
    name = str(path[-1])
    table = data["crm"][name]
    if not isinstance(table, dict):
        return "expected a table"
    kinds = " or ".join(f'"{kind}"' for kind in CRM_KINDS)
    return f"expected kind = {kinds}{did_you_mean(str(table.get('kind', name)), CRM_KINDS)}"


def _dotted(path: tuple[str | int, ...]) -> str:
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text
