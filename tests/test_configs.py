"""Every shipped configuration loads with its job's class; what the README names is there."""

import importlib.util
import re
import runpy
from pathlib import Path

import pytest
import yaml

from pipeline import config as configuration
from pipeline.config import (
    GenerateConfig,
    JobConfig,
    PrepareConfig,
    PretrainConfig,
    RegistryConfig,
    UnlearnConfig,
)
from pipeline.errors import InputError

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = sorted((ROOT / "jobs" / "configs").glob("*.yaml"))
JOBS = sorted(path for path in (ROOT / "jobs").glob("*.py") if path.name != "__init__.py")


def job_class(path: Path) -> type[JobConfig]:
    """The configuration class that the job's last line hands to the command line."""
    spec = importlib.util.spec_from_file_location(f"jobs_{path.stem}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    (name,) = re.findall(r"command_line\.main\((\w+)", path.read_text())
    found = getattr(module, name)
    assert issubclass(found, JobConfig)
    return found


def job_of(config: Path) -> str:
    """By the first word of its name: prepare_* is for prepare_data, pretrain_* for pretrain; what names no
    job is for the main one."""
    first = config.stem.split("_")[0]
    *_, found = ["unlearn_imagenet", *(path.stem for path in JOBS if path.stem.split("_")[0] == first)]
    return found


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_shipped_configuration_loads(path: Path) -> None:
    kind = job_class(ROOT / "jobs" / f"{job_of(path)}.py")
    loaded = configuration.load(kind, str(path))
    again = configuration.parse(kind, yaml.safe_load(configuration.dump(loaded)))
    assert again == loaded
    relative = configuration.load(kind, f"jobs/configs/{path.name}")  # found from any working directory
    assert relative == loaded


@pytest.mark.parametrize("path", JOBS, ids=lambda path: path.stem)
def test_jobs_import_without_side_effects(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert issubclass(job_class(path), JobConfig)
    assert list(tmp_path.iterdir()) == []


def test_the_first_jobs_are_there() -> None:
    assert {
        job_class(ROOT / "jobs" / f"{name}.py")
        for name in ("prepare_data", "pretrain", "unlearn_imagenet", "generate", "registry")
    } == {
        PrepareConfig,
        PretrainConfig,
        UnlearnConfig,
        GenerateConfig,
        RegistryConfig,
    }


@pytest.mark.parametrize("changed", ["request.exchange={}", "request={sample_ids: ids.txt}"])
def test_likeness_needs_an_exchange_class_to_look_like(changed: str) -> None:
    path = str(ROOT / "jobs" / "configs" / "cifar10.yaml")
    with pytest.raises(
        InputError,
        match=r"gate\.min_exchange_fidelity: got 0\.5, but no label of the request has an exchange class",
    ) as caught:
        configuration.load(UnlearnConfig, path, [changed])
    assert "\n" not in str(caught.value)
    assert (
        configuration.load(
            UnlearnConfig, path, [changed, "gate.min_exchange_fidelity=null"]
        ).gate.min_exchange_fidelity
        is None
    )


@pytest.mark.parametrize("section", ["judge", "uniformity_judge"])
def test_a_setting_that_its_judge_would_not_heed_is_refused(section: str) -> None:
    path = str(ROOT / "jobs" / "configs" / "pretrain_digits.yaml")
    with pytest.raises(InputError, match=rf"{section}\.mirror: got true for mlp, expected false"):
        configuration.load(PretrainConfig, path, [f"{section}={{net: mlp, mirror: true}}"])


@pytest.mark.parametrize(
    "document", ["README.md", *sorted(str(path.relative_to(ROOT)) for path in (ROOT / "docs").rglob("*.md"))]
)
def test_files_that_the_documents_name_exist(document: str) -> None:
    path = ROOT / document
    if not path.exists():
        pytest.skip(f"{document} is not written yet")
    text = path.read_text()
    named = set(
        re.findall(
            r"\b(?:models|pipeline|jobs|tests|docs|cluster)/[\w/.-]+\.(?:py|yaml|md|png|json|sh)\b", text
        )
    )
    links = {
        (path.parent / target if target else path, anchor)
        for target, anchor in re.findall(r"\]\(([^)#\s]*)#?([^)\s]*)\)", text)
        if "://" not in target and not target.startswith("mailto:")
    }
    assert [name for name in sorted(named) if not (ROOT / name).exists()] == []
    assert [str(target) for target, _ in links if not target.exists()] == []
    assert [
        (str(target), anchor) for target, anchor in links if anchor and anchor not in anchors(target)
    ] == []


def anchors(page: Path) -> set[str]:
    """What a link may name behind `#`: the page's headings as GitHub writes them."""
    headings = re.findall(r"(?m)^#+ (.+)$", page.read_text())
    return {re.sub(r"[^\w -]", "", heading).strip().lower().replace(" ", "-") for heading in headings}


def test_what_a_shell_would_touch_is_quoted_in_every_example() -> None:
    """zsh takes brackets for a pattern."""
    texts = [ROOT / "README.md"]
    for folder, pattern in (("jobs", "*.*"), ("pipeline", "*.py"), ("cluster", "*.*"), ("docs", "*.md")):
        texts += (path for path in (ROOT / folder).rglob(pattern) if path.suffix != ".pyc")
    bare = re.compile(r"--set\s+[\w.]+=(\[|\{\d|\{\})|(?<!')\brequest\.(classes|exchange)=[\[{](?!\{)")
    unquoted = [
        f"{path.relative_to(ROOT)}: {match[0]}" for path in texts for match in bare.finditer(path.read_text())
    ]
    assert unquoted == []


def test_the_page_of_all_keys_is_up_to_date() -> None:
    script = runpy.run_path(str(ROOT / "docs" / "generate_configuration.py"))
    assert set(script["JOBS"]) == {path.stem for path in JOBS}
    assert all(script["JOBS"][path.stem] is job_class(path) for path in JOBS)
    again = "write it again: python docs/generate_configuration.py"
    assert (ROOT / "docs" / "configuration.md").read_text() == script["page"](), again


def test_overrides_are_yaml_by_dotted_key() -> None:
    path = str(ROOT / "jobs" / "configs" / "quickstart.yaml")
    loaded = configuration.load(
        UnlearnConfig, path, ["request.classes=[3]", "request.exchange={3: 5}", "optim.lr=1.0e-3", "seed=7"]
    )
    assert (loaded.request.classes, loaded.request.exchange, loaded.optim.lr, loaded.seed) == (
        [3],
        {3: 5},
        1e-3,
        7,
    )
    assert configuration.load(UnlearnConfig, path).request.classes == [1]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "optim.learning_rate=1",
            r"unknown key 'optim\.learning_rate'.*valid keys of optim are lr, label_lr, batch_size",
        ),
        ("optim.batchsize=8", r"unknown key 'optim\.batchsize': did you mean batch_size"),
        ("request.clases=[1]", r"unknown key 'request\.clases': did you mean classes"),
        ("hvp=exact", r"unknown key 'hvp': did you mean method\.hvp\?"),
        ("penalty=1", r"unknown key 'penalty': .*those of one method stand under method"),
        (
            "features.inception.wieghts=x",
            r"did you mean weights\? valid keys of features\.inception are weights, sha256",
        ),
        ("sha257=x", r"unknown key 'sha257'"),
        ("method.hvp=magic", r"method\.hvp: got 'magic'"),
        ("optim.lr=fast", r"optim\.lr: got 'fast'"),
        ("optim.batch_size=12", r"optim\.batch_size: got 12, expected a multiple of partition\.lanes \(8\)"),
        ("train.workers=3", r"train\.workers: got 3, expected a divisor of partition\.lanes \(8\)"),
        ("optim.micro_batch=5", r"optim\.micro_batch: got 5, expected a divisor of a worker's share"),
        ("run_id=../x", r"run_id: got '\.\./x'"),
        ("novalue", r"--set: got 'novalue', expected key=value"),
        ("seed=[", r"--set seed: got '\[', which is not valid YAML"),
    ],
)
def test_wrong_settings_are_explained_in_one_line(override: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        configuration.load(UnlearnConfig, str(ROOT / "jobs" / "configs" / "quickstart.yaml"), [override])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("given", "read"),
    [
        ("{1:7}", {1: 7}),
        ("{1:7,3: 5}", {1: 7, 3: 5}),
        ("{1:[7, 9]}", {1: [7, 9]}),
        ("s3://bucket:80/x", "s3://bucket:80/x"),
        ("1: 7", "1: 7"),
        (" emergency: v4: crashes", "emergency: v4: crashes"),
    ],
)
def test_a_mapping_is_given_in_brackets_where_a_colon_needs_no_space(given: str, read: object) -> None:
    assert configuration.apply_overrides({}, [f"request.exchange={given}"]) == {"request": {"exchange": read}}


@pytest.mark.parametrize("text", ["GDPR: art 17", "ticket: 7: withdrawn"])
def test_a_reason_may_hold_a_colon(text: str) -> None:
    config = configuration.load(
        RegistryConfig, str(ROOT / "jobs" / "configs" / "registry_digits.yaml"), [f"override={text}"]
    )
    assert config.override == text
    with pytest.raises(
        InputError, match=r"request.exchange: got '1: 7', input should be a valid dict"
    ) as caught:
        configuration.load(
            UnlearnConfig, str(ROOT / "jobs" / "configs" / "quickstart.yaml"), ["request.exchange=1: 7"]
        )
    assert "\n" not in str(caught.value)
