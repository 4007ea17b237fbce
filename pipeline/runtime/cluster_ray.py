"""Ray, started or joined once per process, quietly."""

import contextlib
import logging
import math
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray

from pipeline import storage
from pipeline.errors import InputError
from pipeline.runtime import compat_ray
from pipeline.runtime.startup_timeline import mark
from pipeline.storage import StorageError

if TYPE_CHECKING:
    from pipeline.config import TrainWorkers

CHECKOUT = str(Path(__file__).resolve().parents[2])
ANSWER_S = 10.0  # for which a head is waited for
# how a gRPC client begins, and the type of the frame that every gRPC server answers with (RFC 9113, 3.4)
HTTP2, HTTP2_SETTINGS = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes((0, 0, 0, 4, 0, 0, 0, 0, 0)), b"\x04"
PRELOADED = "pipeline.training.preload_ray"
# Ray starts a process for each of them; on a larger machine those would fill its memory, and there the
# workers' own imports find idle cores
PRELOADING_CPUS = 8
START_TRIES = 3  # of a local cluster
SAY_EVERY_S = 30.0  # while waiting for resources


def cpus_for(train: "TrainWorkers") -> int:
    """Logical CPUs of a local cluster for these workers and Ray Data; as many as the machine has at least."""
    return max(os.cpu_count() or 1, math.ceil(train.most * train.cpus_per_worker) + 1)


def connect(cpus: int | None = None, *, dashboard: bool = False, training: bool = False) -> None:
    """Join the cluster of RAY_ADDRESS (a submitted job has it), or start a local one with `cpus` logical CPUs
    (None: the machine's). Another that runs on the machine, or did, is left alone.

    Does nothing when this process is connected already. Workers import this checkout and use one BLAS thread
    each; those of a local one for `training` import what that needs as they start, before they are asked to.
    """
    if ray.is_initialized():
        return
    mark("checked")
    quietly: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    threads = {"OMP_NUM_THREADS": "1"}
    handler = signal.getsignal(signal.SIGTERM)
    if address := os.environ.get("RAY_ADDRESS"):  # the submitted working directory holds the code there
        _require_answer(address)
        try:
            ray.init(runtime_env={"env_vars": threads}, **quietly)
        except ConnectionError as error:  # auto, and there is none; or what answers is no head
            raise InputError(_no_head(address, " ".join(str(error).split())[:200])) from error
    else:
        inherited = [
            path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path and path != CHECKOUT
        ]
        imports = {"PYTHONPATH": os.pathsep.join([CHECKOUT, *inherited]), "RAY_USAGE_STATS_ENABLED": "0"}
        if training and (cpus or os.cpu_count() or 1) <= PRELOADING_CPUS:
            imports |= {compat_ray.PRELOAD: PRELOADED}
        # inherited by the cluster; a runtime_env would cost every worker seconds more
        with _environment(threads | imports), compat_ray.without_helpers(dashboard=dashboard):
            _start(num_cpus=cpus, include_dashboard=dashboard, **quietly)
    if callable(handler) and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, handler)  # Ray sets one of its own
    compat_ray.quiet_data()
    mark("connected")


def _start(**options: Any) -> None:
    """A local cluster, tried a few times: Ray gives its own processes 30 s, which on a busy machine is not
    always enough."""
    for tries_left in reversed(range(START_TRIES)):
        try:
            ray.init(address="local", **options)
            compat_ray.keep_private()
            return
        except Exception as error:
            if not tries_left or "timed out during startup" not in str(error):
                raise
            ray.shutdown()


def _require_answer(address: str) -> None:
    """Raise `InputError` at once where nobody answers at `address`; Ray itself would wait for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not port.isdecimal():  # auto, local
        return
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=ANSWER_S) as connection:
            if os.environ.get("RAY_USE_TLS", "0") == "0":
                connection.sendall(HTTP2)
                if connection.recv(4)[3:] != HTTP2_SETTINGS:
                    raise OSError("what listens there does not speak gRPC")
    except OSError as error:
        raise InputError(_no_head(address, str(error))) from error


def _no_head(address: str, reason: str) -> str:
    return (
        f"RAY_ADDRESS: no Ray head answers at {address} ({reason}); expected a running cluster's address,"
        " or the variable unset for a cluster of this machine's own"
    )


@contextlib.contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    """`values` in this process's environment for a while."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextlib.contextmanager
def plain_errors() -> Iterator[None]:
    """Within it, bad input and failing storage met by a task come as themselves, in one line; Ray makes its
    traceback their message."""
    try:
        yield
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, InputError | StorageError):
            raise error.cause from None
        raise


