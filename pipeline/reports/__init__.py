"""Pages, charts and terminal tables, made from plain dicts."""
