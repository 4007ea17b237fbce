"""Artifacts of a storage root that was moved, copied or mounted elsewhere are this root's."""

import sqlite3
from pathlib import Path

import pytest

from pipeline.errors import InputError
from pipeline.tracking.moved_root import PLACES, follow_root, require_inside, require_own

HERE = "/new/place/mlartifacts"


@pytest.fixture
def database(tmp_path: Path) -> Path:
    path = tmp_path / "mlflow.db"
    with sqlite3.connect(path) as connection:
        for table in sorted({table for table, _ in PLACES}):
            columns = ", ".join(f"{column} TEXT" for name, column in PLACES if name == table)
            connection.execute(f"CREATE TABLE {table} ({columns})")
    connection.close()
    return path


@pytest.mark.parametrize(
    ("location", "followed"),
    [
        ("/old/place/mlartifacts/1/run/artifacts", f"{HERE}/1/run/artifacts"),
        ("/old/place/mlartifacts", HERE),
        ("file:///old/place/mlartifacts/1", f"{HERE}/1"),
        ("/data/mlartifacts-old/runs/mlartifacts/1", f"{HERE}/1"),
        ("/data/mlartifacts/runs/mlartifacts/1", f"{HERE}/1"),
        ("/new/place-copy/mlartifacts/1", f"{HERE}/1"),
        ("/new/place/mlartifacts/1", "/new/place/mlartifacts/1"),
        ("s3://bucket/mlartifacts/1", "s3://bucket/mlartifacts/1"),
        ("models:/m-0123", "models:/m-0123"),
        (None, None),
    ],
)
def test_locations_follow(database: Path, location: str | None, followed: str | None) -> None:
    with sqlite3.connect(database) as connection:
        for table, column in PLACES:
            connection.execute(f"INSERT INTO {table} ({column}) VALUES (?)", (location,))
    follow_root(database, HERE)
    follow_root(database, HERE)
    with sqlite3.connect(database) as connection:
        for table, column in PLACES:
            query = f"SELECT {column} FROM {table} WHERE {column} IS NOT NULL"
            assert {row[0] for row in connection.execute(query)} == {followed} - {None}
    connection.close()


def test_a_database_that_cannot_follow_is_named(tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").write_bytes(b"SQLite format 3\0 and then nothing that fits")
    with pytest.raises(InputError, match=r"mlflow\.db: it was made at another place"):
        follow_root(tmp_path / "mlflow.db", HERE)


def test_nothing_is_removed_from_another_root() -> None:
    for location in ("/new/place/mlartifacts/1", "s3://bucket/mlartifacts/1", "mlflow-artifacts:/1", "/x/1"):
        require_own(location, "/new/place")
    for location in ("/old/mlartifacts/1", "/new/place2/mlartifacts/1", "file:///new/mlartifacts/1"):
        with pytest.raises(InputError, match="was moved or copied and its tracking store was not"):
            require_own(location, "/new/place")


def test_a_link_into_another_root_is_not_followed(tmp_path: Path) -> None:
    mine, other, disk = tmp_path / "mine", tmp_path / "other", tmp_path / "disk"
    for folder in (mine / "registry", other / "registry", other / "runs" / "run-1", disk / "partitions"):
        folder.mkdir(parents=True)
    (mine / "partitions").symlink_to(disk / "partitions")
    require_inside([f"{mine}/partitions/p", f"{mine}/runs/run-1"], str(mine))
    (tmp_path / "alias").symlink_to(mine)
    require_inside([f"{tmp_path}/alias/runs/run-1"], f"{tmp_path}/alias")
    (mine / "runs").symlink_to(other / "runs")
    with pytest.raises(InputError, match=r"leads to .*other/runs/run-1, of the storage root .*other; "):
        require_inside([f"{mine}/partitions/p", f"{mine}/runs/run-1"], str(mine))
