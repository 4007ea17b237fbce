"""The ledger of deletion requests, the run that answers them, their audit."""
