"""Which records are associated, and how. Both directions are kept. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from cdcsync.sandbox.hubspot_association_types import AssociationType

Spec = tuple[str, int]
Links = dict[str, dict[str, set[Spec]]]


class Associations:
    """Per record: object type → other record's id → the specs (category, type id) of the associations."""

    def __init__(self) -> None:
        self._links: dict[tuple[str, str], Links] = {}

    def clear(self) -> None:
        """Forget all associations."""
        self._links.clear()

    def of(self, kind: str, record_id: str) -> Mapping[str, Mapping[str, set[Spec]]]:
        """Return the associations of one record, by object type and id."""
        return self._links.get((kind, record_id), {})

    def specs(self, source: tuple[str, str], target: tuple[str, str]) -> set[Spec]:
        """How two records are associated, seen from the first."""
        return self.of(*source).get(target[0], {}).get(target[1], set())

    def link(self, one: AssociationType, source_id: str, target_id: str) -> bool:
        """Associate two records, in both directions. Returns whether that changed anything."""
        source, target = (one.source, source_id), (one.target, target_id)
        if one.spec in self.specs(source, target):
            return False
        if one.only:
            self._unlabel_others(one, source)
        self._add(source, target, one.spec)
        self._add(target, source, one.inverse_spec)
        return True

    def _unlabel_others(self, one: AssociationType, source: tuple[str, str]) -> None:
        for other, specs in self.of(*source).get(one.target, {}).items():
            if one.spec in specs:
                specs.discard(one.spec)
                self.specs((one.target, other), source).discard(one.inverse_spec)

    def _add(self, source: tuple[str, str], target: tuple[str, str], spec: Spec) -> None:
        self._links.setdefault(source, {}).setdefault(target[0], {}).setdefault(target[1], set()).add(spec)

    def unlink(self, source: tuple[str, str], target: tuple[str, str]) -> bool:
        """Remove all associations between two records. Returns whether there were any."""
        found = self._remove(source, target)
        self._remove(target, source)
        return found

    def unlabel(self, one: AssociationType, source_id: str, target_id: str) -> bool:
        """Remove one type of association between two records, and the last one with its link."""
        source, target = (one.source, source_id), (one.target, target_id)
        specs = self.specs(source, target)
        if one.spec not in specs:
            return False
        specs.discard(one.spec)
        self.specs(target, source).discard(one.inverse_spec)
        if not specs:
            self.unlink(source, target)
        return True

    def _remove(self, source: tuple[str, str], target: tuple[str, str]) -> bool:
        others = self._links.get(source, {}).get(target[0], {})
        return others.pop(target[1], None) is not None

    def drop(self, kind: str, record_id: str) -> None:
        """Remove every association of a record."""
        for other_kind, others in self._links.pop((kind, record_id), {}).items():
            for other in others:
                self._remove((other_kind, other), (kind, record_id))

    def move(self, kind: str, old_id: str, new_id: str) -> None:
        """Give the associations of a record to another one (a merge)."""
        for other_kind, others in self._links.pop((kind, old_id), {}).items():
            for other, specs in others.items():
                back = self._links[other_kind, other][kind].pop(old_id)
                for spec in specs:
                    self._add((kind, new_id), (other_kind, other), spec)
                for spec in back:
                    self._add((other_kind, other), (kind, new_id), spec)
