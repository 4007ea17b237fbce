"""The report in a real browser, at the width of a phone and of a desk: quiet, asking nobody, readable,
working."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browser import CHROMIUM, Tab, chromium, visit
from proof_samples import ATTACK_SUITE, MEASURES, REFERENCE
from test_report import grids, records
from tracking_samples import result_json

from pipeline.reports.run_report import render_report

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of a run with everything in it."""
    result = result_json("run-1", "d" * 64) | {
        "attack_suite": ATTACK_SUITE,
        "metrics": MEASURES,
        "reference": REFERENCE,
    }
    path = tmp_path_factory.mktemp("report") / "report.html"
    path.write_text(render_report(result, records(), grids(), "seed: 0\n" * 80))
    return path


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with chromium(tmp_path_factory.mktemp("profile")) as address:
        yield address


@pytest.mark.parametrize(("width", "dark"), [(400, False), (400, True), (1400, False)])
def test_quiet_asks_nobody_and_fits(page: Path, browser: str, width: int, dark: bool) -> None:
    async def look(tab: Tab) -> dict[str, Any]:
        await tab.open(page.as_uri(), width=width, dark=dark)
        images = (
            "[...document.querySelectorAll('.sides img')].map(i => [i.complete, i.naturalWidth,"
            " i.getBoundingClientRect().width])"
        )
        seen = {
            "images": await tab.run(images),
            "wide": await tab.run("document.documentElement.scrollWidth"),
            "cut": await tab.run(
                "[...document.querySelectorAll('td, th, h2, h3, p, dd')].filter(e =>"
                " e.getBoundingClientRect().right > innerWidth + 1 && !e.closest('pre')).map(e =>"
                " e.textContent.trim().slice(0, 40))"
            ),
            "background": await tab.run("getComputedStyle(document.body).backgroundColor"),
            "sections": await tab.run("[...document.querySelectorAll('section')].map(s => s.id)"),
        }
        await tab.screenshot(page.with_name(f"report-{width}{'-dark' if dark else ''}.png"))
        return seen | {"said": tab.said, "asked": tab.asked}

    seen = visit(browser, look)
    assert seen["said"] == []
    assert [url for url in seen["asked"] if not url.startswith("data:")] == [page.as_uri()]
    assert len(seen["images"]) == 3 and all(
        done and natural == 17 and shown > 40 for done, natural, shown in seen["images"]
    )
    assert seen["wide"] <= width and seen["cut"] == []
    assert {"attack_suite", "further", "reference", "gate", "samples"} <= set(seen["sections"])
    red, green, blue = (
        int(part) for part in seen["background"].removeprefix("rgb(").removesuffix(")").split(",")[:3]
    )
    assert (red + green + blue < 200) == dark
    assert page.with_name(f"report-{width}{'-dark' if dark else ''}.png").stat().st_size > 20_000


def test_images_enlarge_tables_sort_and_charts_tell_values(page: Path, browser: str) -> None:
    async def look(tab: Tab) -> dict[str, Any]:
        await tab.open(page.as_uri(), width=1400)
        await tab.run("document.querySelector('.sides button').click()")
        opened = await tab.run(
            "[document.querySelector('dialog').open, document.querySelector('dialog img').naturalWidth]"
        )
        await tab.run("document.querySelector('dialog .close').click()")
        closed = await tab.run("document.querySelector('dialog').open")
        column = "[...document.querySelectorAll('#classes tbody tr')].map(r => r.cells[3].dataset.value)"
        after = "document.querySelectorAll('#classes th button')[3].click()"
        orders = [await tab.run(f"{after}; {column}") for _ in range(2)]
        await tab.run(
            "(plot => { const b = plot.getBoundingClientRect(); plot.dispatchEvent(new"
            " PointerEvent('pointermove', {clientX: b.left + b.width / 2, clientY: b.top + 20}));"
            " })(document.querySelector('#further .plot'))"
        )
        tip = await tab.run("document.querySelector('#further .tip').textContent")
        return {"opened": opened, "closed": closed, "orders": orders, "tip": tip, "said": tab.said}

    seen = visit(browser, look)
    assert seen["opened"] == [True, 17] and seen["closed"] is False and seen["said"] == []
    assert seen["orders"] == [["0.95", "0.99"], ["0.99", "0.95"]]
    assert seen["tip"].startswith("timestep ") and "forgotten class, after" in seen["tip"]
