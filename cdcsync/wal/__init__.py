"""From the write-ahead log to committed row changes: decoder, session, source, slot and snapshot."""
