"""Fixtures of the tests that need a PostgreSQL server."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from cdcsync.wal.connect import connect
from tests.pg.reading import Setup, set_up


@pytest.fixture
async def db(pg: str) -> AsyncIterator[Setup]:
    """Give a database, published, with a slot."""
    async with await connect(pg) as connection:
        yield await set_up(pg, connection)
