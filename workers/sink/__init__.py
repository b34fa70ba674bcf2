"""The sink: promises and results go to the ledger, and only then is anybody answered."""
