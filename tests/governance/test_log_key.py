"""The alias log with the operator's key: whoever can write the folder moves no alias, and what only reads
moves none at all."""

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from tracking_samples import make_keys

from pipeline import storage
from pipeline.config import RegistryConfig, Tracking, parse
from pipeline.errors import InputError
from pipeline.governance import log_key, promotion, verification
from pipeline.tracking import alias_log
from pipeline.tracking.alias_log import Entry, LogError
from pipeline.tracking.mlflow_runs import client

NAME = "keyed"


@pytest.fixture
def keys(tmp_path: Path) -> tuple[str, str]:
    return make_keys(tmp_path, "key")


def config(root: str, name: str = NAME, **values: object) -> RegistryConfig:
    return parse(RegistryConfig, {"storage": root, "tracking": {"model_name": name}, **values})


def key_of(path: str) -> log_key.LogKey:
    key = log_key.of(parse(RegistryConfig, {"key": path}))
    assert key is not None
    return key


def log(root: str, key: str | None, *aliases: str, name: str = NAME) -> list[Entry]:
    """Entries that move `aliases`, one each; the key signs those that move champion."""
    for alias in aliases:
        entries = alias_log.read(root, name)
        signer = key_of(key) if key and alias == "champion" else None
        values = {"action": "promote", "alias": alias, "came_from": None, "version": len(entries) + 1}
        alias_log.append(root, name, entries, **values, authority=signer)
    return alias_log.read(root, name)


def write(root: str, entry: Entry, name: str = NAME) -> None:
    """As somebody would who writes the folder and knows how digests are made."""
    drafted = {**asdict(entry), "digest": entry.computed_digest()}
    values = {key: value for key, value in drafted.items() if key != "signature" or value is not None}
    uri = storage.join(alias_log.folder(root, name), "log", alias_log.file_name(entry.number))
    storage.write_json(uri, values)


def following(entries: list[Entry], **changes: Any) -> Entry:
    """A forged entry after `entries`, like their last."""
    last = asdict(entries[-1])
    return Entry(**{**last, "number": last["number"] + 1, "previous": last["digest"], **changes})


def test_what_the_key_did_not_sign_is_not_vouched_for(tmp_path: Path, keys: tuple[str, str]) -> None:
    root, key = str(tmp_path), key_of(keys[0])
    stranger = key_of(make_keys(tmp_path, "stranger")[0])
    entries = log(root, keys[0], "candidate", "champion", "candidate")
    key.require(NAME, entries)
    with pytest.raises(LogError, match="entry 2 moves champion to version 2 and is not signed by the key"):
        stranger.require(NAME, entries)
    with pytest.raises(LogError, match="entry 2"):
        key.require("another model", entries)
    with pytest.raises(InputError, match=r"key: got none, and the log of keyed is signed"):
        log(root, None, "champion")
    forged = following(entries, alias="champion", version=9, details={"model": NAME}, signature=None)
    theirs = {**asdict(forged), "digest": forged.computed_digest()}
    for signature, said in (
        (None, "entry 4 is not signed"),
        (entries[1].signature, "entry 4 moves champion to version 9"),
        (stranger.sign(NAME, theirs["digest"]), "entry 4 moves champion to version 9"),
        ({"sig": "?"}, "entry 4 moves champion to version 9"),
        ({"sig": 4}, "entry 4 moves champion to version 9"),
    ):
        write(root, Entry(**{**theirs, "signature": signature}))
        with pytest.raises(LogError, match=said):
            key.require(NAME, alias_log.read(root, NAME))


def test_a_signature_cannot_be_taken_off(tmp_path: Path, keys: tuple[str, str]) -> None:
    root = str(tmp_path)
    entries = log(root, keys[0], "champion")
    write(root, Entry(**{**asdict(entries[0]), "signature": None}))
    with pytest.raises(LogError, match="entry 1 is not signed, as the log says"):
        alias_log.read(root, NAME)


def test_a_public_key_reads_and_does_not_sign(tmp_path: Path, keys: tuple[str, str]) -> None:
    key = log_key.of(parse(RegistryConfig, {"public_key": keys[1]}))
    assert key is not None and log_key.of(parse(RegistryConfig, {})) is None
    key.require(NAME, log(str(tmp_path), keys[0], "champion"))
    with pytest.raises(InputError, match="expected the private key"):
        key.sign(NAME, "0" * 64)


def test_a_log_of_before_is_signed_once_and_a_forged_entry_is_never_carried_out(
    root: str, register_run: Callable[..., int], keys: tuple[str, str]
) -> None:
    name = "adopted"
    for run_id in ("adopted-1", "adopted-22"):
        register_run(name, run_id)
    mlflow = client(Tracking(model_name=name), root)
    promotion.promote(config(root, name, version=1))
    signed = {"key": keys[0]}
    for use in (promotion.promote, promotion.rollback, promotion.history, verification.verify):
        with pytest.raises(
            LogError, match=r"entry 3 moves champion .* jobs/registry\.py sign --config .* vouches"
        ):
            use(config(root, name, **signed))
    loose, entry = promotion.sign(config(root, name, **signed), dry_run=True)
    assert [one.number for one in loose] == [3] and entry is None
    promotion.sign(config(root, name, **signed))
    promotion.promote(config(root, name, version=2, **signed))
    assert "the key that was given vouches for it" in verification.verify(config(root, name, **signed))[1]

    entries = alias_log.read(root, name)
    assert [one.action for one in entries] == ["register", "register", "promote", "sign", "promote"]
    write(root, following(entries, version=1, details={"model": name}, signature={"sig": ""}), name)
    for use in (promotion.promote, promotion.rollback, promotion.history, verification.verify):
        with pytest.raises(
            LogError, match="entry 6 moves champion to version 1 and is not signed by the key"
        ):
            use(config(root, name, **signed))
    # neither reading, nor noting, nor registering carries it out, and none of them has the key
    assert [one.number for one in promotion.history(config(root, name)).pending] == [6]
    alias_log.note(mlflow, root, name, action="audit", version=1, details={"labels": [1]})
    register_run(name, "adopted-333")
    assert alias_log.current(mlflow, name, "champion") == 2


def test_a_certificate_without_a_signature_after_signed_ones_is_warned_of() -> None:
    def issued(number: int, version: int, *signatures: object) -> Entry:
        certificate = {"payload": "", "payloadType": "", "signatures": list(signatures)}
        return Entry(
            number=number,
            action="promote",
            version=version,
            alias="champion",
            came_from=None,
            time="",
            by="",
            previous="",
            details={"certificate": certificate},
        )

    entries = [issued(1, 1, {"sig": "x"}), issued(2, 2)]
    assert "version 2 is unsigned, that of version 1 (entry 1)" in str(
        log_key.unsigned_after_signed(entries, 2)
    )
    assert log_key.unsigned_after_signed(entries, 1) is None
    assert log_key.unsigned_after_signed([*entries, issued(3, 2, {"sig": "y"})], 2) is None
    assert log_key.unsigned_after_signed(entries[1:], 2) is None
