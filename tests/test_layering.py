"""Who may import what: the rooms stand in one order and each imports only those before it."""

import ast
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
CODE = sorted(
    path.relative_to(ROOT)
    for folder in ("models", "pipeline", "jobs")
    for path in (ROOT / folder).rglob("*.py")
)

ROOMS = (  # a room may import those above it
    "models",
    *("errors", "seeding", "redaction", "uris", "retries", "local_files", "storage", "fetching"),
    *("hash_chain", "lease"),
    "config",
    "runtime",
    "weights",
    "data",
    "unlearning",
    "evaluation",
    "reports",
    "tracking",
    "training",
    "runs",
    "sweep",
    "requests",
    "governance",
    "studies",
    "benchmarks",
)


def imported(path: Path, root: Path = ROOT) -> Iterator[tuple[str, int]]:
    """Every module a file imports, at any depth of it, with the line."""
    for node in ast.walk(ast.parse((root / path).read_text())):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute here"
            for alias in node.names:
                yield f"{node.module}.{alias.name}", node.lineno
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute | ast.Name) and node.args:
            name = node.func.attr if isinstance(node.func, ast.Attribute) else node.func.id
            if name in ("import_module", "__import__") and isinstance(node.args[0], ast.Constant):
                yield str(node.args[0].value), node.lineno


def room_of(module: str) -> str | None:
    """The room of a dotted module or of a file's path; None for what is none of ours."""
    first, *rest = module.removesuffix(".py").replace("/", ".").split(".")
    if first == "models":
        return "models"
    return rest[0] if first == "pipeline" and rest and rest[0] != "__init__" else None


def wrong_arrows(files: list[Path], root: Path = ROOT) -> list[str]:
    """Imports of a later room, and rooms that the order does not know."""
    wrong = []
    for path in files:
        here = room_of(path.as_posix())
        if here is None:
            continue
        if here not in ROOMS:
            wrong.append(f"{path}: {here} is no room that the order knows")
            continue
        for module, line in imported(path, root):
            there = room_of(module)
            if there is not None and (there not in ROOMS or ROOMS.index(there) > ROOMS.index(here)):
                wrong.append(f"{path}:{line}: {here} imports {module}")
    return wrong


def importers(*packages: str) -> Iterator[tuple[Path, str]]:
    for path in CODE:
        for module, _ in imported(path):
            if any(module == package or module.startswith(package + ".") for package in packages):
                yield path, module


def inside(*folders: str) -> Callable[[Path], bool]:
    return lambda path: any(path.is_relative_to(folder) for folder in folders)


def test_every_room_imports_only_those_before_it() -> None:
    """An order in which no arrow goes forward leaves no cycle: imports inside functions and of *_ray.py files
    count as well."""
    assert wrong_arrows(CODE) == []
    folders = {
        path.name for path in (ROOT / "pipeline").iterdir() if path.is_dir() and path.name != "__pycache__"
    }
    files = {path.stem for path in (ROOT / "pipeline").glob("*.py") if path.stem != "__init__"}
    assert folders | files | {"models"} == set(ROOMS), (
        "a room that is gone, or a new one without a place in the order"
    )


@pytest.mark.parametrize("room", ROOMS[:-1])
def test_one_wrong_import_anywhere_is_found(room: str, tmp_path: Path) -> None:
    place = Path("models") if room == "models" else Path("pipeline") / room
    file = place / "wrong_ray.py" if (ROOT / place).is_dir() else place.with_suffix(".py")
    later = ROOMS[ROOMS.index(room) + 1]
    (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / file).write_text(f"def hidden() -> None:\n    from pipeline import {later}\n")
    assert wrong_arrows([file], tmp_path) == [f"{file}:2: {room} imports pipeline.{later}"]


def test_every_room_says_in_one_sentence_what_it_is() -> None:
    for room in ROOMS:
        file = ROOT / ("models" if room == "models" else f"pipeline/{room}")
        file = file / "__init__.py" if file.is_dir() else file.with_suffix(".py")
        sentence = ast.get_docstring(ast.parse(file.read_text()))
        assert sentence and sentence.split("\n\n")[0].endswith("."), f"{file} does not say what it is"


