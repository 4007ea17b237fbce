"""The messages that docs/operations.md quotes are those that the code has."""

import ast
import re

import pytest

from tests.cluster.manifests import ROOT

RUNBOOK = ROOT / "docs" / "operations.md"
GAP = "…"


def quoted() -> list[str]:
    """The messages in the first column of the tables headed "seen"."""
    found, inside = [], False
    for line in RUNBOOK.read_text().splitlines():
        inside = line.startswith("|") and (inside or line.startswith("| seen"))
        if inside and not line.startswith(("| seen", "|---")):
            found += [text for text in re.findall(r"`([^`]+)`", line.split("|")[1]) if " " in text]
    return found


def templates() -> list[str]:
    """Every text of the code, what is filled in replaced by a gap."""
    texts = []
    for folder in ("models", "pipeline", "jobs", "cluster"):
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.JoinedStr):
                    parts = [part.value if isinstance(part, ast.Constant) else GAP for part in node.values]
                    texts.append("".join(map(str, parts)))
                elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                    texts.append(re.sub(r"%[\d.]*[sdf]", GAP, node.value))
    return texts


@pytest.fixture(scope="module")
def known() -> list[str]:
    return templates()


def test_there_are_messages_to_check() -> None:
    assert len(quoted()) > 30


@pytest.mark.parametrize("message", sorted(set(quoted())))
def test_a_quoted_message_is_in_the_code(message: str, known: list[str]) -> None:
    """Its literal parts, in order, in one text; what stands where the doc has a gap may be anything."""
    parts = [part for part in message.split(GAP) if part.strip()]
    pattern = re.compile(".*?".join(map(re.escape, parts)), re.DOTALL)
    assert any(pattern.search(text) for text in known), f"no text of the code reads like: {message}"
