"""What all tables of the config have in common, and the types of their values."""

from __future__ import annotations

from typing import Annotated, TypeAlias

from pydantic import BaseModel, ConfigDict, PlainSerializer, PlainValidator

from cdcsync.config.units import (
    Allowance,
    format_allowance,
    format_budget,
    format_duration,
    format_size,
    parse_allowance,
    parse_budget,
    parse_duration,
    parse_size,
)

Duration: TypeAlias = Annotated[
    float, PlainValidator(parse_duration, json_schema_input_type=str), PlainSerializer(format_duration)
]
Size: TypeAlias = Annotated[int, PlainValidator(parse_size, json_schema_input_type=str), PlainSerializer(format_size)]
Budget: TypeAlias = Annotated[
    float | int, PlainValidator(parse_budget, json_schema_input_type=str | int), PlainSerializer(format_budget)
]
MaxDeletes: TypeAlias = Annotated[
    Allowance | None,
    PlainValidator(parse_allowance, json_schema_input_type=str),
    PlainSerializer(format_allowance, return_type=str),
]


class Table(BaseModel):
    """A TOML table: unknown keys are errors, types are taken as TOML has them."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, use_attribute_docstrings=True)
