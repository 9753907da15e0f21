"""What a portal holds from the start: object types, properties, pipelines. Data only, read by ``hubspot_schema``.

The standard properties are a trimmed choice of what a HubSpot portal has. The custom ones at the end of each table are
the sandbox's own: a unique key and a version per main object, and one property of each type on contacts.

A property's line: ``name | label | type fieldType | group | flags | options``. Flags: r value is read-only, u unique,
c calculated, e options come from elsewhere (owners, pipelines), h hidden, f form field, p of the portal.
Options: ``value`` or ``value=Label``, comma-separated. A line that starts with ``+`` continues the one before.
"""

from __future__ import annotations

from typing import Final

CONTACTS: Final = """
address | Street Address | string text | contactinformation | f
annualrevenue | Annual Revenue | string text | contactinformation | f
associatedcompanyid | Primary Associated Company ID | number number | contactinformation | eh
city | City | string text | contactinformation | f
closedate | Close Date | datetime date | deal_information
company | Company Name | string text | contactinformation | f
country | Country/Region | string text | contactinformation | f
createdate | Create Date | datetime date | contactinformation | r
days_to_close | Days To Close | number number | deal_information | rc
email | Email | string text | contactinformation | uf
fax | Fax Number | string phonenumber | contactinformation | f
firstname | First Name | string text | contactinformation | f
first_conversion_date | First Conversion Date | datetime date | contact_activity | rc
hs_additional_emails | Additional email addresses | enumeration select | contactinformation | uh
hs_all_contact_vids | All vids for a contact | enumeration select | contactinformation | rch
hs_analytics_num_page_views | Number of Pageviews | number number | analyticsinformation | r
hs_analytics_source | Original Traffic Source | enumeration select | analyticsinformation | |
+ ORGANIC_SEARCH=Organic Search, PAID_SEARCH=Paid Search, EMAIL_MARKETING=Email Marketing, SOCIAL_MEDIA=Organic
+ Social, REFERRALS=Referrals, OTHER_CAMPAIGNS=Other Campaigns, DIRECT_TRAFFIC=Direct Traffic, OFFLINE=Offline
+ Sources, PAID_SOCIAL=Paid Social, AI_REFERRALS=AI Referrals
hs_buying_role | Buying Role | enumeration checkbox | deal_information | f | BLOCKER=Blocker,
+ BUDGET_HOLDER=Budget Holder, CHAMPION=Champion, DECISION_MAKER=Decision Maker, END_USER=End User,
+ EXECUTIVE_SPONSOR=Executive Sponsor, INFLUENCER=Influencer, LEGAL_AND_COMPLIANCE=Legal & Compliance,
+ OTHER=Other
hs_calculated_merged_vids | Merged vids with timestamps of a contact | enumeration select | contactinformation |
+ rch
hs_createdate | Object create date/time | datetime date | contactinformation | rh
hs_current_customer | Current Customer | enumeration select | contactinformation | r | yes=Yes, no=No,
+ unknown=Unknown
hs_email_domain | Email Domain | string text | contactinformation | rc
hs_email_optout | Unsubscribed from all email | bool booleancheckbox | emailinformation | r | true=True,
+ false=False
hs_is_contact | Is a contact | bool calculation_read_time | contactinformation | rch | true=True, false=False
hs_is_unworked | Contact unworked | bool calculation_equation | sales_properties | r | true=True, false=False
hs_latest_source | Latest Traffic Source | enumeration select | analyticsinformation | | ORGANIC_SEARCH=Organic
+ Search, PAID_SEARCH=Paid Search, EMAIL_MARKETING=Email Marketing, SOCIAL_MEDIA=Organic Social,
+ REFERRALS=Referrals, OTHER_CAMPAIGNS=Other Campaigns, DIRECT_TRAFFIC=Direct Traffic, OFFLINE=Offline Sources,
+ PAID_SOCIAL=Paid Social, AI_REFERRALS=AI Referrals
hs_lead_status | Lead Status | enumeration radio | sales_properties | f | NEW=New, OPEN=Open, IN_PROGRESS=In
+ Progress, OPEN_DEAL=Open Deal, UNQUALIFIED=Unqualified, ATTEMPTED_TO_CONTACT=Attempted to Contact,
+ CONNECTED=Connected, BAD_TIMING=Bad Timing
hs_linkedin_url | LinkedIn URL | string text | socialmediainformation | f
hs_marketable_status | Marketing contact status | enumeration booleancheckbox | contactinformation | r |
+ true=Marketing contact, false=Non-marketing contact
hs_object_id | Record ID | number number | contactinformation | r
hs_object_source | Record creation source | string text | contactinformation | rh
hs_persona | Persona | enumeration select | contactinformation | f
hs_pipeline | Pipeline | enumeration select | contactinformation | eh
hs_full_name_or_email | Full name or email | string calculation_equation | contactinformation | rch
hs_unique_creation_key | Unique creation key | string text | contactinformation | urh
hs_whatsapp_phone_number | WhatsApp Phone Number | string phonenumber | contactinformation | f
hubspot_owner_assigneddate | Owner assigned date | datetime date | sales_properties | r
hubspot_owner_id | Contact owner | enumeration select | sales_properties | e
hubspotscore | HubSpot Score | number calculation_score | sales_properties | r
industry | Industry | string text | contactinformation | f
jobtitle | Job Title | string text | contactinformation | f
lastmodifieddate | Last Modified Date | datetime date | contactinformation | r
lastname | Last Name | string text | contactinformation | f
lifecyclestage | Lifecycle Stage | enumeration radio | contactinformation | ef | subscriber=Subscriber,
+ lead=Lead, marketingqualifiedlead=Marketing Qualified Lead, salesqualifiedlead=Sales Qualified Lead,
+ opportunity=Opportunity, customer=Customer, evangelist=Evangelist, other=Other
message | Message | string textarea | contact_activity | f
mobilephone | Mobile Phone Number | string phonenumber | contactinformation | f
notes_last_contacted | Last Contacted | datetime date | contact_activity | r
notes_last_updated | Last Activity Date | datetime date | contact_activity | r
num_associated_deals | Number of Associated Deals | number calculation_rollup | deal_information | r
num_notes | Number of Sales Activities | number number | contact_activity | r
numemployees | Number of Employees | enumeration select | contactinformation | f | 1-5, 5-25, 25-50, 50-100,
+ 100-500, 500-1000, 1000+
phone | Phone Number | string phonenumber | contactinformation | f
recent_deal_amount | Recent Deal Amount | number number | deal_information | r
salutation | Salutation | string text | contactinformation | f
state | State/Region | string text | contactinformation | f
total_revenue | Total Revenue | number number | deal_information | r
twitterhandle | Twitter Username | string text | contactinformation | f
website | Website URL | string text | contactinformation | f
zip | Postal Code | string text | contactinformation | f
customer_id | Customer ID | string text | contactinformation | up
row_version | Row version | number number | contactinformation | p
tier | Tier | enumeration select | contactinformation | p | gold=Gold, silver=Silver, bronze=Bronze
score | Score | number number | contactinformation | p
active | Active | bool booleancheckbox | contactinformation | p | true=Yes, false=No
birth_date | Birth date | date date | contactinformation | p
signed_up_at | Signed up at | datetime date | contactinformation | p
interests | Interests | enumeration checkbox | contactinformation | p | cycling=Cycling, hiking=Hiking, music=Music
"""

