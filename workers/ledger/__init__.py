"""The ledger: what was promised and what is done, on disk."""
