"""Reading the cluster's files, and the KubeRay schemas made strict."""

import os
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
CLUSTER = ROOT / "cluster"


def documents(name: str) -> list[dict[str, Any]]:
    """Every document of a YAML file in cluster/."""
    return [value for value in yaml.safe_load_all((CLUSTER / name).read_text()) if value]


@cache
def kuberay_schema(kind: str) -> dict[str, Any]:
    """The ray.io/v1 schema of `kind`, in which a field that it does not know is an error. Skips when the
    definitions are absent."""
    folder = Path(os.environ.get("UNLEARN_TEST_DATA", "/nonexistent")) / "kuberay-crds"
    path = folder / f"ray.io_{kind.lower()}s.yaml"
    if not path.is_file():
        pytest.skip("UNLEARN_TEST_DATA holds no kuberay-crds")
    definition = yaml.load(path.read_text(), Loader=yaml.CSafeLoader)
    (version,) = [version for version in definition["spec"]["versions"] if version["name"] == "v1"]
    schema: dict[str, Any] = strict(version["schema"]["openAPIV3Schema"])
    schema["properties"]["metadata"] = {  # the definitions leave it to Kubernetes
        "type": "object",
        "additionalProperties": False,
        "required": ["name"],
        "properties": {
            "name": {"type": "string", "pattern": "^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$"},
            "namespace": {"type": "string"},
            "labels": {"type": "object"},
            "annotations": {"type": "object"},
        },
    }
    return schema


def strict(schema: Any) -> Any:
    """A copy without descriptions, every object with named properties closed, int-or-string fields left open
    to both."""
    if isinstance(schema, list):
        return [strict(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    if schema.get("x-kubernetes-int-or-string"):
        return {"type": ["integer", "string"]}
    copy = {
        key: {name: strict(child) for name, child in value.items()} if key == "properties" else strict(value)
        for key, value in schema.items()
        if key != "description"
    }
    if (
        "properties" in copy
        and "additionalProperties" not in copy
        and not copy.get("x-kubernetes-preserve-unknown-fields")
    ):
        copy["additionalProperties"] = False
    return copy


def pod_specs(value: Any, path: str = "") -> list[tuple[str, dict[str, Any]]]:
    """Every pod specification inside a manifest, with the place where it stands."""
    if isinstance(value, list):
        return [found for i, child in enumerate(value) for found in pod_specs(child, f"{path}[{i}]")]
    if not isinstance(value, dict):
        return []
    here = [(path, value)] if isinstance(value.get("containers"), list) else []
    return here + [found for key, child in value.items() for found in pod_specs(child, f"{path}.{key}")]