def wait_for(
    bundle: Mapping[str, float],
    fewest: int,
    most: int,
    *,
    wait_s: float,
    labels: Mapping[str, str] | None = None,
) -> None:
    """Return once the nodes that are alive and that the selector `labels` admits have room for `fewest`
    workers of `bundle` each; an autoscaler is asked for `most`.

    Says what is missing and that it waits. A cluster of this process's own never grows, so there it is
    `InputError` at once;
    `RuntimeError` after `wait_s`.
    """
    labels = labels or {}
    if _room(bundle, labels) >= fewest:
        return
    if not os.environ.get("RAY_ADDRESS"):
        raise InputError(
            f"{_missing(bundle, fewest, labels)}; ask for less, or set RAY_ADDRESS to a cluster that has it"
        )
    from ray.autoscaler.sdk import request_resources

    began = last_line = time.monotonic()
    print(f"  {_missing(bundle, fewest, labels)}; waiting up to {wait_s:.0f} s (train.wait_s)", flush=True)
    request_resources(
        bundles=[dict(bundle)] * most, bundle_label_selectors=[dict(labels)] * most if labels else None
    )
    try:
        while _room(bundle, labels) < fewest:
            now = time.monotonic()
            if now - began >= wait_s:
                raise RuntimeError(
                    f"{_missing(bundle, fewest, labels)}; gave up after {wait_s:.0f} s. The run goes on when"
                    " it is submitted again"
                )
            if now - last_line >= SAY_EVERY_S:
                last_line = now
                print(f"  {_missing(bundle, fewest, labels)}; still waiting", flush=True)
            time.sleep(min(1.0, wait_s))
    finally:
        request_resources(bundles=[])


def admits(selector: Mapping[str, str], labels: Mapping[str, str]) -> bool:
    """Whether a node with these labels is one that Ray's label selector means."""
    for key, wanted in selector.items():
        negated, text = wanted.startswith("!"), wanted.removeprefix("!")
        values = text[3:-1].split(",") if text.startswith("in(") and text.endswith(")") else [text]
        if (labels.get(key) in [value.strip() for value in values]) == negated:
            return False
    return True


def _nodes(labels: Mapping[str, str]) -> list[dict[str, float]]:
    """The resources of the nodes that are alive and that the selector admits."""
    return [
        node["Resources"]
        for node in ray.nodes()
        if node["Alive"] and admits(labels, node.get("Labels") or {})
    ]


def _room(bundle: Mapping[str, float], labels: Mapping[str, str]) -> int:
    """How many workers of `bundle` those nodes could hold if they were empty."""
    nodes = _nodes(labels)
    return int(
        sum(
            min((node.get(name, 0.0) + 1e-9) // amount for name, amount in bundle.items() if amount > 0)
            for node in nodes
        )
    )


def _missing(bundle: Mapping[str, float], count: int, labels: Mapping[str, str]) -> str:
    nodes = _nodes(labels)
    of_labels = f" with labels {dict(labels)} (train.label_selector)" if labels else ""
    have = {name: sum(node.get(name, 0.0) for node in nodes) for name in bundle}
    each = ", ".join(f"{amount:g} {name}" for name, amount in bundle.items())
    short = [
        f"{amount * count - have[name]:g} {name}"
        for name, amount in bundle.items()
        if have[name] < amount * count
    ]
    return (
        f"train.workers: the cluster has room for {_room(bundle, labels)} of {count} workers ({each} each);"
        f" its {len(nodes)} nodes{of_labels} have"
        f" {', '.join(f'{amount:g} {name}' for name, amount in have.items())}"
        + (f", missing {', '.join(short)}" if short else ", but no node enough of them together")
    )


def require_shared(uri: str) -> None:
    """Raise `InputError` when `uri` is a local path that some node of this cluster does not share with this
    process."""
    here = ray.get_runtime_context().get_node_id()
    others = [node for node in ray.nodes() if node["Alive"] and node["NodeID"] != here]
    if not storage.is_local(uri) or not others:
        return
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    probe = storage.join(uri, f".shared-{os.getpid()}")
    storage.write_text(probe, "")
    look = ray.remote(num_cpus=0)(os.path.exists)
    try:
        references = [
            look.options(
                scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            ).remote(probe)
            for node in others
        ]
        answers = ray.get(references)
    finally:
        storage.remove(probe)
    blind = [node["NodeManagerHostname"] for node, sees in zip(others, answers, strict=True) if not sees]
    if blind:
        raise InputError(
            f"storage: {uri!r} is a folder of this machine that {', '.join(sorted(set(blind)))} cannot see;"
            " expected a place that all nodes reach, such as s3://bucket/prefix or a shared mount"
        )


def disconnect() -> None:
    """Leave the cluster; a local one that `connect` started ends."""
    if ray.is_initialized():
        ray.shutdown()
