"""Associations: what has to be archived and created after a batch of records was written, and how HubSpot takes it.

Both ends are named by record id. Archiving a pair removes all associations between its two records, whatever their
type, so all archiving comes before all creating. Every call is idempotent.
Source: HubSpot's associations v4 guide and OpenAPI document.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from hubspot.crm import AssociationType

from cdcsync.apply.hubspot_answers import rejection
from cdcsync.apply.hubspot_rows import failures
from cdcsync.apply.hubspot_session import HubspotSession
from cdcsync.errors import BatchRejectedError, FatalError
from cdcsync.model import Applied, Outcome, Record, Rejected

PAIRS_PER_CALL: Final = 2000


class Tie(NamedTuple):
    """One association: record number ``place`` of the batch, known as ``from_id``, to record ``to_id``."""

    place: int
    from_id: str
    to_id: str
    type: str


@dataclass(frozen=True, slots=True)
class Changes:
    """Associations from one object to one other."""

    to_object: str
    archive: Sequence[Tie]
    create: Sequence[Tie]


def changes(records: Sequence[Record], outcomes: Sequence[Outcome]) -> Iterator[Changes]:
    """List the association changes of the records that were applied, by the object at the other end."""
    for to_object in dict.fromkeys(link.to_object for record in records for link in record.links):
        archive: list[Tie] = []
        create: list[Tie] = []
        for place, (record, outcome) in enumerate(zip(records, outcomes, strict=True)):
            if not isinstance(outcome, Applied) or outcome.crm_id is None:
                continue
            for link in record.links:
                if link.to_object == to_object:
                    archive += [Tie(place, outcome.crm_id, was, link.type) for was in link.was_ids if was != link.to_id]
                    create += [Tie(place, outcome.crm_id, link.to_id, link.type)] if link.to_id is not None else []
        if archive or create:
            yield Changes(to_object, archive, create)


class LinkTypes:
    """Association types by name: HubSpot's own by the client's table, others by the account's labels (asked once)."""

    def __init__(self, session: HubspotSession) -> None:
        self._session = session
        self._lock = threading.Lock()
        self._labels: dict[tuple[str, str], list[Mapping[str, Any]]] = {}

    def resolve(self, from_object: str, to_object: str, name: str) -> Mapping[str, Any]:
        """Give the type as the API wants it. Raises FatalError if the account does not know it."""
        own = getattr(AssociationType, name.upper(), None) if name.replace("_", "").isalpha() else None
        if own is not None:
            return {"associationCategory": "HUBSPOT_DEFINED", "associationTypeId": own}
        for entry in self.labels(from_object, to_object):
            if name in {str(entry.get("typeId")), entry.get("label")}:
                return {"associationCategory": entry.get("category"), "associationTypeId": entry.get("typeId")}
        raise self._unknown(from_object, to_object, name)

    def confirm(self, from_object: str, to_object: str, name: str) -> None:
        """Ask the account whether a type goes from one object to the other. Raises FatalError if it does not."""
        number = self.resolve(from_object, to_object, name)["associationTypeId"]
        if number not in {entry.get("typeId") for entry in self.labels(from_object, to_object)}:
            raise self._unknown(from_object, to_object, name)

    def _unknown(self, from_object: str, to_object: str, name: str) -> FatalError:
        return FatalError(
            f"HubSpot has no association type {name!r} from {from_object} to {to_object}",
            hint=f"use one of: {', '.join(self.names(from_object, to_object)) or 'none exists'}",
        )

    def labels(self, from_object: str, to_object: str) -> list[Mapping[str, Any]]:
        """List the account's association types between two objects (``category``, ``typeId``, ``label``)."""
        with self._lock:
            known = self._labels.get((from_object, to_object))
            if known is None:
                answer = self._session.ask(self._session.labels.get_all, from_object, to_object)
                known = [entry for entry in answer.get("results", []) if isinstance(entry, dict)]
                self._labels[from_object, to_object] = known
            return known

    def names(self, from_object: str, to_object: str) -> list[str]:
        """List what may be written as ``type`` for two objects, as messages show it."""
        own = {number: name.lower() for name, number in vars(AssociationType).items() if isinstance(number, int)}
        entries = self.labels(from_object, to_object)
        return [own.get(entry.get("typeId", 0)) or str(entry.get("label") or entry.get("typeId")) for entry in entries]


class Linker:
    """Carries association changes out."""

    def __init__(self, session: HubspotSession) -> None:
        self._session = session
        self.types = LinkTypes(session)

    def carry_out(self, from_object: str, change: Changes) -> dict[int, Rejected]:
        """Archive, then create; answer the records whose new association HubSpot refuses, by their place.

        A former end that has vanished is no error. Raises what ``HubspotSession.call`` raises for whole requests.
        """
        for part in _parts(change.archive):
            self._archive(from_object, change.to_object, part)
        refused: dict[int, Rejected] = {}
        for part in _parts(change.create):
            refused |= self._create(from_object, change.to_object, part)
        return refused

    def _archive(self, from_object: str, to_object: str, ties: Sequence[Tie]) -> None:
        inputs = [{"from": {"id": tie.from_id}, "to": [{"id": tie.to_id}]} for tie in ties]
        api = self._session.associations
        try:
            self._session.call(api.archive, from_object, to_object, {"inputs": inputs})
        except BatchRejectedError:
            if len(ties) > 1:
                for half in _halves(ties):
                    self._archive(from_object, to_object, half)

    def _create(self, from_object: str, to_object: str, ties: Sequence[Tie]) -> dict[int, Rejected]:
        inputs = [
            {
                "from": {"id": tie.from_id},
                "to": {"id": tie.to_id},
                "types": [self.types.resolve(from_object, to_object, tie.type)],
            }
            for tie in ties
        ]
        try:
            answer = self._session.call(self._session.associations.create, from_object, to_object, {"inputs": inputs})
        except BatchRejectedError as refusal:
            for name in {tie.type for tie in ties}:
                self.types.confirm(from_object, to_object, name)
            if len(ties) == 1:
                return {ties[0].place: Rejected(refusal.reason, refusal.message, ties[0].type)}
            return self._create_halves(from_object, to_object, ties)
        refused: dict[int, Rejected] = {}
        for error in failures(answer):
            concerned = _concerned(error, ties)
            if not concerned:
                return self._create_halves(from_object, to_object, ties)
            outcome = rejection(error)
            refused |= {tie.place: Rejected(outcome.code, outcome.message, tie.type) for tie in concerned}
        return refused

    def _create_halves(self, from_object: str, to_object: str, ties: Sequence[Tie]) -> dict[int, Rejected]:
        first, second = _halves(ties)
        return self._create(from_object, to_object, first) | self._create(from_object, to_object, second)


def _concerned(error: Mapping[str, Any], ties: Sequence[Tie]) -> list[Tie]:
    """Find the ties of an error without index: by the ids that its context or its words name."""
    if len(ties) == 1:
        return list(ties)
    context = error.get("context")
    listed = [value for values in context.values() for value in values] if isinstance(context, dict) else []
    words = {str(value) for value in listed} | set(str(error.get("message", "")).replace("(", " ").split())
    return [tie for tie in ties if tie.to_id in words] or [tie for tie in ties if tie.from_id in words]


def _halves(ties: Sequence[Tie]) -> tuple[Sequence[Tie], Sequence[Tie]]:
    return ties[: len(ties) // 2], ties[len(ties) // 2 :]


def _parts(ties: Sequence[Tie]) -> list[Sequence[Tie]]:
    return [ties[start : start + PAIRS_PER_CALL] for start in range(0, len(ties), PAIRS_PER_CALL)]
