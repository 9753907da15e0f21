"""Which managed service a server belongs to, and what is done there in another way than by SQL."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from cdcsync.apply.base import Finding
from cdcsync.wal.catalog import rows
from cdcsync.wal.connect import Connection


@dataclass(frozen=True, slots=True)
class Provider:
    """A managed PostgreSQL: how logical decoding is switched on, the role made able to replicate, and what to know.

    ``replication`` is SQL with ``{role}`` in it. ``marker`` is a role that only this service's servers have.
    """

    name: str
    marker: str
    logical: str
    replication: str
    notes: tuple[str, ...]


PROVIDERS: Final = (
    Provider(
        "Amazon RDS or Aurora",
        "rds_superuser",
        "set rds.logical_replication = 1 in the parameter group (Aurora: the cluster's), and restart the instance",
        "GRANT rds_replication TO {role};",
        ("connect to the instance's (Aurora: the cluster's writer) endpoint, not to RDS Proxy",),
    ),
    Provider(
        "Google Cloud SQL",
        "cloudsqlsuperuser",
        "set the flag cloudsql.logical_decoding = on; the instance restarts",
        "ALTER ROLE {role} WITH REPLICATION;",
        (),
    ),
    Provider(
        "Azure Database for PostgreSQL",
        "azure_pg_admin",
        "set the server parameter wal_level = logical (single server: azure.replication_support), and restart",
        "ALTER ROLE {role} WITH REPLICATION;",
        ("connect to port 5432, not to the built-in PgBouncer on 6432",),
    ),
    Provider(
        "Supabase",
        "supabase_admin",
        "wal_level is logical in every project",
        "ALTER ROLE {role} WITH REPLICATION;",
        ("use the direct connection, not the pooler; it has IPv6 only, unless the project has the IPv4 add-on",),
    ),
    Provider(
        "Neon",
        "neon_superuser",
        "enable logical replication in the project's settings; it cannot be switched off again",
        "ALTER ROLE {role} WITH REPLICATION;",
        (
            "use the direct endpoint, without -pooler in its name",
            "the compute does not scale to zero while cdcsync is connected",
            "a slot unread for about 40 hours is removed while others are read; restoring a branch removes all",
        ),
    ),
)


async def find_provider(connection: Connection) -> Provider | None:
    """Tell by its roles which managed service the server belongs to; None for one of the user's own."""
    found = await rows(connection, "SELECT rolname FROM pg_roles WHERE rolname = ANY (%s)", [[*_MARKED]])
    return next((provider for provider in PROVIDERS if (provider.marker,) in found), None)


async def check_route(connection: Connection) -> Finding:
    """See whether the server itself is at the other end, or a pooler.

    A pooler answers with a process number of its own, since no server process is ours for good.
    """
    ((pid,),) = await rows(connection, "SELECT pg_backend_pid()")
    if pid == connection.info.backend_pid:
        return Finding("route", ok=True, message="the server itself answers, no pooler")
    return Finding(
        "route",
        ok=False,
        message="a connection pooler answers, which does not pass replication on",
        hint="give the server's own host and port in postgres.dsn",
    )


_MARKED: Final = [provider.marker for provider in PROVIDERS]
