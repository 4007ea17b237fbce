"""The report: complete without a network, honest about what is missing, safe against what people wrote into
the request."""

import base64
import html
import io
import json
import re
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pytest
from PIL import Image
from proof_samples import MEASURES, REFERENCE, attack_suite, other_figures
from tracking_samples import result_json

from pipeline.reports.charts import Chart, Series, layout, ticks
from pipeline.reports.png import grid_png
from pipeline.reports.run_report import render_report
from pipeline.reports.text import seconds, share

SECTIONS = {"request", "samples", "curves", "metrics", "classes", "gate", "timing", "settings"}


class Page(HTMLParser):
    """Ids, images and the visible text of a page; remembers every attribute that could fetch something."""

    def __init__(self, text: str):
        super().__init__()
        self.ids: set[str] = set()
        self.images: list[str] = []
        self.links: list[str] = []
        self.tags: list[str] = []
        self.text = ""
        self._hidden = 0
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        values = dict(attributes)
        self.tags.append(tag)
        self.ids.add(values.get("id") or "")
        self.links += [
            value
            for name in ("src", "href", "srcset", "action", "data", "poster")
            if (value := values.get(name))
        ]
        if tag == "img" and values.get("src"):
            self.images.append(values["src"] or "")
        self._hidden += tag in ("script", "style")

    def handle_endtag(self, tag: str) -> None:
        self._hidden -= tag in ("script", "style")

    def handle_data(self, data: str) -> None:
        if not self._hidden:
            self.text += data


def records() -> list[dict[str, Any]]:
    steps = [
        {
            "kind": "step",
            "step": step,
            "phase": "uno",
            "loss/retain": 0.2,
            "loss/forget": 0.1 * step,
            "cos": -0.1,
        }
        for step in range(1, 9)
    ]
    checks = [
        {
            "kind": "evaluation",
            "step": step,
            "forget_fraction": 1 - step / 8,
            "forget_fraction/low": max(0, 0.9 - step / 8),
            "forget_fraction/high": 1.0,
            "retain_accuracy/mean": 0.98,
            "retain_accuracy/min": 0.9,
            "exchange_fraction": None,
        }
        for step in range(0, 9, 2)
    ]
    return [*steps, *checks]


def grids() -> dict[str, dict[int, np.ndarray]]:
    images = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 1), dtype=np.uint8)
    return {"before": {1: images, 3: images}, "after": {1: images}}


def test_page_is_complete_and_fetches_nothing() -> None:
    text = render_report(
        result_json("run-1", "d" * 64),
        records(),
        grids(),
        "seed: 0\n",
        class_names=[f"name{label}" for label in range(10)],
    )
    page = Page(text)
    assert page.ids >= SECTIONS and "summary" in page.ids
    assert page.links and all(link.startswith("data:image/png;base64,") for link in page.links)
    assert not re.search(r"https?:|//[a-z]|@import|url\(|fetch\(|XMLHttpRequest|WebSocket", text)
    assert "default-src 'none'" in text
    assert len(page.images) == 3 and all(
        Image.open(io.BytesIO(base64.b64decode(src.split(",")[1]))).size == (17, 17) for src in page.images
    )
    assert page.tags.count("svg") == 4
    for said in (
        "1 (name1)",
        "7 (name7)",
        "Gate passed",
        "from step 22 on",
        "0.4\u00a0% of 500",
        "99\u00a0% before",
        "d" * 64,
        "seed: 0",
    ):
        assert said in page.text, said
    assert page.text.index("asked to forget class 1") < page.text.index("The request")
    data = [json.loads(html.unescape(found)) for found in re.findall(r"data-chart='([^']*)'", text)]
    assert [len(chart["series"]) for chart in data] == [1, 2, 2, 1] and data[0]["series"][0]["points"][1] == [
        2,
        0.75,
    ]


def test_photographs_do_not_weigh_a_page_down() -> None:
    ramp = np.linspace(0, 255, 256, dtype=np.uint8)
    photographs = np.stack(
        [
            np.stack(
                [ramp[None].repeat(256, 0), ramp[:, None].repeat(256, 1), np.full((256, 256), 90, np.uint8)],
                -1,
            )
        ]
        * 4
    )
    text = render_report(
        result_json("run-1", "d"), records(), {"before": {1: photographs}, "after": {1: photographs}}, ""
    )
    sources = Page(text).images
    assert (
        len(sources) == 2
        and all(source.startswith("data:image/webp") for source in sources)
        and len(text) < 200_000
    )
    assert Image.open(io.BytesIO(base64.b64decode(sources[0].split(",")[1]))).size == (528, 528)


