"""From records to CRM API calls, and from their answers to outcomes."""
