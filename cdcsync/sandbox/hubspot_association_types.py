"""The kinds of associations between object types. A type id has a direction; its inverse has an id of its own. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

HUBSPOT: Final = "HUBSPOT_DEFINED"
USER: Final = "USER_DEFINED"

_ENGAGEMENTS: Final = {
    "calls": (194, 182, 206, 220),
    "meetings": (200, 188, 212, 226),
    "notes": (202, 190, 214, 228),
    "tasks": (204, 192, 216, 230),
    "emails": (198, 186, 210, 224),
}
_PLAIN: Final = (
    ("contacts", "companies", 279, 280),
    ("deals", "contacts", 3, 4),
    ("deals", "companies", 341, 342),
    ("contacts", "tickets", 15, 16),
    ("tickets", "companies", 339, 340),
    ("deals", "tickets", 27, 28),
    *(
        (name, to, type_id, type_id - 1)
        for name, ids in _ENGAGEMENTS.items()
        for to, type_id in zip(("contacts", "companies", "deals", "tickets"), ids, strict=True)
    ),
)
_PRIMARY: Final = (("contacts", "companies", 1, 2), ("deals", "companies", 5, 6), ("tickets", "companies", 26, 25))
_FIRST_USER_TYPE: Final = 1


@dataclass(frozen=True, slots=True)
class AssociationType:
    """One direction of an association. ``only``: a record has at most one of them (its primary company)."""

    source: str
    target: str
    category: str
    id: int
    inverse_id: int
    label: str | None = None
    only: bool = False

    @property
    def spec(self) -> tuple[str, int]:
        """What names the type in requests: category and id."""
        return self.category, self.id

    @property
    def inverse_spec(self) -> tuple[str, int]:
        """What names the other direction."""
        return self.category, self.inverse_id

    def as_label(self) -> dict[str, Any]:
        """Return the form in ``labels`` and in read associations."""
        return {"category": self.category, "typeId": self.id, "label": self.label}


class AssociationTypes:
    """All types of a portal. Pairs with a custom object are made when first asked for."""

    def __init__(self) -> None:
        self._pairs: dict[tuple[str, str], list[AssociationType]] = {}
        self._next = _FIRST_USER_TYPE
        for source, target, type_id, inverse in _PLAIN:
            self._enter(AssociationType(source, target, HUBSPOT, type_id, inverse))
            self._enter(AssociationType(target, source, HUBSPOT, inverse, type_id))
        for source, target, type_id, inverse in _PRIMARY:
            self._enter(AssociationType(source, target, HUBSPOT, type_id, inverse, "Primary", only=True))
            self._enter(AssociationType(target, source, HUBSPOT, inverse, type_id, "Primary"))

    def _enter(self, one: AssociationType) -> None:
        self._pairs.setdefault((one.source, one.target), []).append(one)

    def between(self, source: str, target: str, *, custom: bool) -> list[AssociationType]:
        """All types of one direction, the unlabelled one first; none if the two cannot be associated."""
        if custom and (source, target) not in self._pairs:
            self.add_label(source, target, None, None)
        return self._pairs.get((source, target), [])

    def add_label(
        self, source: str, target: str, label: str | None, inverse_label: str | None
    ) -> tuple[AssociationType, ...]:
        """Define a type of the portal's own, in both directions."""
        ids = (self._next, self._next if source == target else self._next + 1)
        self._next = ids[1] + 1
        made = [AssociationType(source, target, USER, ids[0], ids[1], label)]
        if source != target:
            made.append(AssociationType(target, source, USER, ids[1], ids[0], inverse_label))
        for one in made:
            self._enter(one)
        return tuple(made)
