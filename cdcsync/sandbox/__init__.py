"""Stand-ins for Salesforce and HubSpot over HTTP: for ``cdcsync demo``, users' own tests, and ours.

One process (``server.Sandbox``) serves one CRM on one port, and an admin API on another: records, the request
ledger, the books (``books.Books``), settings, and scripted faults (``faults.Faults``).
"""
