"""``python -m cdcsync.sandbox salesforce|hubspot``: serve one CRM in the foreground.

Prints one JSON line ``{"crm": …, "url": …, "admin_url": …}`` when ready; ends on SIGTERM or SIGINT.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from pathlib import Path

from cdcsync.sandbox.crm import SettingsError
from cdcsync.sandbox.server import Sandbox, build, serve


def _announce(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m cdcsync.sandbox", description="Serve a stand-in CRM over HTTP.")
    parser.add_argument("crm", choices=["salesforce", "hubspot"])
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0, help="of the CRM's API; 0 takes a free one")
    parser.add_argument("--admin-port", type=int, default=0, help="of the admin API; 0 takes a free one")
    parser.add_argument("--settings", type=Path, help="a JSON file of settings")
    options = parser.parse_args(arguments)
    crm = build(options.crm)
    try:
        if options.settings:
            crm.configure(json.loads(options.settings.read_text(encoding="utf-8")))
    except (OSError, ValueError, SettingsError) as error:
        parser.error(f"--settings: {error}")
    sandbox = Sandbox(crm, options.host, options.port, options.admin_port)
    try:
        asyncio.run(serve(sandbox, _announce))
    except OSError as error:
        parser.exit(69, f"cannot serve: {error}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
