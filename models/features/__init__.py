"""Feature networks that distances are taken in: one file a network, and the table that names them."""
