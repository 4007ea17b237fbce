"""Submit a job to a Ray cluster: checks the configuration here, fills in storage, tracking and run id, prints
the job id.

python cluster/submit.py --config jobs/configs/imagenet.yaml --storage s3://bucket/unlearning --tracking
http://mlflow:5000 --follow

The cluster is --address, RAY_API_SERVER_ADDRESS, or http://127.0.0.1:8265; its token is RAY_AUTH_TOKEN, the
file RAY_AUTH_TOKEN_PATH names, or ~/.ray/auth_token. Exit code with --follow: 0 succeeded, 1 failed or
stopped, 2 bad input here or there, 3 and 4 as the job says (requests left open; a failed gate with --set
require_gate=true); without it: 0 submitted. The same --run-id again continues that run.
"""

import argparse
import asyncio
import inspect
import json
import os
import shlex
import socket
import sys
import time
import traceback
import uuid
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

CHECKOUT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(CHECKOUT))

from pipeline import config as configuration
from pipeline.errors import InputError
from pipeline.redaction import is_secret_name, redact
from pipeline.runs.request_checks import default_id, request_id
from pipeline.runtime.code_version import VARIABLE, code_version
from pipeline.runtime.startup_timeline import SUBMITTED, process_start
from pipeline.runtime.upload import is_ignored

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

ADDRESS = "http://127.0.0.1:8265"
# how long --follow goes on asking a cluster that does not answer: a restarted head is back by then
PATIENCE_S = 300.0
INSTEAD = (
    "put it into the environment of the nodes (MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD,"
    " AWS_SECRET_ACCESS_KEY)"
)


@dataclass(frozen=True, kw_only=True)
class Submission:
    """Everything that is sent, decided before the cluster is asked anything."""

    address: str
    job_id: str
    entrypoint: list[str]
    runtime_env: dict[str, Any]
    metadata: dict[str, str]

    @property
    def command(self) -> str:
        """The same as a command for a shell in the checkout."""
        where = f"--address {shlex.quote(self.address)} --submission-id {self.job_id} --no-wait"
        env, metadata = shlex.quote(json.dumps(self.runtime_env)), shlex.quote(json.dumps(self.metadata))
        options = f"--runtime-env-json {env} --metadata-json {metadata}"
        return f"ray job submit {where} {options} -- {shlex.join(self.entrypoint)}"


def parser() -> argparse.ArgumentParser:
    arguments = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = arguments.add_argument
    add("--config", required=True, metavar="YAML", help="the job's configuration, inside this checkout")
    add("--job", default="unlearn_imagenet", help="a script of jobs/ (default: %(default)s)")
    add("--storage", metavar="URI", help="storage root of all nodes; absent: that of the configuration")
    add("--tracking", metavar="URI", help="MLflow server; absent: that of the configuration")
    add("--run-id", metavar="NAME", help="name of the run; a known one is continued; absent: a new one")
    add("--set", action="append", default=[], metavar="a.b=c", dest="overrides", help="override one key")
    add("--address", metavar="URL", help="the cluster's dashboard, such as http://127.0.0.1:8265")
    add("--runtime-env", default=str(CHECKOUT / "cluster" / "runtime_env.yaml"), metavar="YAML")
    add("--follow", action="store_true", help="print the job's log and wait for its end")
    add("--dry-run", action="store_true", help="check, print the `ray job submit` command, send nothing")
    return arguments


def prepare(arguments: argparse.Namespace) -> Submission:
    """Check what was given and decide what is sent. Raises `InputError`."""
    kind = configuration_of(arguments.job)
    config_path = inside_checkout(arguments.config)
    sets = list(arguments.overrides)
    sets += [
        f"{key}={value}"
        for key, value in (
            ("storage", arguments.storage),
            ("tracking.uri", arguments.tracking),
            ("run_id", arguments.run_id),
        )
        if value
    ]
    for override in sets:
        require_no_secret(f"--set {override.partition('=')[0]}", override)
    file = configuration.read_yaml(str(CHECKOUT / config_path))
    require_reachable_storage(configuration.apply_overrides(file, sets).get("storage"))
    config = configuration.parse_given(kind, file, sets)

    metadata = {"job": arguments.job, "config": config_path}
    name = arguments.job.replace("_", "-")
    if isinstance(config, configuration.UnlearnConfig):
        metadata["request_id"] = config.request.id or _request_id(config)
        name = (
            config.run_id
            or f"{metadata['request_id'][:78]}-{datetime.now(UTC):%Y%m%d-%H%M%S}-{uuid.uuid4().hex[:4]}"
        )
        metadata["run_id"] = name
        # chosen here, so that the same command can be sent again after whatever happens
        if not config.run_id:
            sets.append(f"run_id={name}")
    return Submission(
        address=arguments.address or os.environ.get("RAY_API_SERVER_ADDRESS") or ADDRESS,
        job_id=f"{name}-{uuid.uuid4().hex[:6]}",
        entrypoint=[
            "python",
            f"jobs/{arguments.job}.py",
            "--config",
            config_path,
            *(part for item in sets for part in ("--set", item)),
        ],
        runtime_env=runtime_env(arguments.runtime_env),
        metadata=metadata,
    )


