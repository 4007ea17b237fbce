"""Make the RayJob that answers the open deletion requests, with a priority by their due date.

python cluster/queue_requests.py --config jobs/configs/process_imagenet.yaml --set storage=s3://bucket/prefix
python cluster/queue_requests.py --config ... --print     (the manifest, as YAML; nothing is created)

Made to run in a pod of the namespace (cluster/requests.yaml). Where no --set gives the storage root,
UNLEARN_STORAGE in the environment does, and the job is given it. Exits 0 when nothing is open or the job is
queued, 3 when something is overdue, refused, or was tried and not answered; a request that was tried is not
queued again by itself: the same settings would give the same weights.
"""

import argparse
import datetime
import shlex
import sys
from pathlib import Path
from typing import Any

CHECKOUT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(CHECKOUT))

import yaml

from pipeline import config as configuration
from pipeline import storage
from pipeline.config.process import ProcessConfig
from pipeline.errors import InputError
from pipeline.redaction import redact
from pipeline.requests import ledger, merge
from pipeline.requests.ledger import Ledger, Request
from pipeline.runtime.command_line import storage_of_environment

ALARM = 3
ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
API = "https://kubernetes.default.svc/apis/ray.io/v1/namespaces"
QUEUE = "unlearn"
PRIORITIES = (
    (3, "unlearn-overdue"),
    (14, "unlearn-soon"),
)  # days to the earliest due date, and what it means then
LATER = "unlearn-later"


def waiting(known: Ledger, model_name: str) -> list[Request]:
    """What a run may answer, earliest due date first: open, and not tried since it was submitted or
    reopened."""
    requests = merge.open_requests(merge.of_model(known, model_name))
    return [request for request in requests if request.history[-1].move != "postponed"]


def priority(due: datetime.date, today: datetime.date) -> str:
    days = (due - today).days
    return next((name for within, name in PRIORITIES if days <= within), LATER)


def manifest(requests: list[Request], arguments: list[str], today: datetime.date) -> dict[str, Any]:
    """The RayJob: that of rayjob.yaml with another command, of a fixed size, which is what Kueue admits."""
    (job,) = yaml.safe_load_all((CHECKOUT / "cluster" / "rayjob.yaml").read_text())
    ids = [request.id for request in requests]
    histories = [request.history[-1].digest for request in requests]
    name = f"requests-{storage.digest_of(histories)[:12]}"  # the same requests are the same job
    job["metadata"] |= {
        "name": name,
        "labels": {
            "kueue.x-k8s.io/queue-name": QUEUE,
            "kueue.x-k8s.io/priority-class": priority(requests[0].terms.due, today),
        },
    }
    spec, cluster = job["spec"], job["spec"]["rayClusterSpec"]
    spec["entrypoint"] = shlex.join(["python", "/app/jobs/process_requests.py", *arguments])
    spec["metadata"] = {"requests": ", ".join(ids)[:200]}
    spec["backoffLimit"] = 0  # exit 3 is no failure that another try would mend
    cluster["enableInTreeAutoscaling"] = False
    del cluster["autoscalerOptions"]
    for group in cluster["workerGroupSpecs"]:
        group["replicas"] = group["minReplicas"] = group["maxReplicas"] = 1
    return dict(job)


def create(job: dict[str, Any], api: str = API, account: Path = ACCOUNT) -> bool:
    """Whether the job was created; False when it is there already. Raises `RuntimeError` when Kubernetes
    refuses."""
    import requests

    answer = requests.post(
        f"{api}/{job['metadata']['namespace']}/rayjobs",
        json=job,
        headers={"Authorization": f"Bearer {(account / 'token').read_text().strip()}"},
        verify=str(account / "ca.crt") if api.startswith("https") else True,
        timeout=30,
    )
    if answer.status_code == 409:
        return False
    if not answer.ok:
        raise RuntimeError(f"Kubernetes answered {answer.status_code}: {redact(answer.text[:500])}")
    return True


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", required=True)
    parser.add_argument("--set", action="append", default=[], dest="sets", metavar="a.b=c")
    parser.add_argument(
        "--print", action="store_true", dest="show", help="print the manifest, create nothing"
    )
    given = parser.parse_args(argv)
    overrides = [*storage_of_environment(given.sets), *given.sets]
    try:
        config = configuration.load(ProcessConfig, given.config, overrides)
        known, today = ledger.read(config.storage), ledger.today()
    except InputError as error:
        print(redact(f"error: {' '.join(str(error).split())}"), file=sys.stderr)
        return 2
    name = config.tracking.model_name
    requests = waiting(known, name)
    if requests:
        sets = [part for item in overrides for part in ("--set", item)]
        job = manifest(requests, ["--config", given.config, *sets], today)
        if given.show:
            print(yaml.safe_dump(job, sort_keys=False))
            return 0
        state = "queued" if create(job) else "is queued already"
        print(f"{job['metadata']['name']} {state}: {job['spec']['metadata']['requests']}")
    else:
        print("nothing is open that was not tried")
    alarms = [
        request.id
        for request in known.requests.values()
        if request.terms.model_name == name
        and (
            request.is_overdue(today)
            or request.state == "refused"
            or (request.is_open and request.history[-1].move == "postponed")
        )
    ]
    if alarms:
        print(f"overdue, refused or tried in vain: {', '.join(alarms)}; see requests.html")
    return ALARM if alarms else 0


if __name__ == "__main__":
    sys.exit(main())
