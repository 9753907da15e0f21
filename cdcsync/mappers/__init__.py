"""From a row of PostgreSQL text to the fields of a CRM record."""
