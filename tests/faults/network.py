"""An address of its own for every node: network namespaces on a bridge, where this machine
lets us make them."""

import contextlib
import functools
import os
import shutil
import subprocess
from dataclasses import dataclass

NOTHING_THERE = 9  # a port where nothing listens: a connection is refused at once if the way there is open


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a node runs: what goes before its command, its address, and what its environment says of it."""

    before: tuple[str, ...] = ()
    address: str = "127.0.0.1"
    environment: tuple[tuple[str, str], ...] = ()


class Network:
    """Context. Hands out places; without the rights for namespaces they all are this machine's loopback."""

    def __init__(self) -> None:
        pid = os.getpid() & 0xFFFF
        self.bridge, self.net = f"un{pid:04x}", f"10.{pid >> 8}.{pid & 255}"
        self.names: list[str] = []
        self.real = _allowed()

    def __enter__(self) -> "Network":
        if self.real:
            _ip("link", "add", self.bridge, "type", "bridge")
            _ip("addr", "add", f"{self.net}.1/24", "dev", self.bridge)
            _ip("link", "set", self.bridge, "up")
            self.real = self._passes()
        return self

    def __exit__(self, *exception: object) -> None:
        for number, name in enumerate(self.names, start=2):
            with contextlib.suppress(subprocess.CalledProcessError):
                _ip("link", "delete", f"{self.bridge}v{number}")
                _ip("netns", "delete", name)
        if _allowed():
            with contextlib.suppress(subprocess.CalledProcessError):
                _ip("link", "delete", self.bridge)

    def place(self) -> Place:
        if not self.real:
            return Place()
        number = len(self.names) + 2
        name, outside = f"{self.bridge}-{number}", f"{self.bridge}v{number}"
        _ip("netns", "add", name)
        self.names.append(name)
        _ip("link", "add", outside, "type", "veth", "peer", "name", "eth0", "netns", name)
        _ip("link", "set", outside, "master", self.bridge, "up")
        _ip("-n", name, "addr", "add", f"{self.net}.{number}/24", "dev", "eth0")
        for device in ("lo", "eth0"):
            _ip("-n", name, "link", "set", device, "up")
        inside = ("nsenter", f"--net=/run/netns/{name}", "--")
        # gloo would ask for the address of the machine's name, which is none of the namespace's
        return Place(
            before=inside, address=f"{self.net}.{number}", environment=(("GLOO_SOCKET_IFNAME", "eth0"),)
        )

    def _passes(self) -> bool:
        """Whether one place reaches another: a firewall may look into bridges."""
        first, second = self.place(), self.place()
        knock = f"exec 3<>/dev/tcp/{second.address}/{NOTHING_THERE}"
        with contextlib.suppress(subprocess.TimeoutExpired):
            subprocess.run([*first.before, "bash", "-c", knock], capture_output=True, timeout=5, check=False)
            return True
        return False


@functools.cache
def _allowed() -> bool:
    if os.geteuid() != 0 or not all(map(shutil.which, ("ip", "nsenter", "bash"))):
        return False
    name = f"un-try-{os.getpid()}"
    try:
        _ip("netns", "add", name)
        _ip("netns", "delete", name)
    except subprocess.CalledProcessError:
        return False
    return True


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)
