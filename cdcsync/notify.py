"""Tell systemd how the service is (``sd_notify(3)``): READY, STATUS, STOPPING and the watchdog. Silent elsewhere."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket


class Notifier:
    """The socket in ``NOTIFY_SOCKET``, if there is one."""

    def __init__(self) -> None:
        address = os.environ.get("NOTIFY_SOCKET", "")
        self._address = "\0" + address[1:] if address.startswith("@") else address
        self._last = ""

    @property
    def watchdog_seconds(self) -> float | None:
        """How often the watchdog wants to hear from us, at half of its patience; None without a watchdog."""
        patience = os.environ.get("WATCHDOG_USEC")
        return int(patience) / 2_000_000 if patience and self._address else None

    def ready(self) -> None:
        """Say that the service has started."""
        self._send("READY=1")

    def stopping(self) -> None:
        """Say that the service is ending."""
        self._send("STOPPING=1")

    async def keep_alive(self) -> None:
        """Feed the watchdog for ever, as long as the event loop turns."""
        while True:
            self._send("WATCHDOG=1")
            await asyncio.sleep(min(1.0, self.watchdog_seconds or 1.0))

    def status(self, text: str) -> None:
        """Show one line in ``systemctl status``."""
        if text != self._last:
            self._last = text
            self._send(f"STATUS={text}")

    def _send(self, message: str) -> None:
        if not self._address:
            return
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
            channel.sendto(message.encode(), self._address)
