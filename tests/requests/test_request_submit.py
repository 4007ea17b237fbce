"""What is taken in, and what is refused with nothing written."""

import dataclasses
import datetime
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline import storage
from pipeline.config import parse
from pipeline.config.ledger import LedgerConfig
from pipeline.config.process import ProcessConfig
from pipeline.data import tombstones
from pipeline.data.lake import lake_uri, read_lake
from pipeline.errors import InputError
from pipeline.requests import ledger, overview, plan, samples, submit

Configured = Callable[..., LedgerConfig]


@pytest.fixture
def ids(root: str, tmp_path: Path) -> Callable[..., str]:
    """A file that lists the first `count` sample ids of each of `classes`."""

    def write(*classes: int, count: int = 3, name: str = "ids.txt") -> str:
        lake = read_lake(lake_uri(root, "digits"))
        lines = [sample for label in classes for sample in list(lake.read([label]).sample_id)[:count]]
        (tmp_path / name).write_text("\n".join(lines) + "\n\n")
        return str(tmp_path / name)

    return write


def test_a_request_keeps_everything_it_was_given(root: str, configured: Configured, ids: Callable) -> None:
    uri = ids(2, 4)
    config = configured(
        "case-17",
        classes=[1],
        exchange={1: [7, 9]},
        sample_ids=uri,
        received="2026-01-05",
        due="2026-02-01",
        legal_basis="GDPR 17 (1) b",
        approver="j.doe@example.org",
    )
    request, is_new = submit.submit(config)
    assert is_new and request.state == "accepted"
    assert request == ledger.read(root).requests["case-17"]
    terms = request.terms
    assert (terms.classes, terms.exchange, terms.model_name) == ([1], {1: [7, 9]}, "dit-digits-unlearned")
    assert (str(terms.received), str(terms.due)) == ("2026-01-05", "2026-02-01")
    assert (terms.legal_basis, terms.approver) == ("GDPR 17 (1) b", "j.doe@example.org")
    listed = samples.read_list(uri)
    assert terms.samples is not None and terms.samples.classes == {2: 3, 4: 3}
    assert (terms.samples.count, terms.samples.digest) == (6, storage.digest_of(sorted(listed)))
    kept = "".join(path.read_text() for path in (Path(root) / "requests").rglob("*.json"))
    assert not any(f'"{sample}"' in kept for sample in listed), "the ledger holds no id in clear"
    assert overview.scope_text(terms) == "class 1 as 7 or 9, 6 samples of class 2, 4"


def test_submitting_again_changes_nothing(root: str, configured: Configured) -> None:
    config = configured("r1", classes=[1], exchange={1: 7}, due="2026-12-31")
    submit.submit(config)
    before = ledger.read(root)
    later = configured("r1", classes=[1], exchange={1: [7]}, due="2027-12-31")
    request, is_new = submit.submit(later)
    assert not is_new and str(request.terms.due) == "2026-12-31" and ledger.read(root) == before
    submit.withdraw(configured("r1", reason="a mistake"))
    with pytest.raises(InputError, match="'r1' was withdrawn; expected another id"):
        submit.submit(config)