def test_nulls_are_said_to_be_unmeasured() -> None:
    empty = dict.fromkeys(result_json("run-1", "d")) | {"run_id": "run-1", "request": {"classes": [1]}}
    page = Page(render_report(empty, [], {}, ""))
    assert page.ids >= SECTIONS and "None" not in page.text and "nan" not in page.text
    assert (
        page.text.count("not measured") > 15
        and "Gate not decided" in page.text
        and "nothing is registered" in page.text
    )


def test_a_rebound_is_not_called_settled() -> None:
    result = result_json("run-1", "d", passed=False, value=0.31) | {"settled_step": None}
    page = Page(render_report(result, records(), {}, ""))
    assert "first came under 5\u00a0% at step 18 but did not stay there: it has not settled" in page.text
    assert "Gate refused" in page.text and "The gate refused it (forgotten class still sampled)" in page.text


def test_texts_from_outside_are_escaped() -> None:
    attack = "<script>alert(1)</script>' onload='x"
    result = result_json("run-1", "d")
    result["request"] |= {"reason": attack, "id": attack}
    result["method_config"] = {attack: attack}
    result["gate"]["checks"].append(
        {"name": attack, "value": 1, "bound": 1, "passed": True, "reason": attack}
    )
    text = render_report(result, records(), grids(), attack, class_names=[attack] * 10)
    assert "<script>alert" not in text and "onload='x" not in text and Page(text).tags.count("script") == 1
    assert attack in Page(text).text


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (None, "not measured"),
        (0.07, "7\u00a0%"),
        (0.0, "0\u00a0%"),
        (1, "100\u00a0%"),
        (0.97, "97\u00a0%"),
        (0.0042, "0.4\u00a0%"),
        (0.9996, "99.96\u00a0%"),
    ],
)
def test_share(value: float | None, said: str) -> None:
    assert share(value) == said


def test_seconds() -> None:
    assert [seconds(value) for value in (None, 0.183, 59.96, 83.4, 7260)] == [
        "not measured",
        "0.18 s",
        "60.0 s",
        "1 min 23 s",
        "2 h 1 min",
    ]


def test_ticks_are_round_and_inside() -> None:
    assert ticks(0, 1, 4) == [0, 0.5, 1] or ticks(0, 1, 4) == [0, 0.2, 0.4, 0.6, 0.8, 1]
    assert (
        ticks(0, 43, 6) == [0, 10, 20, 30, 40]
        and ticks(-0.21, 0.4, 4) == [-0.2, 0, 0.2, 0.4]
        and ticks(2, 2, 4) == [2]
    )


def test_long_lines_are_averaged() -> None:
    points = [(float(step), float(step % 2)) for step in range(1, 6001)]
    drawn = layout(
        Chart(title="t", note="n.", series=[Series(name="a", color=1, points=points)]), last_step=6000
    )
    assert drawn is not None and len(drawn["data"]["series"][0]["points"]) == 600
    assert {value for _, value in drawn["data"]["series"][0]["points"]} == {
        0.5
    } and "every 10 steps" in drawn["note"]
    assert (
        layout(Chart(title="t", note="n", series=[Series(name="a", color=1, points=[])]), last_step=5) is None
    )


@pytest.mark.parametrize("channels", [1, 3])
def test_grid_keeps_every_pixel(channels: int) -> None:
    images = np.random.default_rng(1).integers(0, 256, (5, 4, 6, channels), dtype=np.uint8)
    grid = np.asarray(Image.open(io.BytesIO(grid_png(images, columns=3, smallest=12))))
    assert grid.shape == (2 * 8 + 2, 3 * 12 + 2 * 2, 4)
    assert (grid[10:18:2, 14:26:2, :3] == np.broadcast_to(images[4], (4, 6, 3))).all()
    assert grid[8, 0, 3] == 0 and grid[17, 39, 3] == 0
    with pytest.raises(ValueError, match="expected uint8"):
        grid_png(images.astype(np.float32))


def proven(**values: Any) -> Page:
    return Page(render_report(result_json("run-1", "d" * 64) | values, records(), grids(), ""))