COMPANIES: Final = """
about_us | About Us | string textarea | companyinformation | f
address | Street Address | string text | companyinformation | f
address2 | Street Address 2 | string text | companyinformation | f
annualrevenue | Annual Revenue | number number | companyinformation | f
city | City | string text | companyinformation | f
closedate | Close Date | datetime date | companyinformation |
country | Country/Region | string text | companyinformation | f
createdate | Create Date | datetime date | companyinformation | r
description | Description | string textarea | companyinformation | f
domain | Company Domain Name | string text | companyinformation | f
founded_year | Year Founded | string text | companyinformation | f
hs_additional_domains | Additional Domains | enumeration checkbox | companyinformation | rh
hs_lastmodifieddate | Last Modified Date | datetime date | companyinformation | r
hs_lead_status | Lead Status | enumeration radio | companyinformation | f | NEW=New, OPEN=Open, IN_PROGRESS=In Progress,
+ OPEN_DEAL=Open Deal, UNQUALIFIED=Unqualified, ATTEMPTED_TO_CONTACT=Attempted to Contact, CONNECTED=Connected,
+ BAD_TIMING=Bad Timing
hs_num_open_deals | Number of Open Deals | number calculation_rollup | companyinformation | rc
hs_object_id | Record ID | number number | companyinformation | r
hs_parent_company_id | Parent Company | number number | companyinformation |
hs_unique_creation_key | Unique creation key | string text | companyinformation | urh
hubspot_owner_id | Company owner | enumeration select | companyinformation | e
industry | Industry | enumeration select | companyinformation | f | ACCOUNTING=Accounting, BANKING=Banking,
+ BIOTECHNOLOGY=Biotechnology, COMPUTER_SOFTWARE=Computer Software, CONSTRUCTION=Construction, INSURANCE=Insurance,
+ INTERNET=Internet, MANUFACTURING=Manufacturing, RETAIL=Retail
is_public | Is Public | bool booleancheckbox | companyinformation | | true=Yes, false=No
lifecyclestage | Lifecycle Stage | enumeration radio | companyinformation | f | subscriber=Subscriber, lead=Lead,
+ marketingqualifiedlead=Marketing Qualified Lead, salesqualifiedlead=Sales Qualified Lead, opportunity=Opportunity,
+ customer=Customer, evangelist=Evangelist, other=Other
linkedin_company_page | LinkedIn Company Page | string text | companyinformation | f
name | Company name | string text | companyinformation | f
num_associated_contacts | Number of Associated Contacts | number number | companyinformation | rc
numberofemployees | Number of Employees | number number | companyinformation | f
phone | Phone Number | string phonenumber | companyinformation | f
state | State/Region | string text | companyinformation | f
timezone | Time Zone | string text | companyinformation | f
total_revenue | Total Revenue | number calculation_rollup | companyinformation | rc
type | Type | enumeration select | companyinformation | f | PROSPECT=Prospect, PARTNER=Partner, RESELLER=Reseller,
+ VENDOR=Vendor, OTHER=Other
website | Website URL | string text | companyinformation | f
zip | Postal Code | string text | companyinformation | f
company_id | Company ID | string text | companyinformation | up
row_version | Row version | number number | companyinformation | p
"""

