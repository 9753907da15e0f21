"""cdcsync keeps Salesforce and HubSpot equal to a PostgreSQL database."""

__version__ = "0.1.0"