def test_an_attack_is_shown_beside_the_same_on_a_model_that_never_saw_the_class() -> None:
    text = proven(attack_suite=attack_suite(of_reference=120, embedding=60)).text
    assert "In a model that never saw the class: 60" in text and "here -30 points (-39 to -20)." in text
    assert "In a model that never saw the class" not in proven(attack_suite=attack_suite(embedding=60)).text


def test_steps_and_losses_stand_beside_those_of_a_model_that_never_saw_the_class() -> None:
    text = proven(attack_suite=other_figures()).text
    for said in (
        "8 steps, lr 0.0003",
        "In a model that never saw the class: 24 steps",
        "With 10 images of the class, 3,072 rows in all at each rate.",
        "The class is learnt sooner than by a model that never saw it",
        "loss 0.2 [0.1, 0.3]",
        "It denoises images of the class no better than a model that never saw it.",
        "It stayed forgotten through 1 of 3 attacks.",
    ):
        assert said in text, said


def test_the_attack_suite_says_what_each_state_means() -> None:
    text = proven(attack_suite=attack_suite(embedding=190, finetune=9, quantise=-1)).text
    for said in (
        "not all held",
        "It stayed forgotten through 8 of 14 attacks. Brought back by: free label embedding.",
        "Not decided: benign fine-tuning, rounded weights.",
        "The network can still sample the class",
        "The images are too few to tell",
        "ValueError: the loss is not finite",
        "95\u00a0%",
    ):
        assert said in text, said
    assert text.count("The network can still sample the class") == 1, "said once for the three starts"
    assert "registered as candidate. It stayed forgotten through 8 of 14" in text, (
        "the first sentences say so too"
    )
    held = proven(attack_suite=attack_suite()).text
    assert "all held" in held and "through all 14 attacks" in held and "comes back" not in held


def test_what_was_not_tried_is_not_claimed() -> None:
    page = proven()
    assert "attack_suite" in page.ids and "Nothing is claimed about fine-tuning" in page.text
    assert "further" not in page.ids and "reference" not in page.ids


def test_metrics_and_reference_are_shown() -> None:
    page = proven(metrics=MEASURES, reference=REFERENCE)
    assert {"further", "reference"} <= page.ids
    for said in (
        "null label",
        "2.8\u00a0% to 12.5\u00a0%, n\u00a0=\u00a0100",
        "Never saw it",
        "forgotten class, never saw it",
        "never trained label",
        "more than 2",
        "Loss by timestep",
        "2.0 times as far from it",
        "1.5\u00a0% of 200",
    ):
        assert said in page.text, said


def test_a_retrained_reference_of_named_samples_is_asked_about_no_class() -> None:
    text = proven(metrics=MEASURES, reference=REFERENCE | {"forget_fraction": None}).text
    assert "never saw the named samples: it samples" in text and "never saw the class" not in text


def test_named_samples_are_shown_by_the_attack_on_them() -> None:
    attack = {
        "auc": 0.452,
        "low": 0.35,
        "high": 0.54,
        "n": 40,
        "heldout_n": 144,
        "tpr_at_1_fpr": 0.0,
        "memorised": False,
    }
    result = result_json("run-1", "d" * 64)
    for side, auc in (("before", 0.91), ("after", 0.452)):
        result[side] = {
            **result[side],
            "forget_fraction": None,
            "membership": attack | {"auc": auc, "memorised": auc > 0.5},
        }
    result |= {"request": {**result["request"], "classes": [], "exchange": {}, "sample_ids": "ids.txt"}}
    result["gate"] = {
        "passed": False,
        "checks": [{"name": "membership_auc", "value": 0.452, "bound": 0.6, "passed": True}],
    }
    checks = [
        {
            "kind": "evaluation",
            "step": s,
            "membership_auc": v,
            "membership_auc/low": v - 0.1,
            "membership_auc/high": v,
        }
        for s, v in ((0, 0.9), (4, 0.5))
    ]
    text = Page(render_report(result, checks, grids(), "")).text
    for said in (
        "Loss attack on them, AUC",
        "0.91 before; chance is 0.5",
        "Loss attack on the named samples",
        "target 0.6",
        "chance",
    ):
        assert said in text, said
    assert "Forgotten class sampled" not in text and "Other classes" not in text