def _request_id(config: configuration.UnlearnConfig) -> str:
    """As the job will call a request that has no name; roughly so where only the cluster can read its list
    of samples."""
    try:
        return request_id(config)
    except (InputError, OSError):
        return default_id(config.lake, config.request.classes, config.request.model_dump(mode="json"))


def configuration_of(job: str) -> type[configuration.JobConfig]:
    """The class of a job's configuration: what the `run` function of its script takes."""
    path = CHECKOUT / "jobs" / f"{job}.py"
    scripts = sorted(script.stem for script in path.parent.glob("*.py"))
    if job not in scripts:
        raise InputError(f"--job: got {job!r}, expected one of {', '.join(scripts)}")
    spec = spec_from_file_location(f"job_{job}", path)
    assert spec is not None and spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    functions = [
        value
        for _, value in inspect.getmembers(module, inspect.isfunction)
        if value.__module__ == module.__name__
    ]
    annotated = [
        function.__annotations__["config"] for function in functions if "config" in function.__annotations__
    ]
    kinds = {getattr(module, kind) if isinstance(kind, str) else kind for kind in annotated}
    if len(kinds) != 1 or not hasattr(module, "run"):
        raise InputError(
            f"--job: {job} takes a verb and runs in seconds; run it here: python jobs/{job}.py --help"
        )
    kind: type[configuration.JobConfig] = kinds.pop()
    return kind


def inside_checkout(config: str) -> str:
    """`config` relative to the checkout, which is what the cluster gets to see."""
    path = next((p for p in (Path(config).resolve(), (CHECKOUT / config).resolve()) if p.is_file()), None)
    if path is None:
        raise InputError(
            f"--config: got {config!r}, which is no file; expected a YAML file such as"
            " jobs/configs/quickstart.yaml"
        )
    if not path.is_relative_to(CHECKOUT):
        raise InputError(
            f"--config: {config} lies outside {CHECKOUT}, which is what is uploaded; copy it to jobs/configs/"
        )
    inside = path.relative_to(CHECKOUT).as_posix()
    if is_ignored(CHECKOUT, inside):
        raise InputError(
            f"--config: {inside} is not uploaded (.gitignore, .rayignore); copy it to jobs/configs/"
        )
    return inside


def require_reachable_storage(uri: Any) -> None:
    if not isinstance(uri, str) or not ("://" in uri or uri.startswith("/")):
        raise InputError(
            f"storage: got {uri!r}, expected a place that every node of the cluster reaches: "
            "--storage s3://bucket/prefix, or the absolute path of a folder mounted on all of them"
        )


def require_no_secret(where: str, text: str) -> None:
    """A job's command, runtime_env and metadata are shown in the dashboard and kept by the cluster."""
    if redact(text) != text:
        raise InputError(
            f"{where}: carries a password or another secret, which the dashboard would show; {INSTEAD}"
        )


def runtime_env(path: str) -> dict[str, Any]:
    settings = configuration.read_yaml(path)
    variables = {**(settings.get("env_vars") or {})}
    for name, value in variables.items():
        if is_secret_name(name):
            raise InputError(
                f"{path}: env_vars.{name} is a secret, which the dashboard would show; {INSTEAD}"
            )
        require_no_secret(f"{path}: env_vars.{name}", str(value))
    version = code_version()
    return {
        **settings,
        "working_dir": str(CHECKOUT),
        "env_vars": variables | ({VARIABLE: version} if version else {}),
    }


