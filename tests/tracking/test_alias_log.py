"""The alias log: a chain of digests; no entry is changed, removed, replaced or put in between unseen."""

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from pipeline import storage
from pipeline.errors import InputError
from pipeline.tracking import alias_log
from pipeline.tracking.alias_log import Entry, LogError

MODEL = "chained"


def append(root: str, after: list[Entry], version: int) -> Entry:
    return alias_log.append(
        root,
        MODEL,
        after,
        action="promote",
        alias="champion",
        came_from=None,
        version=version,
        details={"override": None},
    )


@pytest.fixture(params=["local", "memory"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A storage root whose log has three entries."""
    root = str(tmp_path) if request.param == "local" else f"memory://{tmp_path.name}"
    for version in (1, 2, 3):
        append(root, alias_log.read(root, MODEL), version)
    return root


def entry_uri(root: str, number: int) -> str:
    return storage.join(alias_log.folder(root, MODEL), "log", alias_log.file_name(number))


def rewrite(root: str, place: int, **fields: Any) -> None:
    """Change fields of the file of the entry at `place` and nothing else in it."""
    uri = entry_uri(root, place)
    storage.write_json(uri, {**storage.read_json(uri), **fields})


def forged(root: str, place: int, **fields: Any) -> Entry:
    """The entry at `place` as somebody would write it who changed `fields` and knows how digests are made."""
    draft = replace(alias_log.read(root, MODEL)[place - 1], **fields)
    return replace(draft, digest=draft.computed_digest())


def test_each_entry_names_the_digest_of_the_one_before(root: str) -> None:
    entries = alias_log.read(root, MODEL)
    assert [entry.version for entry in entries] == [1, 2, 3]
    assert [entry.previous for entry in entries] == ["", entries[0].digest, entries[1].digest]


@pytest.mark.parametrize(
    "change",
    [
        {"number": 9},
        {"time": "2020-01-01T00:00:00+00:00"},
        {"action": "rollback"},
        {"alias": "candidate"},
        {"came_from": 7},
        {"version": 9},
        {"by": "someone@else"},
        {"previous": "0" * 64},
        {"details": {"override": "a reason"}},
    ],
    ids=lambda change: next(iter(change)),
)
def test_an_entrys_digest_covers_its_every_field(root: str, change: dict[str, Any]) -> None:
    entry = alias_log.read(root, MODEL)[1]
    assert set(asdict(entry)) == {"digest", "signature"} | {
        "number",
        "time",
        "action",
        "alias",
        "came_from",
        "version",
        "by",
        "previous",
        "details",
    }, "a new field needs a line here"
    assert replace(entry, **change).computed_digest() != entry.digest == entry.computed_digest()


def test_an_entry_replaced_by_one_of_the_right_digest_breaks_the_chain(root: str) -> None:
    rewrite(root, 2, **asdict(forged(root, 2, version=9)))
    with pytest.raises(LogError, match="entry 3 does not follow from entry 2: one of the two was replaced"):
        alias_log.read(root, MODEL)


def test_a_chain_cannot_be_mended_by_naming_the_new_digest_in_the_next_entry(root: str) -> None:
    """The next entry's own digest covers what it says of the one before: the rest of the log would have to be
    made anew, and the last digest is in MLflow."""
    entry = forged(root, 2, version=9)
    rewrite(root, 2, **asdict(entry))
    rewrite(root, 3, previous=entry.digest)
    with pytest.raises(LogError, match="entry 3 does not match its own digest"):
        alias_log.read(root, MODEL)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda root: storage.remove(entry_uri(root, 2)), "found entry 3, expected number 2"),
        (lambda root: storage.remove(entry_uri(root, 1)), "found entry 2, expected number 1"),
        (lambda root: rewrite(root, 1, previous="0" * 64), "entry 1 does not match its own digest"),
        (
            lambda root: rewrite(root, 1, **asdict(forged(root, 1, previous="0" * 64))),
            "entry 1 does not follow",
        ),
        (lambda root: rewrite(root, 3, extra=1), "not an entry of the alias log"),
        (
            lambda root: storage.write_bytes(entry_uri(root, 3), b'{"number": 3'),
            "not an entry of the alias log",
        ),
        (
            lambda root: storage.write_bytes(
                entry_uri(root, 1).replace("000001", "000001b"), storage.read_bytes(entry_uri(root, 1))
            ),
            "expected number 2: an entry was removed or put in between",
        ),
        (
            lambda root: (
                storage.write_bytes(
                    entry_uri(root, 3).replace("000003", "000004"), storage.read_bytes(entry_uri(root, 3))
                ),
                storage.remove(entry_uri(root, 3)),
            ),
            "000004.json: found entry 3, expected number 3",
        ),
    ],
    ids=[
        "one removed",
        "first removed",
        "edited",
        "first replaced",
        "field added",
        "cut short",
        "put in between",
        "renamed",
    ],
)
def test_a_damaged_log_is_refused(root: str, damage: Callable[[str], None], message: str) -> None:
    damage(root)
    with pytest.raises(LogError, match=message):
        alias_log.read(root, MODEL)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"version": "/../../../escaped"}, "version: Input should be a valid integer"),
        ({"version": "3"}, "version: Input should be a valid integer"),
        ({"version": 0}, "got version 0"),
        ({"details": None}, "details: Input should be"),
        ({"details": []}, "details: Input should be"),
        ({"alias": ["champion"]}, "alias: Input should be"),
        ({"alias": "production"}, "got alias 'production', expected candidate, champion or none"),
        ({"action": "approve"}, "got action 'approve'"),
        ({"action": "purge", "alias": "", "details": {"tombstone": "x"}}, "a purge without its request"),
        ({"details": {"certificate": [1]}}, "certificate is a list"),
        ({"signature": [1]}, "signature: Input should be"),
    ],
)
def test_an_entry_of_another_kind_is_refused_though_the_chain_holds(
    root: str, fields: dict[str, Any], message: str
) -> None:
    rewrite(root, 3, **asdict(forged(root, 3, **fields)))
    with pytest.raises(LogError, match=message):
        alias_log.read(root, MODEL)


def test_more_rollbacks_than_champions_are_forged(root: str) -> None:
    entries = alias_log.read(root, MODEL)
    for number in (4, 5, 6):
        draft = replace(
            entries[-1],
            number=number,
            action="rollback",
            version=6 - number or 1,
            previous=entries[-1].digest,
        )
        entry = replace(draft, digest=draft.computed_digest())
        storage.write_json(entry_uri(root, number), asdict(entry))
        if number < 6:
            entries = alias_log.read(root, MODEL)
    with pytest.raises(LogError, match="entry 6: rolls back where there is no champion to go back to"):
        alias_log.read(root, MODEL)


@pytest.mark.parametrize("text", ["[" * 100_000, '{"number": 3, "number": 3}', "[1]", ""])
def test_what_is_no_entry_is_named(root: str, text: str) -> None:
    storage.write_text(entry_uri(root, 3), text)
    with pytest.raises(LogError, match=r"000003.json: not an entry of the alias log"):
        alias_log.read(root, MODEL)


def test_whoever_saw_an_older_log_changes_nothing(root: str) -> None:
    seen = alias_log.read(root, MODEL)
    append(root, seen, 4)
    before = storage.read_bytes(entry_uri(root, 4))
    with pytest.raises(InputError, match=r"another change of an alias came first \(entry 4"):
        append(root, seen, 5)
    assert storage.read_bytes(entry_uri(root, 4)) == before and len(alias_log.read(root, MODEL)) == 4
    names = storage.listing(storage.join(alias_log.folder(root, MODEL), "log"))
    assert names == [alias_log.file_name(number) for number in (1, 2, 3, 4)], "no temporary file is left"


def test_an_object_stores_lost_answer_is_told_from_another_change(monkeypatch: pytest.MonkeyPatch) -> None:
    """The conditional put arrived, its answer did not: the second try finds the object, and it is ours."""
    uri = "memory://answers/log/000001.json"
    fs, _ = storage.filesystem(uri)
    put = type(fs).pipe_file

    def answer_lost(self: Any, path: str, data: bytes, **how: Any) -> None:
        put(self, path, data)
        raise FileExistsError(path)

    monkeypatch.setattr(type(fs), "pipe_file", answer_lost)
    assert storage.create(uri, json.dumps({"by": "us"}).encode())

    def another_came_first(self: Any, path: str, data: bytes, **how: Any) -> None:
        put(self, path, b"theirs")
        raise FileExistsError(path)

    monkeypatch.setattr(type(fs), "pipe_file", another_came_first)
    assert not storage.create(uri.replace("answers", "others"), b"ours")
