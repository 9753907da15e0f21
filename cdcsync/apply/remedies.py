"""What to do about a record that a CRM refused, by the CRM's kind and code, in plain words. Pure data.

Sources: the codes and messages that Salesforce's REST guide and HubSpot's error pages list, and recorded answers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

REMEDIES: Final[Mapping[str, Mapping[str, str]]] = {
    "salesforce": {
        "REQUIRED_FIELD_MISSING": "fill the column, give the field a default in the mapping, or make it optional in"
        " Salesforce (Setup, Object Manager, Fields)",
        "STRING_TOO_LONG": "shorten the column's text, or lengthen the field in Salesforce",
        "INVALID_EMAIL_ADDRESS": "correct the address in the database, or map it to a text field",
        "INVALID_FIELD": "correct the mapping, or make the field (and let the integration user see it); a foreign key"
        " that was not found names a parent that Salesforce does not have",
        "INVALID_FIELD_FOR_INSERT_UPDATE": "let the integration user edit the field (Setup, Permission Sets, Object"
        " Settings), or take a read-only one out of the mapping",
        "INVALID_OR_NULL_FOR_RESTRICTED_PICKLIST": "add the value to the picklist, or translate it with values in the"
        " mapping",
        "INVALID_TYPE_ON_FIELD_IN_RECORD": "map a column of the field's type",
        "FIELD_CUSTOM_VALIDATION_EXCEPTION": "the message is a validation rule's own: correct the row, or exempt the"
        " integration user in the rule",
        "FIELD_INTEGRITY_EXCEPTION": "the message says which field does not go with another one: correct the row or the"
        " mapping",
        "FIELD_FILTER_VALIDATION_EXCEPTION": "a lookup filter does not let this parent in: correct the reference, or"
        " the filter",
        "DUPLICATE_VALUE": "another record holds the unique value: the message has its id. Merge or correct one of the"
        " two",
        "DUPLICATE_EXTERNAL_ID": "several records have this external id: delete or correct all but one, and mark the"
        " field as unique",
        "DUPLICATES_DETECTED": "a duplicate rule stands in the way: merge the records, or let the rule pass the"
        " integration user",
        "MALFORMED_ID": "the column does not hold a Salesforce id of the right object; to refer by an external key, use"
        " ref in the mapping",
        "INVALID_CROSS_REFERENCE_KEY": "the parent, owner or record type is not there, or not visible to the"
        " integration user: make it, or correct the reference",
        "ENTITY_IS_DELETED": "the record, or its parent, is in the recycle bin: restore it, or correct the reference",
        "NUMBER_OUTSIDE_VALID_RANGE": "correct the number, or give the field more digits",
        "STORAGE_LIMIT_EXCEEDED": "the org's data storage is full: delete records or buy storage",
        "DELETE_FAILED": "other records refer to it: delete them first, or set on_delete to ignore",
        "DEPENDENCY_EXISTS": "other records depend on it: delete them first, or set on_delete to ignore",
        "INSUFFICIENT_ACCESS_OR_READONLY": "give the integration user access to the record and its object",
        "INSUFFICIENT_ACCESS_ON_CROSS_REFERENCE_ENTITY": "give the integration user access to the parent record",
        "CANNOT_INSERT_UPDATE_ACTIVATE_ENTITY": "a trigger or flow failed: its administrator finds it by the message",
        "CANNOT_EXECUTE_FLOW_TRIGGER": "a flow failed: its administrator finds it by the message",
        "INACTIVE_OWNER_OR_USER": "the owner is inactive: map another one",
        "INVALID_STATUS": "correct the status, or translate it with values in the mapping",
    },
    "hubspot": {
        "PROPERTY_DOESNT_EXIST": "make the property, or correct the mapping",
        "READ_ONLY_VALUE": "HubSpot sets this property itself: take it out of the mapping",
        "INVALID_OPTION": "add the option to the property, or translate it with values in the mapping",
        "INVALID_EMAIL": "correct the address in the database; HubSpot wants a top-level domain that exists",
        "INVALID_DATE": "the property takes dates without a time: map a date column, or use a datetime property",
        "INVALID_LONG": "map a timestamp column to this property",
        "INVALID_INTEGER": "map a numeric column to this property",
        "INVALID_STRING": "shorten or correct the text",
        "CONFLICTING_UNIQUE_VALUE": "another record holds the unique value: the message has its id. Merge or correct"
        " one of the two",
        "CONFLICT": "another record holds the e-mail or domain: the message has its id. Merge or correct one of"
        " the two",
        "OBJECT_ALREADY_EXISTS": "another record holds the unique value: the message has its id. Merge or correct one"
        " of the two",
        "OBJECT_NOT_FOUND": "the record was deleted in HubSpot, or is another app's: `cdcsync resync` makes it again",
        "LIMIT_EXCEEDED": "HubSpot allows no more associations or records of this kind: the message says which limit",
        "VALIDATION_ERROR": "the message names the properties: correct the row or the mapping; required ones have to be"
        " mapped",
        "USER_DOES_NOT_EXIST": "map the id of an owner that the account has",
        "INVALID_OWNER_ID": "map the id of an owner that the account has",
    },
}
