"""Structured logs on stderr: for people on a terminal, with priorities for the journal, else JSON lines."""

from __future__ import annotations

import logging
import os
import sys
from typing import Literal

import structlog
from structlog.typing import EventDict, FilteringBoundLogger, WrappedLogger

_PRIORITIES = {"debug": 7, "info": 6, "warning": 4, "error": 3, "critical": 2}


def set_up(level: str, form: Literal["auto", "console", "journal", "json"]) -> FilteringBoundLogger:
    """Set the process's logging up, and return its logger."""
    if form == "auto":
        form = "journal" if "JOURNAL_STREAM" in os.environ else "console" if sys.stderr.isatty() else "json"
    structlog.configure(
        processors=[structlog.processors.add_log_level, *_rendering(form)],
        wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, level.upper())),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
    log: FilteringBoundLogger = structlog.get_logger()
    return log


def _rendering(form: str) -> list[structlog.typing.Processor]:
    if form == "console":
        colors = sys.stderr.isatty() and "NO_COLOR" not in os.environ
        return [structlog.processors.TimeStamper("%H:%M:%S", utc=False), structlog.dev.ConsoleRenderer(colors=colors)]
    if form == "journal":
        return [structlog.processors.KeyValueRenderer(key_order=["event"], drop_missing=True), _with_priority]
    return [structlog.processors.TimeStamper("iso", utc=True), structlog.processors.JSONRenderer()]


def _with_priority(_: WrappedLogger, method: str, text: str | EventDict) -> str:
    return f"<{_PRIORITIES.get(method, 6)}>{text}"
