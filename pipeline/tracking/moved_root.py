"""A storage root that was moved or copied: the database under it still names where it was."""

import re
import sqlite3
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path

from pipeline import storage
from pipeline.errors import InputError

ARTIFACTS = "mlartifacts"  # under the storage root
PLACES = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("model_versions", "source"),
    ("model_versions", "storage_location"),
    ("logged_models", "artifact_location"),
)
LOCAL = re.compile(rf"(?P<root>(?:file://)?/.*)/{ARTIFACTS}(?P<rest>/.*)?", re.DOTALL)  # the last such folder


def root_of(location: str) -> str | None:
    """The storage root whose artifacts `location` is among; None for a place of any other kind."""
    match = LOCAL.fullmatch(location)
    return None if match is None else match["root"].removeprefix("file://")


def follow_root(database: Path, artifacts: str) -> None:
    """Let every path to artifacts in MLflow's `database` lead to the folder `artifacts` beside it.

    Without it a copied root would read, and write, the artifacts of the root it was copied from. A database
    that lies where it was made is only looked at. Raises `InputError` for one that would have to be written
    and cannot be.
    """
    here = artifacts.removesuffix(f"/{ARTIFACTS}")

    def moved(location: str | None) -> str | None:
        root = None if location is None else root_of(location)
        if location is None or root is None or root == here:
            return location
        return f"{artifacts}{LOCAL.fullmatch(location)['rest'] or ''}"  # type: ignore[index]

    try:
        with closing(sqlite3.connect(database, timeout=60)) as connection, connection:
            connection.create_function("moved", 1, moved, deterministic=True)
            for table, column in PLACES:
                elsewhere = f"{column} IS NOT moved({column})"
                if connection.execute(f"SELECT 1 FROM {table} WHERE {elsewhere} LIMIT 1").fetchone():
                    connection.execute(f"UPDATE {table} SET {column} = moved({column}) WHERE {elsewhere}")
    except sqlite3.Error as error:
        raise InputError(
            f"{database}: it was made at another place and cannot be brought up to date ({error}); expected a"
            " database of MLflow's that can be written"
        ) from error


def require_own(location: str, storage_root: str) -> None:
    """Raise `InputError` for the artifacts of another storage root: what removes things stays in its own."""
    root = root_of(location)
    if root is not None and root != storage_root:
        raise InputError(
            f"storage: MLflow keeps these artifacts at {location}, of the storage root {root}, not"
            f" {storage_root}: the root was moved or copied and its tracking store was not; expected a"
            " tracking.uri of this root's own"
        )


def require_inside(uris: Iterable[str], storage_root: str) -> None:
    """Raise `InputError` for one of `uris`, below `storage_root`, that a link takes into another storage
    root. A folder that lies on another disk, by a link, is this root's own."""
    if not storage.is_local(storage_root):
        return
    here = Path(storage_root).resolve()
    for path in (Path(uri).resolve() for uri in uris):
        other = next((folder for folder in path.parents if _is_root(folder)), here)
        if not path.is_relative_to(here) and other != here:
            raise InputError(
                f"storage: a link in {storage_root} leads to {path}, of the storage root {other}; what is"
                f" removed there is that root's: use storage={other}, or copy what the link leads to"
            )


def _is_root(folder: Path) -> bool:
    return (folder / "mlflow.db").exists() or (folder / "registry").is_dir()
