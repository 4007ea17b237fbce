"""A registry with versions in it."""

from registered import register_run, root  # noqa: F401
