"""requests.html: what it says, and how it looks at the width of a phone and of a desk."""

import datetime
import html
import re
from pathlib import Path
from typing import Any

import pytest
from browser import CHROMIUM, Tab, chromium, layout, visit
from test_merge import answered, ledger_of, received, terms

from pipeline import storage
from pipeline.requests import ledger, page
from pipeline.requests.ledger import Ledger

DAY = datetime.date(2026, 6, 28)


def every_state() -> Ledger:
    """Overdue: late. Waiting: far. Closed and audited: done. Answered after its due date: slow. Reopened:
    again. Refused: no. Withdrawn: gone."""
    audit = {"version": 4, "passed": True}
    return ledger_of(
        *received("late", terms({0: [6]}, due=20)),
        *received("far", terms({}, due=300_000, samples=12)),
        *received("done", terms({1: [7]}, due=300, legal_basis="GDPR 17", approver="<b>dpo</b>")),
        *answered("done", 3),
        ("done", "audited", audit),
        *received("slow", terms({3: [5]}, due=-100)),
        *answered("slow", 4),
        *received("again", terms({2: [5]}, due=300_000)),
        *answered("again", 4),
        ("again", "audited", {**audit, "passed": False}),
        ("again", "reopened", {"reason": "7 % of class 2 <on> fresh seeds"}),
        *received("no", terms({8: [3]})),
        ("no", "refused", {"reason": "class 3 is forgotten"}),
        *received("gone", terms({9: [4]})),
        ("gone", "withdrawn", {"reason": "a mistake"}),
    )


def section(text: str, name: str) -> str:
    (part,) = re.findall(rf'<section id="{name}">.*?</section>', text, re.DOTALL)
    return html.unescape(re.sub(r"<[^>]+>", " ", part))


def test_every_request_stands_where_it_belongs() -> None:
    known = every_state()
    dated = [  # as an answer of the ledger carries the time, so that one of them is late
        ledger.Entry(**{**vars(entry), "time": "2026-06-15T10:00:00+00:00"}) for entry in known.entries
    ]
    text = page.render(ledger.fold(dated), DAY)
    rows = re.findall(r'data-id="(\w+)"', text)
    assert rows == ["late", "far", "again", "slow", "done", "gone", "no"]
    waiting, done, others = (section(text, name) for name in ("waiting", "answered", "others"))
    assert "late" in waiting and "overdue" in waiting and "12 samples of class 2" in waiting
    assert "reopened" in waiting and "7 % of class 2 <on> fresh seeds" in waiting
    assert re.search(r"slow .* version 4 +2026-06-15, late .* not yet", done, re.DOTALL)
    assert re.search(r"done .* version 3 +2026-06-15 .* passed +version 4, +2026-06-15", done, re.DOTALL)
    assert "GDPR 17" in done and "<b>dpo</b>" in done and "<b>dpo</b>" not in text, "escaped"
    assert "class 3 is forgotten" in others and "withdrawn" in others
    assert 'href="../runs/run-3/report.html"' in text
    assert "7 deletion requests came in; 3 still wait." in text and "needs attention" in text


def test_a_ledger_without_requests() -> None:
    text = page.render(ledger_of(), DAY)
    assert "No deletion request has come in yet." in text and "nothing waits" in text
    assert 'id="others"' not in text and "0 entries" in text


def test_it_needs_nothing_else(tmp_path: Path) -> None:
    text = page.render(every_state(), DAY)
    assert not re.search(r"https?://|<link|src=|@import|url\(", text)
    assert set(re.findall(r'href="([^"]+)"', text)) == {f"../runs/run-{n}/report.html" for n in (3, 4)}


def test_the_null_label_of_the_run_that_answered(tmp_path: Path) -> None:
    share = {"value": 0.25, "n": 200, "low": 0.19, "high": 0.31}
    result = {"after": {"leakage": {"null_label": share}}}
    storage.write_json(f"{tmp_path}/runs/run-3/result.json", result)
    measured = page.null_label_of(str(tmp_path), every_state())
    assert measured.keys() == {"run-3"}, "of the others there is no result"
    assert "25\u00a0% of 200 images" in section(page.render(every_state(), DAY, measured), "answered")


def test_of_two_writers_the_newer_ledger_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While the page is being written another request comes in, whose own page is older by then."""
    root, original = str(tmp_path), page.storage.write_text
    move = ledger.Move(name="received", request="r1", details=terms({1: [7]}).model_dump(mode="json"))

    def slow(uri: str, text: str) -> None:
        monkeypatch.setattr(page.storage, "write_text", original)
        ledger.append(root, lambda known: [] if known.requests else [move])
        page.write(root)
        original(uri, text)

    monkeypatch.setattr(page.storage, "write_text", slow)
    uri = page.write(root)
    assert uri == f"{root}/requests/requests.html"
    assert 'data-id="r1"' in Path(uri).read_text()


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
def test_in_a_browser(tmp_path: Path) -> None:
    path = tmp_path / "requests.html"
    path.write_text(page.render(every_state(), datetime.date(2026, 6, 1)))  # nothing was overdue then

    async def look(tab: Tab, width: int) -> dict[str, Any]:
        await tab.open(path.as_uri(), width=width)
        seen = {
            **await layout(tab),
            "overdue": await tab.run("document.querySelector('#tile-overdue').textContent"),
            "next": await tab.run("document.querySelector('#tile-waiting .note').textContent"),
            "pill": await tab.run("document.querySelector('[data-id=late] .pill').textContent"),
            "state": await tab.run("document.getElementById('state').textContent"),
        }
        await tab.screenshot(tmp_path / f"requests-{width}.png")
        return seen | {"said": tab.said, "asked": tab.asked}

    with chromium(tmp_path / "profile") as address:
        for width in (400, 1400):
            seen = visit(address, lambda tab, width=width: look(tab, width))
            assert seen["said"] == [] and seen["asked"] == [path.as_uri()]
            assert seen["wide"] <= width and seen["cut"] == [] and seen["small"] == []
            assert (seen["overdue"], seen["pill"], seen["state"]) == (
                "Overdue1late",
                "overdue",
                "needs attention",
            ), "what fell due since the page was written"
            assert seen["next"].startswith("next due 2847-")