DEALS: Final = """
amount | Amount | number number | dealinformation | f
amount_in_home_currency | Amount in company currency | number calculation_equation | dealinformation | rc
closed_lost_reason | Closed Lost Reason | string textarea | dealinformation |
closed_won_reason | Closed Won Reason | string textarea | dealinformation |
closedate | Close Date | datetime date | dealinformation | f
createdate | Create Date | datetime date | dealinformation |
days_to_close | Days to close | number calculation_equation | dealinformation | rc
dealname | Deal Name | string text | dealinformation | f
dealstage | Deal Stage | enumeration radio | dealinformation | ef
dealtype | Deal Type | enumeration radio | dealinformation | f | newbusiness=New Business,
+ existingbusiness=Existing Business
description | Deal Description | string textarea | dealinformation | f
hs_forecast_amount | Forecast amount | number number | dealinformation | rc
hs_is_closed | Is Deal Closed? | bool calculation_equation | dealinformation | rc | true=True, false=False
hs_lastmodifieddate | Last Modified Date | datetime date | dealinformation | r
hs_next_step | Next step | string text | dealinformation | f
hs_object_id | Record ID | number number | dealinformation | r
hs_priority | Priority | enumeration select | dealinformation | f | low=Low, medium=Medium, high=High
hs_unique_creation_key | Unique creation key | string text | dealinformation | urh
hubspot_owner_id | Deal owner | enumeration select | dealinformation | e
num_associated_contacts | Number of Associated Contacts | number number | dealinformation | rc
pipeline | Pipeline | enumeration select | dealinformation | ef
order_id | Order ID | string text | dealinformation | up
row_version | Row version | number number | dealinformation | p
"""

