"""Looking records up in HubSpot with ``batch/read``, which is consistent at once, unlike search.

100 records a request, by id or by a unique property. Sources: HubSpot's object guides and OpenAPI documents; recorded
answers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from cdcsync.apply.hubspot_rows import contents, found
from cdcsync.apply.hubspot_session import HubspotSession
from cdcsync.apply.hubspot_values import ADDRESS, comparable
from cdcsync.model import Target

BATCH: Final = 100
"""Inputs of an object batch call."""


class Lookup:
    """Looks records up."""

    def __init__(self, session: HubspotSession) -> None:
        self._session = session

    def by_key(self, target: Target, keys: Sequence[str]) -> dict[str, str]:
        """Find which keys exist: key → record id."""
        ids: dict[str, str] = {}
        distinct = list(dict.fromkeys(comparable(target.key_field, key) for key in keys if key))
        for start in range(0, len(distinct), BATCH):
            ids |= self._by_key(target, distinct[start : start + BATCH])
        return {key: ids[name] for key in keys if (name := comparable(target.key_field, key)) in ids}

    def values(self, target: Target, crm_ids: Sequence[str], fields: Sequence[str]) -> dict[str, dict[str, object]]:
        """Read fields of the records that exist: id → field → value, None where it is empty."""
        read: dict[str, dict[str, object]] = {}
        distinct = list(dict.fromkeys(crm_ids))
        for start in range(0, len(distinct), BATCH):
            read |= self._values(target, distinct[start : start + BATCH], fields)
        return read

    def exists(self, target: Target, crm_id: str) -> bool:
        """Tell whether there is a record of this id, or one that it was merged into."""
        return crm_id in self._values(target, [crm_id], [target.key_field])

    def _values(self, target: Target, crm_ids: Sequence[str], fields: Sequence[str]) -> dict[str, dict[str, object]]:
        """Read one request's records; those of which the answer says nothing once more, each alone."""
        body = {"inputs": [{"id": crm_id} for crm_id in crm_ids], "properties": list(fields)}
        read, unclear = contents(crm_ids, self._read(target, body), fields)
        if len(crm_ids) > 1:
            for crm_id in unclear:
                read |= self._values(target, [crm_id], fields)
        return read

    def _by_key(self, target: Target, keys: Sequence[str]) -> dict[str, str]:
        """Read by unique property; a contact found by another of its addresses answers with its first one."""
        body = {
            "idProperty": target.key_field,
            "inputs": [{"id": key} for key in keys],
            "properties": [target.key_field],
        }
        ids = found(self._read(target, body), target.key_field)
        known = {key: ids[key] for key in keys if key in ids}
        if target.key_field != ADDRESS or known.keys() == ids.keys():
            return known
        if len(keys) == 1:
            return {keys[0]: next(iter(ids.values()))}
        for key in keys:
            if key not in known:
                known |= self._by_key(target, [key])
        return known

    def _read(self, target: Target, body: dict[str, Any]) -> Any:
        return self._session.ask(self._session.objects.read, target.object, body)
