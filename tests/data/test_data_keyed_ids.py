"""Ids under a key are known again with it, and say nothing without it."""

import hmac
import stat
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path

import pytest

from pipeline.data.keyed_ids import IdKey, read_key
from pipeline.errors import InputError


def test_hashes_are_hmac_sha256_of_the_id() -> None:
    key = IdKey(b"k" * 32)
    assert key.hashed("digits-7") == hmac.new(b"k" * 32, b"sample id:digits-7", sha256).hexdigest()
    assert key.hashed("digits-7") != IdKey(b"j" * 32).hashed("digits-7")
    assert key.matches(["a", "b", "c"], [key.hashed("c"), key.hashed("a")]) == ["a", "c"]
    assert IdKey(b"j" * 32).matches(["a", "b", "c"], [key.hashed("a")]) == []
    assert "k" * 32 not in repr(key) and (b"k" * 32).hex() not in repr(key)


def test_the_key_of_a_storage_root_is_made_once_and_kept_from_others(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        keys = set(pool.map(lambda _: read_key(str(tmp_path)), range(16)))
    assert len(keys) == 1
    (file,) = (tmp_path / "requests").iterdir()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600 and len(file.read_text().strip()) == 64
    assert read_key(str(tmp_path)) in keys
    assert read_key(str(tmp_path / "other")) not in keys, "random"


def test_an_operators_key_file(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("0123456789abcdef\n")
    key = read_key(str(tmp_path / "root"), str(tmp_path / "key"))
    assert key == IdKey(b"0123456789abcdef") and not (tmp_path / "root").exists()
    (tmp_path / "short").write_text("0123456789abcde\n")
    with pytest.raises(InputError, match=r"short holds 15 bytes, expected at least 16; `openssl rand"):
        read_key(str(tmp_path), str(tmp_path / "short"))
    with pytest.raises(InputError, match=r"key file: got '.*missing', which is missing"):
        read_key(str(tmp_path), str(tmp_path / "missing"))


def test_another_key_is_refused_before_it_finds_nothing() -> None:
    key, other = IdKey(b"k" * 32), IdKey(b"j" * 32)
    key.require(key.name, "tombstones/case-1.json")
    with pytest.raises(
        InputError, match=rf"tombstones/case-1\.json: .* key {key.name}, got key {other.name}"
    ):
        other.require(key.name, "tombstones/case-1.json")
