"""An S3 server process (rclone) and a proxy before it that can misbehave on demand."""

import contextlib
import os
import socket
import struct
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections import deque
from collections.abc import Iterator
from pathlib import Path

import fsspec

KEY, SECRET = "test-key", "test-secret"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Rclone:
    """`rclone serve s3` on a folder: real files, real signatures. Buckets are the folder's subfolders."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.port = folder, free_port()
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        program = Path(sys.executable).parent / "rclone"
        arguments = [
            "serve",
            "s3",
            str(self.folder),
            "--addr",
            f"127.0.0.1:{self.port}",
            "--auth-key",
            f"{KEY},{SECRET}",
        ]
        more = [
            "--config",
            os.devnull,
            "--vfs-cache-mode",
            "off",
            "--dir-cache-time",
            "1s",
            "--log-level",
            "ERROR",
        ]
        self.process = subprocess.Popen([str(program), *arguments, *more], stderr=subprocess.DEVNULL)
        for _ in range(400):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{self.port}/", timeout=5)
            except urllib.error.HTTPError:
                return  # it answers (and refuses the anonymous)
            except OSError:
                time.sleep(0.05)
            else:
                return
        raise RuntimeError("rclone did not come up")

    def stop(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None


class Proxy:
    """Passes connections on to `target`, except the next ones after `misbehave`: each of those gets the next
    fault.

    Faults: "503" (answers so), "reset" (closes hard), "truncate" (cuts the answer's body short), "late"
    (answers nothing, then resets).
    """

    def __init__(self, target: int) -> None:
        self.target, self.port = target, free_port()
        self.faults: deque[str] = deque()
        self.served: list[str] = []
        self.live: set[socket.socket] = set()
        self.listener = socket.create_server(("127.0.0.1", self.port))
        threading.Thread(target=self._accept, daemon=True).start()

    def misbehave(self, *faults: str) -> None:
        self.faults.extend(faults)
        for connection in list(self.live):  # kept-alive connections would never see the fault
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self.misbehave()
        self.listener.close()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self.listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        fault = self.faults.popleft() if self.faults else None
        self.served.append(fault or "ok")
        with contextlib.suppress(OSError), connection:
            if fault == "503":
                connection.recv(65536)
                connection.sendall(
                    b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
                )
                return
            if fault == "reset":
                connection.recv(65536)
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                return
            with socket.create_connection(("127.0.0.1", self.target)) as upstream:
                self.live.add(connection)
                try:
                    back = threading.Thread(
                        target=self._pump, args=(upstream, connection, fault == "truncate"), daemon=True
                    )
                    back.start()
                    self._pump(connection, upstream, False)
                    back.join()
                finally:
                    self.live.discard(connection)

    @staticmethod
    def _pump(source: socket.socket, sink: socket.socket, truncate: bool) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                if truncate and b"\r\n\r\n" in data:
                    head, _, body = data.partition(b"\r\n\r\n")
                    sink.sendall(head + b"\r\n\r\n" + body[: len(body) // 2])
                    break
                sink.sendall(data)
        for end in (source, sink):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


@contextlib.contextmanager
def serving(folder: Path) -> Iterator[Rclone]:
    """A running server on `folder` with an empty bucket named `bucket`."""
    (folder / "bucket").mkdir(parents=True)
    server = Rclone(folder)
    server.start()
    try:
        yield server
    finally:
        server.stop()


@contextlib.contextmanager
def proxied(server: Rclone) -> Iterator[Proxy]:
    """A proxy before `server`, with AWS_* pointing at it."""
    proxy = Proxy(server.port)
    try:
        with environment(proxy.port):
            yield proxy
    finally:
        proxy.close()


@contextlib.contextmanager
def environment(port: int, secret: str = SECRET) -> Iterator[None]:
    """AWS_* pointing at the server on `port`. Clients are forgotten on the way in and out."""
    values = {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ACCESS_KEY_ID": KEY,
        "AWS_SECRET_ACCESS_KEY": secret,
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    forget_clients()
    try:
        yield
    finally:
        forget_clients()
        for name, value in before.items():
            os.environ.pop(name, None) if value is None else os.environ.update({name: value})


def forget_clients() -> None:
    """fsspec keeps filesystems by their arguments and MLflow keeps a client of S3 for five minutes by its
    credentials: neither looks at AWS_ENDPOINT_URL, and the next module's server would never be asked."""
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    if "mlflow" in sys.modules:
        from mlflow.store.artifact import s3_artifact_repo

        s3_artifact_repo._cached_get_s3_client.cache_clear()
