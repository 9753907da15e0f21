"""Which adapter serves which kind of CRM. The vendor's packages load with the first adapter that needs them."""

from __future__ import annotations

from cdcsync.apply.base import Destination, Gate
from cdcsync.config import CrmConfig, SalesforceConfig


def create(name: str, config: CrmConfig, gate: Gate) -> Destination:
    """Make the adapter for ``[crm.NAME]``; nothing is sent before its ``open``."""
    if isinstance(config, SalesforceConfig):
        from cdcsync.apply.salesforce import SalesforceDestination  # noqa: PLC0415 - 40 MB that HubSpot users do not need

        return SalesforceDestination(name, config, gate)
    from cdcsync.apply.hubspot import HubspotDestination  # noqa: PLC0415 - as above

    return HubspotDestination(name, config, gate)
