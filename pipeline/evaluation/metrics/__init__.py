"""One file a metric, and the table that names them."""
