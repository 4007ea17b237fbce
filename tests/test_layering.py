"""Who may import what. The rules keep the core usable without a cluster, a tracker or a store."""

import ast
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
CODE = sorted(path.relative_to(ROOT) for folder in ("models", "pipeline", "jobs") for path in (ROOT / folder).rglob("*.py"))


def imported(path: Path) -> set[str]:
    """Every module a file imports, at any depth of it."""
    found: set[str] = set()
    for node in ast.walk(ast.parse((ROOT / path).read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute here"
            found |= {node.module or ""} | {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute | ast.Name) and node.args:
            name = node.func.attr if isinstance(node.func, ast.Attribute) else node.func.id
            if name in ("import_module", "__import__") and isinstance(node.args[0], ast.Constant):
                found.add(str(node.args[0].value))
    return found


def importers(*packages: str) -> Iterator[tuple[Path, str]]:
    for path in CODE:
        for module in imported(path):
            if any(module == package or module.startswith(package + ".") for package in packages):
                yield path, module


def inside(*folders: str) -> Callable[[Path], bool]:
    return lambda path: any(path.is_relative_to(folder) for folder in folders)


def test_only_ray_files_and_jobs_import_ray() -> None:
    assert list(importers("ray"))  # the search finds what it looks for
    assert [(str(p), m) for p, m in importers("ray") if not (p.stem.endswith("_ray") or inside("jobs")(p))] == []


def test_only_tracking_imports_mlflow_and_inside_functions() -> None:
    assert list(importers("mlflow"))
    assert [(str(p), m) for p, m in importers("mlflow") if not inside("pipeline/tracking")(p)] == []
    for path in (p for p in CODE if inside("pipeline/tracking")(p) and p.name != "pyfunc_model.py"):
        for node in ast.parse((ROOT / path).read_text()).body:  # its import takes seconds; pyfunc_model.py is loaded by mlflow itself
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else [getattr(node, "module", None) or ""]
            assert not any(name.split(".")[0] == "mlflow" for name in names), path


@pytest.mark.parametrize(
    ("folder", "forbidden"),
    [
        ("models", ["pipeline", "ray", "mlflow", "fsspec", "s3fs", "pyarrow"]),
        ("pipeline/unlearning", ["ray", "mlflow", "fsspec", "s3fs", "pyarrow", "pipeline.storage", "pipeline.data", "pipeline.tracking"]),
        ("pipeline/evaluation", ["mlflow", "fsspec", "pipeline.storage", "pipeline.tracking"]),
        ("pipeline/data", ["mlflow", "pipeline.tracking", "pipeline.training"]),
    ],
)
def test_lower_layers_do_not_reach_up(folder: str, forbidden: list[str]) -> None:
    assert any(inside(folder)(path) for path in CODE)
    assert [(str(p), m) for p, m in importers(*forbidden) if inside(folder)(p) and not p.stem.endswith("_ray")] == []


def test_models_import_nothing_but_torch_and_small_libraries() -> None:
    known = set(sys.stdlib_module_names) | {"torch", "safetensors", "models", "numpy", "diffusers", "transformers"}
    for path in (p for p in CODE if inside("models")(p)):
        assert {module.split(".")[0] for module in imported(path)} <= known, path


def test_the_package_never_imports_jobs_or_tests() -> None:
    assert [(str(p), m) for p, m in importers("jobs", "tests") if not inside("jobs")(p)] == []


def test_files_stay_short() -> None:
    assert [(str(p), n) for p in CODE if (n := len((ROOT / p).read_text().splitlines())) > 400] == []
