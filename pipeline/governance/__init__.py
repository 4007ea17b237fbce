"""Who may serve: promotion, rollback, certificates, purging what a request was about."""
