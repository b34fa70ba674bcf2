"""Accounts of one run from several sources, compared."""