def require_token() -> None:
    """Have Ray send a token; it decides so when it is imported. RAY_AUTH_MODE=disabled is for a cluster that
    was started without."""
    if os.environ.setdefault("RAY_AUTH_MODE", "token").lower() == "disabled" or os.environ.get(
        "RAY_AUTH_TOKEN"
    ):
        return
    path = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")
    if not path.is_file() or not path.read_text().strip():
        raise InputError(
            f"no token: RAY_AUTH_TOKEN is not set and {path} holds none; expected the cluster's token in one"
            " of them (ray get-auth-token on the machine that started it, or the Kubernetes secret"
            " unlearn-auth)"
        )


def connect(address: str) -> "JobSubmissionClient":
    parts = urlsplit(address)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise InputError(
            f"--address: got {redact(address)!r}, expected the cluster's dashboard such as {ADDRESS}"
        )
    try:  # Ray itself would wait for minutes where nobody answers
        socket.create_connection(
            (parts.hostname, parts.port or (443 if parts.scheme == "https" else 80)), timeout=10
        ).close()
    except OSError as error:
        raise InputError(
            f"--address: no Ray cluster answers at {redact(address)} ({error}); expected its dashboard: start"
            " a head, or forward it with `kubectl port-forward` or `ray dashboard` (cluster/README.md)"
        ) from error
    import requests
    from ray.exceptions import AuthenticationError
    from ray.job_submission import JobSubmissionClient

    os.environ["RAY_API_SERVER_ADDRESS"] = address  # which Ray takes before the address that it is given
    try:
        return JobSubmissionClient(address)
    except AuthenticationError as error:
        raise InputError(
            f"the cluster at {redact(address)} refuses the token; expected the one it was started with, in"
            " RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH or ~/.ray/auth_token"
        ) from error
    except (requests.RequestException, RuntimeError, ConnectionError) as error:
        raise InputError(
            f"--address: what answers at {redact(address)} is no Ray dashboard ({type(error).__name__})"
        ) from error


def follow(client: "JobSubmissionClient", job_id: str) -> int:
    """Print the job's log as it grows; returns the exit code its final status asks for. A head that restarts
    is waited for."""
    printed, answered = 0, time.monotonic()
    while True:
        try:
            printed = asyncio.run(_print_from(client, job_id, printed))
            details = client.get_job_info(job_id)
            answered = time.monotonic()
        except KeyboardInterrupt:
            print(
                f"\nno longer following; the job goes on. ray job logs -f {job_id} | ray job stop {job_id}",
                file=sys.stderr,
            )
            return 130
        except Exception as error:  # whatever the connection broke with, asking again is all that can be done
            if time.monotonic() - answered > PATIENCE_S:
                reason = redact(f"{type(error).__name__}: {error}")
                print(
                    f"failed: the cluster has not answered for {PATIENCE_S:.0f} s ({reason}); the job may"
                    " go on",
                    file=sys.stderr,
                )
                return 1
            time.sleep(2)
            continue
        if details.status.is_terminal():
            break
        time.sleep(0.5)
    print(f"job {job_id}: {details.status.value}", flush=True)
    if details.status.value == "SUCCEEDED":
        return 0
    return details.driver_exit_code if details.driver_exit_code in (2, 3, 4) else 1


async def _print_from(client: "JobSubmissionClient", job_id: str, printed: int) -> int:
    """Print what the log holds beyond its first `printed` characters; returns how many there are now."""
    seen = 0
    async for text in client.tail_job_logs(job_id):
        fresh = text[max(0, printed - seen) :]
        seen += len(text)
        if fresh:
            print(fresh, end="", flush=True)
    return max(printed, seen)


def main(argv: list[str] | None = None) -> int:
    arguments = parser().parse_args(argv)
    try:
        submission = prepare(arguments)
        if arguments.dry_run:
            print(submission.command)
            return 0
        require_token()
        client = connect(submission.address)
        began = {SUBMITTED: f"{process_start():.3f}"}
        client.submit_job(
            entrypoint=shlex.join(submission.entrypoint),
            submission_id=submission.job_id,
            runtime_env={**submission.runtime_env, "env_vars": submission.runtime_env["env_vars"] | began},
            metadata=submission.metadata,
        )
    except InputError as error:
        print(redact(f"error: {' '.join(str(error).split())}"), file=sys.stderr)
        return 2
    except Exception as error:
        print(redact(traceback.format_exc()), end="", file=sys.stderr)
        print(redact(f"failed: {type(error).__name__}: {str(error).partition(chr(10))[0]}"), file=sys.stderr)
        return 1
    print(submission.job_id, flush=True)
    return follow(client, submission.job_id) if arguments.follow else 0


if __name__ == "__main__":
    sys.exit(main())
