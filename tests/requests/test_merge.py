"""What one run has to answer: the union of everything open and everything answered."""

import datetime
from collections.abc import Sequence

import pytest

from pipeline.errors import InputError
from pipeline.requests import merge
from pipeline.requests.ledger import Entry, Ledger, NamedSamples, Terms, fold

DAY = datetime.date(2026, 6, 1)


def terms(classes: dict[int, Sequence[int]], *, due: int = 30, samples: int = 0, **changed: object) -> Terms:
    """Terms that forget `classes` (class -> exchange classes) `due` days after DAY."""
    named = (
        NamedSamples(uri="/ids", count=samples, digest="0" * 64, classes={2: samples}) if samples else None
    )
    values = {
        "model_name": "m",
        "lake": "digits",
        "classes": sorted(classes),
        "exchange": {label: list(others) for label, others in classes.items() if others},
        "samples": named,
        "received": DAY,
        "due": DAY + datetime.timedelta(days=due),
        "legal_basis": "",
        "approver": "",
        **changed,
    }
    return Terms.model_validate(values)


def ledger_of(*moves: tuple[str, str, dict]) -> Ledger:
    return fold(
        [
            Entry(number=i, time="t", by="b", previous="", move=move, request=request, details=details)
            for i, (request, move, details) in enumerate(moves, 1)
        ]
    )


def received(name: str, asked: Terms) -> list[tuple[str, str, dict]]:
    return [(name, "received", asked.model_dump(mode="json")), (name, "accepted", {})]


def answered(name: str, version: int = 1) -> list[tuple[str, str, dict]]:
    return [
        (name, "answered", {"version": version, "run_id": f"run-{version}"}),
        (name, "closed", {"version": version}),
    ]


@pytest.fixture
def stream() -> Ledger:
    """Forgotten and closed: 1 -> 7 and 8 -> 3. Open: 3 -> 5 (due later), samples of 2 and 1 (due first).
    Withdrawn: 9 -> 4. Of another model: 6 -> 0."""
    return ledger_of(
        *received("r1", terms({1: [7]})),
        *received("r8", terms({8: [3]})),
        *answered("r8", 1),
        *answered("r1", 2),
        *received("r9", terms({9: [4]})),
        ("r9", "withdrawn", {"reason": "a mistake"}),
        *received("r3", terms({3: [5]}, due=20)),
        *received("r2", terms({}, due=10, samples=3)),
        *received("x6", terms({6: [0]}, model_name="other")),
    )


IDS = {"r2": {"a": 2, "b": 2, "c": 1}}


def test_the_union_is_everything_open_and_everything_answered(stream: Ledger) -> None:
    union = merge.union(merge.of_model(stream, "m"), IDS)
    assert [request.id for request in union.open] == ["r2", "r3"], "earliest due date first"
    assert [request.id for request in union.answered] == ["r8", "r1"], "in the order they were answered"
    assert union.request_ids == ("r8", "r1", "r2", "r3")
    assert union.classes == (1, 3, 8)
    assert union.exchange == {1: (7,), 3: (5,), 8: (5,)}
    assert union.redirected == {8: (3,)}, "its exchange class is forgotten now, so it gives that one's"
    assert union.sample_ids == ("a", "b") and union.sample_classes == (2,), "c is of a class that goes whole"


def test_one_open_request_may_be_left_out(stream: Ledger) -> None:
    requests = [request for request in merge.of_model(stream, "m") if request.id != "r3"]
    union = merge.union(requests, IDS)
    assert union.classes == (1, 8) and union.exchange == {1: (7,), 8: (3,)} and union.redirected == {}


def test_roles(stream: Ledger) -> None:
    requests = merge.of_model(stream, "m")
    roles = merge.roles(requests, range(10))
    assert {label for label, role in roles.items() if role == "forgotten_earlier"} == {1, 8}
    assert {label for label, role in roles.items() if role == "forgotten_now"} == {3}
    assert {label for label, role in roles.items() if role == "retained"} == {0, 2, 4, 5, 6, 7, 9}
    assert set(roles) == set(range(10))


def test_a_class_asked_for_again_stays_forgotten_earlier_and_a_reopened_one_is_forgotten_now() -> None:
    again = ledger_of(*received("r1", terms({1: [7]})), *answered("r1"), *received("r2", terms({1: []})))
    assert merge.roles(merge.of_model(again, "m"), [1]) == {1: "forgotten_earlier"}
    opened = ledger_of(
        *received("r1", terms({1: [7]})), *answered("r1"), ("r1", "reopened", {"reason": "audit failed"})
    )
    requests = merge.of_model(opened, "m")
    assert merge.roles(requests, [1]) == {1: "forgotten_now"}
    assert [request.id for request in merge.open_requests(requests)] == ["r1"]
    assert merge.answered_requests(requests) == []


@pytest.mark.parametrize(
    ("asked", "exchange"),
    [
        ([{1: [3]}, {3: [5]}, {5: [6]}], {1: (6,), 3: (6,), 5: (6,)}),
        ([{1: [3, 7]}, {3: [5]}], {1: (5, 7), 3: (5,)}),
        ([{1: [3, 7]}, {3: []}], {1: (7,)}),
        ([{1: [3]}, {3: []}], {}),
        ([{1: [3]}, {3: [1]}], {}),  # two that give each other, which `submit` does not let in
    ],
)
def test_exchange_classes_that_were_forgotten_later_give_way_to_their_own(
    asked: list[dict[int, list[int]]], exchange: dict[int, tuple[int, ...]]
) -> None:
    stream = ledger_of(*(move for i, one in enumerate(asked) for move in received(f"r{i}", terms(one))))
    assert merge.union(merge.of_model(stream, "m"), {}).exchange == exchange


def test_contradictions_are_refused() -> None:
    two = ledger_of(*received("r1", terms({1: [7]})), *received("r2", terms({1: [8]})))
    with pytest.raises(InputError, match=r"requests r1 and r2: class 1 is to give \[7\] and \[8\]"):
        merge.union(merge.of_model(two, "m"), {})
    lakes = ledger_of(*received("r1", terms({1: [7]})), *received("r2", terms({2: [7]}, lake="mnist")))
    with pytest.raises(InputError, match="got those of lakes digits, mnist, expected one lake"):
        merge.union(merge.of_model(lakes, "m"), {})
    assert len(merge.of_model(lakes, "m", "mnist")) == 1


def test_the_same_ledger_gives_the_same_union(stream: Ledger) -> None:
    forward, backward = merge.of_model(stream, "m"), merge.of_model(stream, "m")[::-1]
    assert merge.union(forward, IDS) == merge.union(backward, IDS)
    empty = merge.union([], {})
    assert empty.open == empty.answered == empty.classes == empty.sample_ids == ()
