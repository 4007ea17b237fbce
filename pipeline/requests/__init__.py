"""The ledger of deletion requests."""