TICKETS: Final = """
closed_date | Close date | datetime date | ticketinformation |
content | Ticket description | string textarea | ticketinformation | f
createdate | Create date | datetime date | ticketinformation |
hs_lastmodifieddate | Last modified date | datetime date | ticketinformation | r
hs_object_id | Record ID | number number | ticketinformation | r
hs_pipeline | Pipeline | enumeration select | ticketinformation | ef
hs_pipeline_stage | Ticket status | enumeration select | ticketinformation | ef
hs_resolution | Resolution | enumeration select | ticketinformation | | ISSUE_FIXED=Issue fixed,
+ KNOWN_ISSUE=Known issue, NO_RESPONSE=No response
hs_ticket_category | Category | enumeration checkbox | ticketinformation | f | PRODUCT_ISSUE=Product Issue,
+ BILLING_ISSUE=Billing Issue, FEATURE_REQUEST=Feature Request, GENERAL_INQUIRY=General Inquiry
hs_ticket_priority | Priority | enumeration select | ticketinformation | f | LOW=Low, MEDIUM=Medium, HIGH=High
hs_unique_creation_key | Unique creation key | string text | ticketinformation | urh
hubspot_owner_id | Ticket owner | enumeration select | ticketinformation | e
source_type | Source | enumeration select | ticketinformation | f | CHAT=Chat, EMAIL=Email, FORM=Form, PHONE=Phone
subject | Ticket name | string text | ticketinformation | f
"""

ENGAGEMENT: Final = """
hs_activity_type | Activity type | string text | engagementinformation |
hs_createdate | Create date | datetime date | engagementinformation | r
hs_lastmodifieddate | Last modified date | datetime date | engagementinformation | r
hs_object_id | Record ID | number number | engagementinformation | r
hs_timestamp | Activity date | datetime date | engagementinformation |
hs_unique_creation_key | Unique creation key | string text | engagementinformation | urh
hs_unique_id | Unique ID | string text | engagementinformation |
hubspot_owner_id | Activity assigned to | enumeration select | engagementinformation | e
"""

CALLS: Final = """
hs_call_body | Call notes | string html | callinformation |
hs_call_direction | Call direction | enumeration select | callinformation | | INBOUND=Inbound, OUTBOUND=Outbound
hs_call_duration | Call duration | number number | callinformation |
hs_call_from_number | From number | string text | callinformation |
hs_call_status | Call status | enumeration select | callinformation | | BUSY, CALLING_CRM_USER, CANCELED, COMPLETED,
+ CONNECTING, FAILED, IN_PROGRESS, NO_ANSWER, QUEUED, RINGING
hs_call_title | Call title | string text | callinformation |
hs_call_to_number | To number | string text | callinformation |
"""

MEETINGS: Final = """
hs_meeting_body | Description | string html | meetinginformation |
hs_meeting_end_time | Meeting end time | datetime date | meetinginformation |
hs_meeting_location | Meeting location | string text | meetinginformation |
hs_meeting_outcome | Meeting outcome | enumeration select | meetinginformation | | SCHEDULED=Scheduled,
+ COMPLETED=Completed, RESCHEDULED=Rescheduled, NO_SHOW=No Show, CANCELED=Canceled
hs_meeting_start_time | Meeting start time | datetime date | meetinginformation |
hs_meeting_title | Meeting name | string text | meetinginformation |
"""

NOTES: Final = """
hs_attachment_ids | Attached file IDs | enumeration checkbox | noteinformation | r
hs_note_body | Note body | string html | noteinformation |
"""

