"""The dashboard asks only for metrics and labels that exist: ours as the workers make them, Ray's as its own
dashboards name them."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.manifests import CLUSTER

SELECTOR = re.compile(r"\b(ray_[a-z_]+)(?:\{([^}]*)\})?")


class Recorder:
    """Stands in for ray.util.metrics: keeps the name and tags of whatever is made."""

    def __init__(self) -> None:
        self.made: dict[str, set[str]] = {}

    def kind(self, suffix: str) -> Any:
        made = self.made

        class Metric:
            def __init__(self, name: str, description: str = "", tag_keys: tuple[str, ...] = ()) -> None:
                made[f"ray_{name}{suffix}"] = set(tag_keys)

            def set_default_tags(self, tags: dict[str, str]) -> None: ...
            def set(self, value: float, tags: dict[str, str] | None = None) -> None: ...
            def inc(self, value: float = 1, tags: dict[str, str] | None = None) -> None: ...

        return Metric


@pytest.fixture
def ours(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, set[str]]:
    """Name in Prometheus -> labels, of every metric that a worker makes."""
    import ray.util.metrics

    from pipeline.training import timings_ray

    recorder = Recorder()
    monkeypatch.setattr(ray.util.metrics, "Counter", recorder.kind("_total"))
    monkeypatch.setattr(ray.util.metrics, "Gauge", recorder.kind(""))
    timings_ray.Timings(str(tmp_path), "run", 0, 1, None)
    timings_ray.Quality("run")
    return recorder.made


@pytest.fixture(scope="module")
def board() -> dict[str, Any]:
    return dict(json.loads((CLUSTER / "grafana-dashboard.json").read_text()))


def panels(board: dict[str, Any]) -> list[dict[str, Any]]:
    return [panel for panel in board["panels"] if panel["type"] != "row"]


def test_every_metric_exists_with_the_labels_it_is_asked_by(
    board: dict[str, Any], ours: dict[str, set[str]]
) -> None:
    import ray.dashboard.modules.metrics as metrics

    from pipeline.training.timings_ray import PHASES

    rays = "".join(path.read_text() for path in (Path(metrics.__file__).parent / "dashboards").glob("*.py"))
    used = set()
    for panel in panels(board):
        for target in panel["targets"]:
            for name, labels in SELECTOR.findall(target["expr"]):
                used.add(name)
                if not name.startswith("ray_unlearn"):
                    assert name in rays, f"{panel['title']}: Ray knows no {name}"
                    continue
                assert name in ours, f"{panel['title']}: no worker makes {name}"
                assert set(re.findall(r"(\w+)[=!]", labels)) <= ours[name], panel["title"]
                for phases in re.findall(r'phase[=!]~?"([^"]+)"', labels):
                    assert set(phases.split("|")) <= set(PHASES), panel["title"]
            assert set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"])) <= {
                "run",
                "rank",
                "phase",
                "instance",
                "Location",
            }
    assert used >= set(ours), f"not shown: {set(ours) - used}"


def test_the_dashboard_is_one_that_grafana_loads(board: dict[str, Any]) -> None:
    """Unique ids, a place for each panel without overlaps, its own data source, balanced queries."""
    ids = [panel["id"] for panel in board["panels"]]
    assert len(set(ids)) == len(ids) and board["uid"] and board["schemaVersion"] >= 39
    taken: set[tuple[int, int]] = set()
    for panel in board["panels"]:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        taken |= cells
    variables = {variable["name"] for variable in board["templating"]["list"]}
    for panel in panels(board):
        assert panel["title"] and panel["targets"] and panel["datasource"]["uid"] == "${datasource}"
        for target in panel["targets"]:
            assert all(
                target["expr"].count(left) == target["expr"].count(right)
                for left, right in ("()", "{}", "[]")
            )
            assert set(re.findall(r"\$(\w+)", target["expr"])) <= variables | {"__rate_interval"}