def test_default_ids_carry_lake_and_scope(
    root: str, configured: Configured, lake_root: Path, ids: Callable
) -> None:
    a = submit.submit(configured(classes=[1], exchange={1: 7}))[0]
    assert a.id.startswith("digits-forget-1-") and submit.submit(
        configured(classes=[1], exchange={1: 7})
    ) == (
        a,
        False,
    )
    elsewhere = f"{lake_root}/lakes/digits"
    b = submit.submit(configured(classes=[1], exchange={1: 7}, lake=elsewhere))[0]
    c = submit.submit(configured(classes=[1], exchange={1: 7}, tracking={"model_name": "another"}))[0]
    d = submit.submit(configured(sample_ids=ids(2)))[0]
    e = submit.submit(configured(sample_ids=ids(2, count=4)))[0]
    assert len({a.id, b.id, c.id, d.id, e.id}) == 5 and len(ledger.read(root).requests) == 5
    assert d.id.startswith("digits-forget-samples-")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, r"request: got neither classes nor sample_ids"),
        ({"classes": [77], "exchange": {77: 1}}, r"classes: class 77 is not in lake 'digits', .* 0 to 9"),
        ({"classes": [1], "exchange": {1: 77}}, r"request\.exchange: class 77 is not in lake"),
        ({"classes": [1, 1], "exchange": {1: 7}}, r"classes: got \[1, 1\], expected each class once"),
        ({"classes": [1]}, r"request\.exchange: class 1 has none"),
        ({"classes": [1], "exchange": {1: 7, 2: 7}}, r"request\.exchange: 2 is not among request\.classes"),
        ({"classes": [1, 3], "exchange": {1: 3, 3: 5}}, r"class 1 would give class 3, which is itself"),
        ({"classes": [1], "exchange": {1: 3}}, r"class 1 would give class 3, which request r3 has forgotten"),
        ({"classes": [3], "exchange": {3: 6}}, r"class 3 would give \[6\], but by request r3 it gives \[5\]"),
        (
            {"classes": [0, 1, 2, 4, 5, 6, 7, 8, 9], "without_exchange": True},
            r"every class of lake 'digits' would be forgotten",
        ),
        (
            {"sample_ids": "/nowhere/ids.txt"},
            r"request\.sample_ids: got '/nowhere/ids\.txt', which is missing",
        ),
        (
            {"classes": [1], "exchange": {1: 7}, "received": "2999-01-01"},
            r"received: got 2999-01-01, .* to come",
        ),
        ({"classes": [1], "exchange": {1: 7}, "lake": "nope"}, r"no lake at .*nope"),
        (
            {"classes": [1], "exchange": {1: 7}, "lake": "s3://me:secret@host/x"},
            r"lake: got a URI with a password",
        ),
        ({"sample_ids": "s3://me:secret@host/x"}, r"request\.sample_ids: got a URI with a password"),
    ],
)
def test_bad_requests_are_refused_with_nothing_written(
    root: str, configured: Configured, given: dict, message: str
) -> None:
    submit.submit(configured("r3", classes=[3], exchange={3: 5}))
    before = {path: path.read_bytes() for path in Path(root).rglob("*") if path.is_file()}
    for dry_run in (True, False):
        with pytest.raises(InputError, match=message) as caught:
            submit.submit(configured("bad", **given), dry_run=dry_run)
        assert "\n" not in str(caught.value) and "secret" not in str(caught.value)
    assert {path: path.read_bytes() for path in Path(root).rglob("*") if path.is_file()} == before