def test_a_file_is_called_ray_exactly_where_it_imports_ray() -> None:
    ray = {path for path, _ in importers("ray")}
    assert ray, "the search finds what it looks for"
    named = {path for path in CODE if path.stem.endswith("_ray")}
    assert {path for path in ray if not inside("jobs")(path)} == named


def test_only_tracking_imports_mlflow_and_inside_functions() -> None:
    assert list(importers("mlflow"))
    allowed = inside("pipeline/tracking")
    assert [(str(p), m) for p, m in importers("mlflow") if not allowed(p)] == []
    for path in (p for p in CODE if allowed(p) and p.name != "pyfunc_model.py"):
        # its import takes seconds; mlflow itself loads pyfunc_model.py
        for node in ast.parse((ROOT / path).read_text()).body:
            names = (
                [a.name for a in node.names]
                if isinstance(node, ast.Import)
                else [getattr(node, "module", None) or ""]
            )
            assert not any(name.split(".")[0] == "mlflow" for name in names), path


@pytest.mark.parametrize(
    ("folder", "forbidden"),
    [
        ("models", ["pipeline", "ray", "mlflow", "fsspec", "s3fs", "pyarrow"]),
        (
            "pipeline/unlearning",
            ["ray", "mlflow", "fsspec", "s3fs", "pyarrow", "pipeline.storage", "pipeline.config"],
        ),
        ("pipeline/reports", ["mlflow", "ray"]),
    ],
)
def test_pure_rooms_stay_pure(folder: str, forbidden: list[str]) -> None:
    assert any(inside(folder)(path) for path in CODE)
    assert [(str(p), m) for p, m in importers(*forbidden) if inside(folder)(p)] == []


def test_a_step_needs_no_storage() -> None:
    """What the methods, the losses and a batch import, at any distance."""
    modules = [path.with_suffix("").as_posix().replace("/", ".") for path in CODE]
    pure = [name for name in modules if name.startswith("pipeline.unlearning.")] + ["pipeline.data.batch"]
    code = (
        f"import importlib, sys\nfor name in {pure!r}: importlib.import_module(name)\n"
        "print(*(n for n in ('ray', 'mlflow', 'fsspec', 'pyarrow', 'pipeline.storage', 'pipeline.config')"
        " if n in sys.modules))"
    )
    answer = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert len(pure) > 10 and answer.stdout.split() == []


def test_models_import_nothing_but_torch_and_small_libraries() -> None:
    known = set(sys.stdlib_module_names) | {
        "torch",
        "safetensors",
        "models",
        "numpy",
        "diffusers",
        "transformers",
    }
    for path in (p for p in CODE if inside("models")(p)):
        assert {module.split(".")[0] for module, _ in imported(path)} <= known, path


def test_the_package_never_imports_jobs_or_tests() -> None:
    assert [(str(p), m) for p, m in importers("jobs", "tests") if not inside("jobs")(p)] == []


def test_files_and_functions_stay_short() -> None:
    assert [(str(p), n) for p in CODE if (n := len((ROOT / p).read_text().splitlines())) > 350] == []
    long = [
        (f"{path}:{node.lineno}", node.name)
        for path in CODE
        for node in ast.walk(ast.parse((ROOT / path).read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and node.end_lineno is not None
        and node.end_lineno - node.lineno + 1 > 80
    ]
    assert long == []


def test_whoever_reads_rows_knows_what_was_purged() -> None:
    """A lake is opened by `tombstones.open_lake`; as it is on disk it is read only to be made, described,
    asked for its classes and ids (by the ledger), or purged."""
    raw = {"pipeline.data.lake.read_lake", "pipeline.data.lake.find_lake"}
    readers = {path.as_posix() for path in CODE for module, _ in imported(path) if module in raw}
    others = {path for path in readers if not path.startswith(("pipeline/data/", "pipeline/requests/"))}
    assert others == {"pipeline/governance/purge_reach.py", "pipeline/runs/run_weights.py"}
