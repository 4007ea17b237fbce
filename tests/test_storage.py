"""Files by URI on local disk, in memory and on a real S3 server process, healthy and not."""

import http.client
import importlib.util
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import aiohttp
import botocore.exceptions
import pytest
import s3_servers

from pipeline import retries, storage
from pipeline.errors import InputError


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[s3_servers.Rclone]:
    with s3_servers.serving(tmp_path_factory.mktemp("s3")) as server:
        yield server


@pytest.fixture
def proxy(server: s3_servers.Rclone) -> Iterator[s3_servers.Proxy]:
    with s3_servers.proxied(server) as proxy:
        yield proxy


@pytest.fixture(params=["local", "memory", "s3"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "local":
        return str(tmp_path / "root")
    if request.param == "memory":
        return f"memory://{tmp_path.name}"
    request.getfixturevalue("proxy")
    return f"s3://bucket/{tmp_path.name}"


def test_round_trip(root: str, tmp_path: Path) -> None:
    uri = storage.join(root, "a/b.bin")
    assert (
        not storage.exists(uri)
        and not storage.exists(root)
        and storage.listing(root) == [] == storage.walk(root)
    )
    storage.write_bytes(uri, b"one")
    storage.write_bytes(uri, b"0123456789")
    storage.write_json(storage.join(root, "c.json"), {"x": [1, 2.5]})
    assert storage.exists(uri) and storage.exists(storage.join(root, "a")) and storage.size(uri) == 10
    assert storage.read_bytes(uri) == b"0123456789" and storage.read_range(uri, 3, 6) == b"345"
    assert storage.read_json(storage.join(root, "c.json")) == {"x": [1, 2.5]}
    assert storage.listing(root) == ["a", "c.json"] and storage.walk(root) == ["a/b.bin", "c.json"]
    storage.download(uri, tmp_path / "got.bin")
    storage.upload(tmp_path / "got.bin", storage.join(root, "up.bin"))
    assert storage.read_bytes(storage.join(root, "up.bin")) == b"0123456789"
    storage.require_writable(root)
    assert storage.walk(root) == ["a/b.bin", "c.json", "up.bin"]
    storage.remove(storage.join(root, "a"))
    storage.remove(storage.join(root, "never-there"))
    assert storage.walk(root) == ["c.json", "up.bin"]


def test_a_missing_object_is_missing_at_once(root: str) -> None:
    start = time.monotonic()
    with pytest.raises(FileNotFoundError):
        storage.read_bytes(storage.join(root, "nothing"))
    assert time.monotonic() - start < 5


def test_a_file_that_ends_early_is_named(root: str) -> None:
    uri = storage.join(root, "short")
    storage.write_bytes(uri, b"abc")
    with pytest.raises(storage.StorageError, match=r"short ends early: got 2 bytes from 1, expected 9"):
        storage.read_range(uri, 1, 10)


def test_a_failed_local_write_leaves_the_old_file_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage.write_bytes(str(tmp_path / "x"), b"old")

    def broken(self: Path, target: Path) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(Path, "replace", broken)
    with pytest.raises(OSError, match="disk full"):
        storage.write_bytes(str(tmp_path / "x"), b"new")
    assert [path.name for path in tmp_path.iterdir()] == ["x"] and (tmp_path / "x").read_bytes() == b"old"


@pytest.mark.parametrize(
    ("fault", "operation"),
    [
        ("503", "read"),
        ("503", "write"),
        ("503", "exists"),
        ("503", "list"),
        ("reset", "read"),
        ("reset", "write"),
        ("truncate", "read"),
    ],
)
def test_passing_faults_are_waited_out(proxy: s3_servers.Proxy, fault: str, operation: str) -> None:
    data = bytes(range(256)) * 400
    uri = "s3://bucket/faulty/object"
    storage.write_bytes(uri, data)
    calls = {
        "read": lambda: storage.read_bytes(uri),
        "write": lambda: storage.write_bytes(uri, data[::-1]),
        "exists": lambda: storage.exists(uri),
        "list": lambda: storage.listing("s3://bucket/faulty"),
    }
    proxy.misbehave(fault, fault)
    result = calls[operation]()
    assert not proxy.faults and proxy.served.count(fault) == 2, "the faults were met"
    assert result == {"read": data, "write": None, "exists": True, "list": ["object"]}[operation]
    assert storage.read_bytes(uri) == (data[::-1] if operation == "write" else data)


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds that a call waited between its tries, none of them really."""
    waited: list[float] = []
    monkeypatch.setattr(time, "sleep", waited.append)
    return waited


def failing(*errors: Exception) -> tuple[Callable[[], str], list[Exception]]:
    """A call on a store that raises one error after the other, then answers; and those not raised yet."""
    left = list(errors)

    def call() -> str:
        if left:
            raise left.pop(0)
        return "answer"

    return call, left


PASSING = [
    OSError(5, "Please reduce your request rate"),  # how s3fs reports 5xx
    TimeoutError("no answer"),
    ConnectionResetError("reset by peer"),
    EOFError("the body ended early"),
    http.client.IncompleteRead(b""),
    aiohttp.ServerDisconnectedError(),
    botocore.exceptions.ReadTimeoutError(endpoint_url="http://s3"),
    botocore.exceptions.EndpointConnectionError(endpoint_url="http://s3"),
]
PROGRAMMING = [
    TypeError("got an unexpected keyword argument"),
    KeyError("ETag"),
    ValueError("start is after end"),
    AttributeError("None has no attribute read"),
    AssertionError("our own invariant"),
    RuntimeError("cannot schedule new futures after shutdown"),
    ZeroDivisionError("division by zero"),
    botocore.exceptions.ParamValidationError(report="Bucket is no string"),
]
FINAL = [
    FileNotFoundError("no such object"),
    FileExistsError("somebody was first"),
    IsADirectoryError("a folder"),
    NotADirectoryError("below a file"),
    storage.StorageError("could not read s3://bucket/x: gave up"),
]


def kind(error: Exception) -> str:
    return type(error).__name__


@pytest.mark.parametrize("error", PASSING, ids=kind)
def test_a_fault_of_an_object_store_is_waited_out(error: Exception, pauses: list[float]) -> None:
    call, left = failing(error, error, error)
    assert storage.retrying("s3://bucket/x", "read", call) == "answer"
    assert not left and len(pauses) == 3 and pauses[0] < pauses[1] < pauses[2], "longer each time"


@pytest.mark.parametrize("error", [*PROGRAMMING, *FINAL], ids=kind)
def test_what_is_no_passing_fault_surfaces_at_once(error: Exception, pauses: list[float]) -> None:
    """Least of all a programming error: two minutes of patience would look like a store that is away."""
    call, left = failing(error, error)
    with pytest.raises(type(error)) as raised:
        storage.retrying("s3://bucket/x", "read", call)
    assert raised.value is error and len(left) == 1 and pauses == []


@pytest.mark.parametrize("error", [*PASSING, *PROGRAMMING, *FINAL], ids=kind)
def test_on_a_local_disk_every_error_is_final(error: Exception, pauses: list[float]) -> None:
    call, left = failing(error, error)
    with pytest.raises(type(error)) as raised:
        storage.retrying("/data/x", "read", call)
    assert raised.value is error and len(left) == 1 and pauses == []


def test_pauses_grow_to_ten_seconds_and_end_with_patience(
    pauses: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter([0.0, *range(0, 1000, 10)])
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    call, left = failing(*[OSError("busy")] * 100)
    with pytest.raises(
        storage.StorageError, match=r"could not read s3://b/x: gave up after \d+ tries"
    ) as raised:
        storage.retrying("s3://b/x", "read", call)
    assert isinstance(raised.value.__cause__, OSError) and 10 <= 100 - len(left) <= 14
    assert 5 <= max(pauses) <= retries.LONGEST_PAUSE_S


def test_absence_is_told_from_a_store_that_is_away(
    pauses: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """`exists` may never say no of a store that does not answer: a run would begin over what is there."""
    monkeypatch.setenv("UNLEARN_STORAGE_PATIENCE_S", "0")
    fs, _ = storage.filesystem("memory://away/x")
    for error, expected in ((OSError("busy"), storage.StorageError), (RuntimeError("broken"), RuntimeError)):

        def info(self: object, path: str, error: Exception = error, **how: object) -> None:
            raise error

        monkeypatch.setattr(type(fs), "info", info)
        with pytest.raises(expected):
            storage.exists("memory://away/x")


def test_a_server_that_comes_back(proxy: s3_servers.Proxy, server: s3_servers.Rclone) -> None:
    storage.write_bytes("s3://bucket/kept", b"kept")
    server.stop()
    returning = threading.Timer(3, server.start)
    returning.start()
    assert storage.read_bytes("s3://bucket/kept") == b"kept"
    returning.join()


def test_nobody_at_the_address_until_the_server_starts(tmp_path: Path) -> None:
    (tmp_path / "bucket").mkdir()
    server = s3_servers.Rclone(tmp_path)
    with s3_servers.environment(server.port):
        starting = threading.Timer(2, server.start)
        starting.start()
        storage.write_bytes("s3://bucket/late", b"late")
        starting.join()
    server.stop()
    assert (tmp_path / "bucket/late").read_bytes() == b"late"


def test_patience_ends_with_the_objects_name(
    proxy: s3_servers.Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UNLEARN_STORAGE_PATIENCE_S", "1")
    proxy.misbehave(*["503"] * 500)
    with pytest.raises(
        storage.StorageError, match=r"could not read s3://bucket/busy: gave up after \d+ tries"
    ):
        storage.read_bytes("s3://bucket/busy")
    proxy.faults.clear()


def test_refused_credentials_name_the_variable(server: s3_servers.Rclone) -> None:
    with (
        s3_servers.environment(server.port, secret="wrong"),
        pytest.raises(InputError, match="AWS_SECRET_ACCESS_KEY"),
    ):
        storage.write_bytes("s3://bucket/x", b"")


@pytest.mark.parametrize("where", ["source.uri", "storage"])
def test_a_preparation_with_refused_credentials_is_bad_input(
    server: s3_servers.Rclone, tmp_path: Path, where: str, capsys
) -> None:
    """One line that names the variable, exit code 2, nothing written."""
    from pipeline.config import PrepareConfig
    from pipeline.data import ingest_ray
    from pipeline.runtime import command_line

    settings = {
        "storage": str(tmp_path / "runs"),
        "source": {"kind": "imagefolder", "uri": "s3://bucket/images"},
    }
    if where == "storage":
        settings = {"storage": "s3://bucket/runs", "prepare": {"size": 8, "channels": 1}}
    storage.write_json(str(tmp_path / "prepare.yaml"), settings)  # JSON is YAML
    with s3_servers.environment(server.port, secret="wrong"):
        code = command_line.main(
            PrepareConfig,
            lambda config, dry: ingest_ray.prepare(config),
            "",
            ["--config", str(tmp_path / "prepare.yaml")],
        )
    said = capsys.readouterr()
    assert (code, said.err.count("\n")) == (2, 1) and "AWS_SECRET_ACCESS_KEY" in said.err, said.err
    assert not (tmp_path / "runs").exists() and not list(server.folder.glob("bucket/runs/**/manifest.json"))


def test_no_credentials_name_the_variables(
    server: s3_servers.Rclone, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with s3_servers.environment(server.port):
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            monkeypatch.delenv(name)
        monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
        monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        with pytest.raises(
            InputError, match="no credentials; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        ):
            storage.write_bytes("s3://bucket/x", b"")


def test_unwritable_storage_is_bad_input(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"cannot be written .*--set storage="):
        storage.require_writable(str(tmp_path / "file" / "below"))


def test_looking_whether_storage_can_be_written_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    for root in ("there", "not/there/yet"):
        storage.require_writable(str(tmp_path / root))
    assert [path.name for path in tmp_path.rglob("*")] == ["there"]


def test_a_digest_is_of_the_value_however_it_was_written_down() -> None:
    """Content addresses: recorded, since another digest would be another partition, certificate or log."""
    digest = "cda39ebe94c15113e73084598895aedb2b9f10e0acc2062a497a742969aae982"
    value = {"b": [1, 2.5, None], "a": {"y": "\u00e9", "x": True}}
    assert storage.digest_of(value) == digest
    assert storage.digest_of({"a": {"x": True, "y": "\u00e9"}, "b": [1, 2.5, None]}) == digest
    assert storage.digest_of({"b": [2.5, 1, None], "a": value["a"]}) != digest
    with pytest.raises(ValueError, match="Out of range float"):
        storage.digest_of({"a": float("nan")})


def test_what_is_no_json_is_not_written(root: str) -> None:
    for number in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match="Out of range float"):
            storage.write_json(storage.join(root, "x.json"), {"a": number})
    assert not storage.exists(storage.join(root, "x.json"))


def test_a_folders_own_marker_is_not_in_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Some stores keep an object of the folder's own name, and list it."""
    storage.write_bytes("memory://marked/folder/a", b"")
    fs, path = storage.filesystem("memory://marked/folder")
    listed = [path + "/", path + "/a"]
    monkeypatch.setattr(type(fs), "ls", lambda self, path, detail: listed)
    monkeypatch.setattr(type(fs), "find", lambda self, path: listed)
    assert storage.listing("memory://marked/folder") == storage.walk("memory://marked/folder") == ["a"]


def test_what_a_store_will_not_delete_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    storage.write_bytes("memory://locked/folder/a", b"")
    fs, _ = storage.filesystem("memory://locked/folder")
    with monkeypatch.context() as patch:
        patch.setattr(type(fs), "rm", lambda self, path, recursive: None)
        for uri in ("memory://locked/folder", "memory://locked/folder/a"):
            with pytest.raises(
                storage.StorageError, match=f"could not remove {uri}: the store keeps 1 objects"
            ):
                storage.remove(uri)
    storage.remove("memory://locked/folder")
    assert not storage.exists("memory://locked/folder")


@pytest.mark.parametrize(
    ("uri", "right"),
    [
        ("file:///tmp/x/", "/tmp/x"),
        ("file:/tmp/x", "/tmp/x"),
        ("file://localhost/tmp/a%20b", "/tmp/a b"),
        ("FILE:///tmp/x", "/tmp/x"),
        ("/tmp/a%20b?c", "/tmp/a%20b?c"),
        ("S3://bucket/x/", "s3://bucket/x"),
        ("s3a://bucket/x", "s3://bucket/x"),
        ("local:///tmp/x", "/tmp/x"),
        ("s3://bucket/a%20b*c", "s3://bucket/a%20b*c"),
        ("memory://x", "memory://x"),
        ("https://host/x?signature=1", "https://host/x?signature=1"),
    ],
)
def test_what_a_uri_means(uri: str, right: str) -> None:
    assert storage.absolute(uri) == right


@pytest.mark.parametrize(
    ("uri", "said"),
    [
        ("s3://", "is a variable in it empty"),
        ("s3:///x", "is a variable in it empty"),
        ("S3://", "is a variable in it empty"),
        ("s3:/bucket/x", "expected s3://<bucket>/<path>"),
        ("gs://bucket/x", "gcsfs"),
        ("nosuch://bucket/x", "scheme 'nosuch' is not known"),
        ("file://server/x", "expected file:///<absolute path>"),
        ("file://", "expected file:///<absolute path>"),
        ("s3://bucket/x?versionId=1", r"without \?, # and ::"),
        ("simplecache::s3://bucket/x", "expected a folder or <scheme>://"),
        ("://x", "expected a folder or <scheme>://"),
        ("s3:bucket/x", "expected a folder or <scheme>://"),
        ("C:\\runs", "expected a folder or <scheme>://"),
        (" ", "expected a folder or <scheme>://"),
        ("/tmp/a\0b", "expected a folder or <scheme>://"),
        ("s3://bucket/x\n", "expected a folder or <scheme>://"),
        ("~nobody-of-that-name/x", "which leads nowhere"),
        ("memory::memory://x", "expected a folder or <scheme>://"),
    ],
)
def test_what_is_no_uri_is_refused(uri: str, said: str) -> None:
    if "gcsfs" in said and importlib.util.find_spec("gcsfs"):
        pytest.skip("gcsfs is installed")
    with pytest.raises(InputError, match=said):
        storage.absolute(uri)


def test_the_environments_settings_are_read_or_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "127.0.0.1:9000")
    with pytest.raises(InputError, match=r"with AWS_ENDPOINT_URL='127\.0\.0\.1:9000', expected http://"):
        storage.absolute("s3://bucket/x")
    for patience in ("2m", "nan", "-1", "inf"):
        monkeypatch.setenv("UNLEARN_STORAGE_PATIENCE_S", patience)
        with pytest.raises(InputError, match=f"got '{patience}', expected seconds"):
            storage.exists("memory://x/y")


def test_only_what_is_under_a_key_is_removed(root: str) -> None:
    for name in ("a*/1", "ab/1", "a?/1", "a[b]/1", "a*"[:1] + "/1"):
        storage.write_bytes(storage.join(root, name), b"x")
    for name in ("a*", "a?", "a[b]"):
        storage.remove(storage.join(root, name))
    assert storage.walk(root) == ["a/1", "ab/1"]


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\0" * 64,
        b'{"a": ',
        b"\xff\xfe",
        b"[]",
        b"null",
        b'"text"',
        b"[" * 99_999,
        b'{"a": NaN}',
        b'{"a": -Infinity}',
        b'{"a": 1, "a": 2}',
    ],
)
def test_a_damaged_file_is_named(tmp_path: Path, data: bytes) -> None:
    file = tmp_path / "state.json"
    file.write_bytes(data)
    with pytest.raises(InputError, match=r"state\.json: .*restore it, or remove it"):
        storage.read_json(str(file))


@pytest.mark.parametrize("data", [b"", b"\0" * 64, b"a: [1", b"\xff\xfe\x00", b"- 1", b"text", b"[" * 9999])
def test_damaged_settings_are_named(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "config.yaml").write_bytes(data)
    with pytest.raises(InputError, match=r"config\.yaml: .*restore it, or remove it"):
        storage.read_yaml(f"{tmp_path}/config.yaml")


@pytest.mark.parametrize(
    ("endpoint", "is_one"),
    [("http://[::1", False), ("h:9", False), ("http://h:99999", False), ("HTTP://h:9", True)],
)
def test_endpoints(endpoint: str, is_one: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    if is_one:
        assert storage.absolute("s3://b/x") == "s3://b/x"
    else:
        with pytest.raises(InputError, match="expected http://<host>:<port>"):
            storage.absolute("s3://b/x")
