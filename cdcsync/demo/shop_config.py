"""The demo's config file: the shop's three tables, each mapped to both CRMs. Also an example to start from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

SECRETS = {"DEMO_SALESFORCE_SECRET": "not-a-secret", "DEMO_HUBSPOT_TOKEN": "pat-na1-not-a-secret"}
"""Environment variables that the config refers to; the sandbox HubSpot takes any token that looks like one."""

VERSION_FIELDS = {"salesforce": "Version__c", "hubspot": "row_version"}
"""Where each sandbox finds the row version that its books watch."""

TEMPLATE = """\
version = 1

[postgres]
dsn    = "{dsn}"

[batch]
max_wait = "500ms"

[state]
path   = "{state}"

[status]
listen = "{listen}"

[crm.salesforce]
login_url     = "{salesforce_url}"
client_id     = "demo"
client_secret = {{ env = "DEMO_SALESFORCE_SECRET" }}

[crm.hubspot]
base_url = "{hubspot_url}"
token    = {{ env = "DEMO_HUBSPOT_TOKEN" }}


# The workload deletes a larger part of its small tables in an hour than anybody should: max_deletes = "off".

[[map]]
table = "companies"
to    = "salesforce.Account"
key   = {{ External_Id__c = "id" }}
max_deletes = "off"

[map.fields]
Name       = "name"
Industry   = "industry"
Phone      = "phone"
Version__c = "row_version"


[[map]]
table = "customers"
to    = "salesforce.Contact"
key   = {{ External_Id__c = "id" }}
max_deletes = "off"

[map.fields]
FirstName  = "first_name"
LastName   = "last_name"
Email      = "email"
Level__c   = {{ column = "tier", values = {{ b = "Bronze", s = "Silver", g = "Gold" }} }}
AccountId  = {{ column = "company_id", ref = "salesforce.Account.External_Id__c" }}
Version__c = "row_version"


[[map]]
table = "orders"
to    = "salesforce.Opportunity"
key   = {{ External_Id__c = "id" }}
max_deletes = "off"

[map.fields]
Name       = "title"
Amount     = "amount"
CloseDate  = "due"
AccountId  = {{ column = "company_id", ref = "salesforce.Account.External_Id__c" }}
Version__c = "row_version"

[map.fields.StageName]
column = "stage"
values = {{ new = "Prospecting", quoted = "Proposal/Price Quote", won = "Closed Won", lost = "Closed Lost" }}


[[map]]
table  = "companies"
to     = "hubspot.companies"
key    = {{ company_id = "id" }}
max_deletes = "off"
fields = {{ name = "name", domain = "domain", row_version = "row_version" }}


[[map]]
table     = "customers"
to        = "hubspot.contacts"
key       = {{ customer_id = "id" }}
max_deletes = "off"
associate = [{{ to = "hubspot.companies", column = "company_id", type = "contact_to_company" }}]

[map.fields]
firstname   = "first_name"
lastname    = "last_name"
email       = "email"
tier        = {{ column = "tier", values = {{ b = "bronze", s = "silver", g = "gold" }} }}
row_version = "row_version"


[[map]]
table = "orders"
to    = "hubspot.deals"
key   = {{ order_id = "id" }}
max_deletes = "off"
associate = [
  {{ to = "hubspot.companies", column = "company_id", type = "deal_to_company" }},
  {{ to = "hubspot.contacts", column = "customer_id", type = "deal_to_contact" }},
]

[map.fields]
dealname    = "title"
amount      = "amount"
closedate   = {{ template = "{{due}}T00:00:00Z" }}
row_version = "row_version"

[map.fields.dealstage]
column = "stage"
values = {{ new = "appointmentscheduled", quoted = "contractsent", won = "closedwon", lost = "closedlost" }}
"""


@dataclass(frozen=True, slots=True)
class Places:
    """Where the parts of the demo are: connection URI, URLs, ``host:port``, path of the state file."""

    dsn: str
    salesforce_url: str
    hubspot_url: str
    listen: str
    state: Path


def write(path: Path, places: Places) -> None:
    """Write the config file."""
    path.write_text(
        TEMPLATE.format(
            dsn=places.dsn,
            salesforce_url=places.salesforce_url,
            hubspot_url=places.hubspot_url,
            listen=places.listen,
            state=places.state,
        ),
        encoding="utf-8",
    )