TASKS: Final = """
hs_task_body | Notes | string html | taskinformation |
hs_task_priority | Priority | enumeration select | taskinformation | | NONE=None, LOW=Low, MEDIUM=Medium, HIGH=High
hs_task_status | Task status | enumeration select | taskinformation | | NOT_STARTED=Not started,
+ IN_PROGRESS=In progress, WAITING=Waiting, COMPLETED=Completed, DEFERRED=Deferred
hs_task_subject | Task title | string text | taskinformation |
hs_task_type | Task type | enumeration select | taskinformation | | TODO=To-do, CALL=Call, EMAIL=Email
"""

EMAILS: Final = """
hs_email_direction | Email direction | enumeration select | emailinformation | | EMAIL=Email,
+ INCOMING_EMAIL=Incoming email, FORWARDED_EMAIL=Forwarded email
hs_email_status | Email send status | enumeration select | emailinformation | | BOUNCED, FAILED,
+ SCHEDULED, SENDING, SENT
hs_email_subject | Email subject | string text | emailinformation |
hs_email_text | Text body | string textarea | emailinformation |
"""

CUSTOM: Final = """
hs_createdate | Object create date/time | datetime date | custom_information | r
hs_lastmodifieddate | Object last modified date/time | datetime date | custom_information | r
hs_object_id | Record ID | number number | custom_information | r
hs_unique_creation_key | Unique creation key | string text | custom_information | urh
hubspot_owner_id | Owner | enumeration select | custom_information | e
"""

OBJECTS: Final = (
    # name, singular, type id, properties, required on create, shown when nothing is asked for
    ("contacts", "contact", "0-1", CONTACTS, "", "createdate email firstname hs_object_id lastmodifieddate lastname"),
    ("companies", "company", "0-2", COMPANIES, "", "createdate domain hs_lastmodifieddate hs_object_id name"),
    (
        "deals",
        "deal",
        "0-3",
        DEALS,
        "dealname dealstage",
        "amount closedate createdate dealname dealstage hs_lastmodifieddate hs_object_id pipeline",
    ),
    (
        "tickets",
        "ticket",
        "0-5",
        TICKETS,
        "hs_pipeline_stage",
        (
            "content createdate hs_lastmodifieddate hs_object_id hs_pipeline hs_pipeline_stage hs_ticket_category "
            "hs_ticket_priority subject"
        ),
    ),
    ("calls", "call", "0-48", ENGAGEMENT + CALLS, "hs_timestamp", ""),
    ("meetings", "meeting", "0-47", ENGAGEMENT + MEETINGS, "hs_timestamp", ""),
    ("notes", "note", "0-46", ENGAGEMENT + NOTES, "hs_timestamp", ""),
    ("tasks", "task", "0-27", ENGAGEMENT + TASKS, "hs_timestamp", ""),
    ("emails", "email", "0-49", ENGAGEMENT + EMAILS, "hs_timestamp", ""),
)

PIPELINES: Final = {
    # object → (pipeline property, stage property, pipeline id, label, stages as id=Label)
    "deals": (
        "pipeline",
        "dealstage",
        "default",
        "Sales Pipeline",
        (
            "appointmentscheduled=Appointment Scheduled, qualifiedtobuy=Qualified To Buy, "
            "presentationscheduled=Presentation Scheduled, decisionmakerboughtin=Decision Maker Bought-In, "
            "contractsent=Contract Sent, closedwon=Closed Won, closedlost=Closed Lost"
        ),
    ),
    "tickets": (
        "hs_pipeline",
        "hs_pipeline_stage",
        "0",
        "Support Pipeline",
        "1=New, 2=Waiting on contact, 3=Waiting on us, 4=Closed",
    ),
}

OWNERS: Final = (
    # id, e-mail, first name, last name, user id
    ("41629779", "ada@example.com", "Ada", "Byron", 9586504),
    ("41629780", "grace@example.com", "Grace", "Murray", 9586505),
)
