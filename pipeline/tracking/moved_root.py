"""A storage root that was moved or copied: the SQLite database under it still names where it was."""

import sqlite3
from contextlib import closing
from pathlib import Path

ARTIFACTS = "mlartifacts"  # under the storage root
PLACES = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("model_versions", "source"),
    ("model_versions", "storage_location"),
    ("logged_models", "artifact_location"),
)


def follow_root(database: Path, artifacts: str) -> None:
    """Let every path to artifacts in MLflow's `database` lead to the folder `artifacts` beside it.

    Without it a copied root would read, and write, the artifacts of the root it was copied from. A database
    that lies where it was made is only looked at.
    """
    mark = f"/{ARTIFACTS}"
    with closing(sqlite3.connect(database, timeout=60)) as connection, connection:
        for table, column in PLACES:
            elsewhere = f"instr({column}, :mark) > 0 AND substr({column}, 1, length(:here)) != :here"
            values = {"mark": mark, "here": artifacts}
            if connection.execute(f"SELECT 1 FROM {table} WHERE {elsewhere} LIMIT 1", values).fetchone():
                path = f":here || substr({column}, instr({column}, :mark) + length(:mark))"
                connection.execute(f"UPDATE {table} SET {column} = {path} WHERE {elsewhere}", values)
