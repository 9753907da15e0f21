"""The self-contained demonstration: an embedded PostgreSQL, a live workload, and the sandbox CRMs."""
