"""The policy written out in the README is enough for the project's storage, and gives nothing outside of its
prefix.

The server checks actions and resources against the policy; it knows no conditions, so the one on ListBucket
is not tried here.
"""

import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator

import pytest

from tests.cluster.local_head import free_port
from tests.cluster.manifests import CLUSTER

ROOT = "s3://bucket/unlearning"


@pytest.fixture(scope="module")
def as_node() -> Iterator[None]:
    """An S3 server that knows one user, who has the policy; AWS_* make this process that user."""
    import boto3

    url = f"http://127.0.0.1:{free_port()}"
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", url.rsplit(":", 1)[1]]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    before = dict(os.environ)
    try:
        deadline = time.monotonic() + 60
        while True:
            try:
                urllib.request.urlopen(f"{url}/moto-api/data.json", timeout=5)
                break
            except OSError:
                assert server.poll() is None and time.monotonic() < deadline, "the S3 server did not come up"
                time.sleep(0.1)
        owner = {
            "endpoint_url": url,
            "aws_access_key_id": "owner",
            "aws_secret_access_key": "owner",
            "region_name": "us-east-1",
        }
        s3, iam = boto3.client("s3", **owner), boto3.client("iam", **owner)
        s3.create_bucket(Bucket="bucket")
        s3.put_object(Bucket="bucket", Key="others/secret", Body=b"x")
        policy = (
            (CLUSTER / "s3-policy.json")
            .read_text()
            .replace("BUCKET", "bucket")
            .replace("PREFIX", "unlearning")
        )
        iam.create_user(UserName="node")
        iam.put_user_policy(UserName="node", PolicyName="storage", PolicyDocument=policy)
        key = iam.create_access_key(UserName="node")["AccessKey"]
        urllib.request.urlopen(
            urllib.request.Request(
                f"{url}/moto-api/reset-auth", data=b"0", headers={"Content-Type": "text/plain"}
            )
        )  # from now on it checks
        os.environ.update(
            AWS_ENDPOINT_URL=url,
            AWS_ACCESS_KEY_ID=key["AccessKeyId"],
            AWS_SECRET_ACCESS_KEY=key["SecretAccessKey"],
            AWS_DEFAULT_REGION="us-east-1",
            UNLEARN_STORAGE_PATIENCE_S="1",
        )
        os.environ.pop("AWS_SESSION_TOKEN", None)
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
        server.kill()
        server.wait()


def test_it_is_enough(as_node: None) -> None:
    from pipeline import storage

    storage.require_writable(ROOT)
    assert not storage.exists(ROOT) and not storage.exists(f"{ROOT}/runs/first/result.json")
    storage.write_json(f"{ROOT}/runs/first/result.json", {"steps": 4})
    # large enough to go up in parts
    storage.write_bytes(f"{ROOT}/partitions/abc/retain/x.parquet", b"0" * (60 << 20))
    assert storage.read_json(f"{ROOT}/runs/first/result.json") == {"steps": 4}
    assert storage.read_range(f"{ROOT}/runs/first/result.json", 0, 1) == b"{"
    assert storage.listing(f"{ROOT}/runs") == ["first"] and storage.walk(f"{ROOT}/partitions") == [
        "abc/retain/x.parquet"
    ]
    fs, path = storage.filesystem(f"{ROOT}/runs/first/result.json")
    fs.rm_file(path)
    assert storage.listing(f"{ROOT}/runs") == []


def test_what_no_job_replaces_cannot_be_removed(as_node: None) -> None:
    from pipeline import storage

    for kept in (f"{ROOT}/evaluations/a.json", f"{ROOT}/mlartifacts/1/model.safetensors"):
        storage.write_bytes(kept, b"x")
        fs, path = storage.filesystem(kept)
        with pytest.raises(PermissionError):
            fs.rm_file(path)
        with pytest.raises(storage.StorageError, match="check that its policy allows to delete"):
            storage.remove(kept)


@pytest.mark.parametrize(
    "place", ["s3://bucket/others/secret", "s3://bucket/secret", "s3://bucket/unlearning-too/x"]
)
def test_it_gives_nothing_beside(as_node: None, place: str) -> None:
    from pipeline import storage
    from pipeline.errors import InputError

    for action in (lambda: storage.read_bytes(place), lambda: storage.write_bytes(place, b"mine")):
        with pytest.raises(InputError, match=r"access denied; check .* and the bucket's policy"):
            action()
