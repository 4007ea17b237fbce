"""What a certificate says in words of named samples, of stand-ins and of the null label; which lines of a
purge still hold."""

from pathlib import Path
from typing import Any

import pytest
from test_certificate import around, said
from tracking_samples import result_json

from pipeline import storage
from pipeline.config import PrepareConfig, parse
from pipeline.data import ingest, ingest_ray, tombstones
from pipeline.governance import certificate_page
from pipeline.governance.purge_reach import base_digest, lake_line, still_left
from pipeline.governance.purge_siblings import audited, pictures_left
from pipeline.tracking import alias_log

CHECKS = [{"name": "membership_auc", "value": 0.5, "bound": 0.6, "passed": True}]


def of_samples(low: float, auc: float, high: float) -> dict[str, Any]:
    """What is said of two named samples under the loss attack."""
    after = result_json("run", "d" * 64)["after"] | {
        "forget_fraction": None,
        "membership": {"auc": auc, "low": low, "high": high, "n": 2, "heldout_n": 9},
    }
    request = {"id": "s", "classes": [], "sample_count": 2, "membership_auc": auc, "closed": True}
    request |= {"sample_ids_digest": "e" * 64, "forget_fraction": None}
    return said(after=after, requests=[request], gate={"passed": True, "checks": CHECKS})


@pytest.mark.parametrize(
    ("low", "auc", "high", "words"),
    [
        (0.45, 0.5, 0.55, "within the bound of 0.60, the whole interval"),
        (0.42, 0.55, 0.68, "the interval reaches beyond the bound of 0.60"),
        (0.32, 0.45, 0.58, "the interval reaches beyond the bound of 0.60"),
        (0.62, 0.7, 0.78, "not within the bound of 0.60"),
        (0.22, 0.3, 0.38, "not within the bound of 0.60"),
    ],
)
def test_named_samples_are_held_to_the_whole_interval(
    low: float, auc: float, high: float, words: str
) -> None:
    body = of_samples(low, auc, high)
    figures = f"AUC {auc:.2f} ({low:.2f} to {high:.2f})"
    assert f"with {figures}, where 0.5 is chance: " in body["summary"] and words in body["summary"]
    assert "No attack but that on the loss was tried" in body["summary"]
    page = certificate_page.render(body)
    assert page.count(figures) == 3, "in the summary, beside the request and among the attacks"


def test_stand_ins_are_said() -> None:
    facts = {"weights_digest": "1" * 64, "samples": {"1": 200}, "recognised": {"1": 1.0}, "digest": "2" * 64}
    body = said(stand_ins=facts, surroundings=around(ids={3: {"a"}}))
    (request,) = body["requests"]
    assert request["scope"]["stand_ins"] == {"count": 200, "digest": "2" * 64, "base": "1" * 64}
    assert request["scope"]["rows"] is None
    sentence = "purged rows of r-1 were stood in for by 200 samples of the base under its old label."
    assert sentence in body["summary"]
    assert "read in the place of purged rows; digest " + "2" * 64 in certificate_page.render(body)


def test_the_null_label_stands_on_the_page() -> None:
    share = {"value": 0.25, "n": 200, "low": 0.19, "high": 0.314}
    after = result_json("run", "d" * 64)["after"] | {"leakage": {"null_label": share}}
    body = said(after=after)
    text = "Under the null label, which asks for no class, 25\u00a0% of 200 images are of a forgotten class"
    assert text in body["summary"] and "no bound is set on that" in body["summary"]
    page = certificate_page.render(body)
    assert "Forgotten classes under the null label" in page and "of 200 images, at most 31.4\u00a0%" in page


def test_a_lake_that_was_written_again_is_not_left_behind(tmp_path: Path) -> None:
    root = str(tmp_path)

    def prepare(**more: Any) -> Any:
        values = {"storage": root, "prepare": {"size": 8, "channels": 1}, **more}
        config = parse(PrepareConfig, values)
        return ingest_ray.prepare(config, run=lambda tasks: map(ingest.make_shard, tasks)).lake

    lake = prepare()
    ids = set(lake.read([1]).sample_id)
    tombstones.bury(root, "r-1", ids, labels=[1])
    others = ["the base model (digest 0), which was trained on them"]
    line = lake_line(lake, len(ids))
    assert still_left(root, [line, *others], "r-1", tombstones.buried(root)) == [line, *others]
    assert still_left(root, [line, *others], "another", tombstones.buried(root)) == others
    prepare(without_buried=True)
    assert still_left(root, [line, *others], "r-1", tombstones.buried(root)) == others


@pytest.mark.parametrize("scheme", ["", "memory://left"])
def test_pictures_that_nobody_knows_the_labels_of_are_named_until_they_are_removed(
    tmp_path: Path, scheme: str
) -> None:
    root = f"{scheme}{tmp_path}"
    for name in ("generated/m-v1.png", "generated/m-v2.png", "generated/mine/a b.png", "comparisons/c.yaml"):
        storage.write_bytes(f"{root}/{name}", b"")
    storage.write_bytes(f"{root}/comparisons/c/1-to-7.png", b"")
    lines = pictures_left(root, [f"{root}/generated/m-v2.png"])
    names = ["generated/m-v1.png", "generated/mine/a b.png", "comparisons/c"]
    assert lines == [f"{name}, which may show these labels" for name in names]
    storage.remove(f"{root}/generated/m-v1.png")
    storage.remove(f"{root}/comparisons/c")
    assert still_left(root, lines, "r-1", tombstones.Buried()) == lines[1:2]


def test_where_audits_put_pictures_of_the_labels_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, settings = str(tmp_path), [{"tracking": {"model_name": "m"}}]
    log: list[alias_log.Entry] = []
    for output, labels in (
        ("/elsewhere/a.png", [1, 3]),
        ("/elsewhere/b.png", [4]),
        (f"{root}/generated/c.png", [3]),
    ):
        details = {"output": output, "labels": labels}
        log.append(
            alias_log.append(
                root, "m", log, action="audit", alias="", came_from=None, version=1, details=details
            )
        )
    assert audited(root, settings, [3]) == ["/elsewhere/a.png, where an audit put pictures of these labels"]


def test_the_base_is_where_the_chain_of_versions_began(tmp_path: Path) -> None:
    """A run that started from a version names as its base that version, which no data was trained into."""
    runs: list[tuple[int, str, int | None]] = [(1, "base", None), (2, "first", 1), (3, "second", 2)]
    for version, digest, origin in runs:
        base = None if origin is None else {"name": "m", "version": origin}
        result = {"model": {"name": "m", "version": version}, "base_digest": digest, "base_version": base}
        storage.write_json(f"{tmp_path}/runs/run-{version}/result.json", result)
        assert base_digest(str(tmp_path), result) == "base"
    storage.remove(f"{tmp_path}/runs/run-1")
    assert base_digest(str(tmp_path), result) == "first", "as far back as the runs are there"
