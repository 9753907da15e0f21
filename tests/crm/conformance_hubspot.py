"""HubSpot, as the conformance suite knows it."""

from __future__ import annotations

from collections.abc import Sequence

from cdcsync.apply.base import Gate
from cdcsync.apply.hubspot import HubspotDestination
from cdcsync.config import HubspotConfig
from cdcsync.model import Link, Target, Value
from tests.crm.conformance import Adapter, Subject

REFRESH = "refresh-token"


def connect(url: str, gate: Gate, refresh: str = REFRESH) -> HubspotDestination:
    """Build an adapter that logs in by OAuth."""
    raw = {
        "base_url": url,
        "client_id": "app",
        "client_secret": {"env": "SECRET"},
        "refresh_token": {"env": "REFRESH"},
    }
    environ = {"SECRET": "s3cret", "REFRESH": refresh}
    return HubspotDestination("hubspot", HubspotConfig.model_validate(raw, context={"environ": environ}), gate)


def refer(key: str | None, crm_id: str | None, was_ids: Sequence[str]) -> tuple[dict[str, Value], tuple[Link, ...]]:
    """Refer to a company by its id."""
    del key
    return {}, (Link("companies", "contact_to_company", crm_id, tuple(was_ids)),)


def parent_of(subject: Subject, key: str) -> str | None:
    """Ask HubSpot for a contact's company."""
    assert isinstance(subject.crm, HubspotDestination)
    session = subject.crm._session
    body = {"inputs": [{"id": subject.stored()[key]["id"]}]}
    answer = session.call(session.associations.get_page, "contacts", "companies", body)
    found = [str(end["toObjectId"]) for result in answer["results"] for end in result["to"]]
    assert len(found) <= 1
    return found[0] if found else None


HUBSPOT = Adapter(
    crm="hubspot",
    connect=connect,
    connect_wrongly=lambda url, gate: connect(url, gate, "withdrawn"),
    target=Target("contacts", "customer_id"),
    required={},
    text="firstname",
    other="jobtitle",
    bad=("tier", "platinum"),
    parent=Target("companies", "company_id"),
    parent_required={"name": "Acme"},
    refer=refer,
    parent_of=parent_of,
    unknown_id="999999999",
    write_path="/crm/v3/objects/contacts/batch/(upsert|update|archive)",
    read_path="/batch/read",
    login_path="/oauth/",
    settings={"refresh_tokens": [REFRESH]},
)