def test_ids_that_the_lake_does_not_hold(configured: Configured, ids: Callable, tmp_path: Path) -> None:
    uri = ids(2)
    with (tmp_path / "ids.txt").open("a") as file:
        file.write("never-seen\n")
    with pytest.raises(
        InputError, match=r"1 of 4 ids are no training rows of lake 'digits', the first is 'never-seen'"
    ):
        submit.submit(configured("r1", sample_ids=uri))
    (tmp_path / "ids.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="is no text in UTF-8"):
        submit.submit(configured("r1", sample_ids=uri))


@pytest.mark.parametrize(
    ("changed", "key"),
    [
        ({"classes": [2], "exchange": {2: 7}}, "classes"),
        ({"exchange": {1: 8}}, "exchange"),
        ({"tracking": {"model_name": "another"}}, "model_name"),
    ],
)
def test_the_same_id_with_another_scope(configured: Configured, changed: dict, key: str) -> None:
    first = {"classes": [1], "exchange": {1: 7}}
    submit.submit(configured("r1", **first))
    with pytest.raises(InputError, match=rf"'r1' is in the ledger with another scope \({key} "):
        submit.submit(configured("r1", **{**first, **changed}))


def test_another_list_of_ids_is_another_scope(configured: Configured, ids: Callable) -> None:
    submit.submit(configured("r1", sample_ids=ids(2)))
    assert not submit.submit(configured("r1", sample_ids=ids(2, name="copy.txt")))[1], "the ids count"
    with pytest.raises(InputError, match=r"another scope \(samples "):
        submit.submit(configured("r1", sample_ids=ids(2, count=4)))


def test_a_list_that_changed_or_went_since_is_not_needed(
    root: str, configured: Configured, ids: Callable, answer: Callable
) -> None:
    """The ledger knows the samples by their hashes; where it does not, nothing is guessed."""
    lake = read_lake(lake_uri(root, "digits"))
    request, _ = submit.submit(configured("r1", sample_ids=ids(2, 4)))
    named = samples.of_request(request, lake, root)
    assert sorted(set(named.classes.values())) == [2, 4] and len(named.classes) == 6 and named.uri
    kept = storage.join(root, "requests", "ids", "r1.json")
    assert not any(name in storage.read_bytes(kept).decode() for name in named.classes), "no id in clear"

    ids(2, 5)  # the file lists others now
    assert samples.of_request(request, lake, root) == samples.Named(named.classes)
    answer("r1", 1)
    request = ledger.read(root).requests["r1"]
    rows = plan.rows_of([request], lake, root)
    assert rows.ids == {"r1": named.classes} and not rows.gone and not rows.lists

    tombstones.bury(root, "other", sorted(named.classes)[:2])
    rows = plan.rows_of([request], lake, root)
    assert len(rows.ids["r1"]) == 4 and rows.gone == {"r1": "2 of its 6 samples were purged"}

    waiting = dataclasses.replace(request, state="accepted")
    settings = parse(ProcessConfig, {"storage": root})
    assert plan.hopeless(settings, [waiting], rows) == rows.gone, "no run can forget what is not there"

    storage.remove(kept)
    with pytest.raises(InputError, match=r"request r1: .* are not the 6 it was submitted with, and nobody"):
        plan.rows_of([request], lake, root)


def test_an_exchange_to_what_was_forgotten_long_ago(configured: Configured, answer: Callable) -> None:
    submit.submit(configured("r3", classes=[3], exchange={3: 5}))
    answer("r3", 2)
    with pytest.raises(InputError, match="class 8 would give class 3, which request r3 has forgotten"):
        submit.submit(configured("r8", classes=[8], exchange={8: 3}))
    # of another model, and after a withdrawal, it is no one's
    assert submit.submit(configured("x8", classes=[8], exchange={8: 3}, tracking={"model_name": "other"}))[1]
    submit.submit(configured("r5", classes=[4], exchange={4: 6}))
    submit.withdraw(configured("r5", reason="came twice"))
    assert submit.submit(configured("r6", classes=[9], exchange={9: 4}))[1]


def test_a_second_request_for_the_same_class_needs_no_exchange(configured: Configured) -> None:
    submit.submit(configured("r1", classes=[1], exchange={1: 7}))
    assert submit.submit(configured("r2", classes=[1]))[0].state == "accepted"


def test_due_dates(configured: Configured) -> None:
    past, _ = submit.submit(configured("r1", classes=[1], exchange={1: 7}, due="2020-01-01"))
    assert past.state == "accepted" and past.is_overdue(ledger.today())
    given, _ = submit.submit(
        configured("r2", classes=[2], exchange={2: 7}, received="2026-03-01", due_days=10)
    )
    assert given.terms.due == datetime.date(2026, 3, 11)
    month, _ = submit.submit(configured("r3", classes=[3], exchange={3: 7}))
    assert month.terms.due == month.terms.received + datetime.timedelta(days=30)


def test_withdrawing(root: str, configured: Configured, answer: Callable) -> None:
    submit.submit(configured("r1", classes=[1], exchange={1: 7}))
    with pytest.raises(InputError, match=r"reason: got none"):
        submit.withdraw(configured("r1"))
    assert submit.withdraw(configured("r1", reason="a mistake"), dry_run=True).state == "accepted"
    for _ in range(2):
        request = submit.withdraw(configured("r1", reason="a mistake"))
        assert (request.state, request.reason, len(request.history)) == ("withdrawn", "a mistake", 3)
    submit.submit(configured("r2", classes=[2], exchange={2: 7}))
    answer("r2", 5)
    before = ledger.read(root)
    with pytest.raises(
        InputError, match=r"version 5 of dit-digits-unlearned answered it already, .* un-forget"
    ):
        submit.withdraw(configured("r2", reason="a mistake"))
    assert ledger.read(root) == before


@pytest.mark.parametrize(("given", "read"), [(4711, "4711"), ("0815", "0815"), ("case.7_b-2", "case.7_b-2")])
def test_a_ticket_number_is_a_text(given: object, read: str) -> None:
    assert parse(LedgerConfig, {"request": {"id": given}}).request.id == read


@pytest.mark.parametrize("given", ["../x", "", "-a", "a/b", "a" * 101, "ü", 1.5, True])
def test_ids_that_are_no_ids(given: object) -> None:
    with pytest.raises(InputError, match=r"request\.id: got "):
        parse(LedgerConfig, {"request": {"id": given}})


def test_the_first_request_to_a_model_is_told_from_the_second(root: str, configured: Configured) -> None:
    first, _ = submit.submit(configured("r1", classes=[1], exchange={1: 7}))
    assert overview.other_models(ledger.read(root), first) == []
    other = {"tracking": {"model_name": "mistyped"}}
    odd, _ = submit.submit(configured("r3", classes=[3], exchange={3: 5}, **other))
    assert overview.other_models(ledger.read(root), odd) == [first.terms.model_name]
    second, _ = submit.submit(configured("r4", classes=[4], exchange={4: 9}), dry_run=True)
    assert overview.other_models(ledger.read(root), second) == []
