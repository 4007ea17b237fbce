"""What every method of the table promises, and what each of them is."""

import pytest
import torch
from steps import PENALTY, SMALL, naive_losses, own_rows, preparation, student, take_step
from tiny import relative, tiny_dit, tiny_step_rows

from pipeline.unlearning.collectives import Collectives
from pipeline.unlearning.gradients import Gradients, LocalGradients
from pipeline.unlearning.label_init import start_at_exchange
from pipeline.unlearning.losses import Weights, build_terms
from pipeline.unlearning.methods.preparation import Memory, Tools
from pipeline.unlearning.methods.table import METHODS, method_settings, own_losses, own_penalties
from pipeline.unlearning.noising import StepRows
from pipeline.unlearning.parameters import flat, select
from pipeline.unlearning.teacher import Teacher

ALL = sorted(METHODS)
TARGETS = ["data", "teacher"]


@pytest.mark.parametrize("targets", TARGETS)
@pytest.mark.parametrize("method", ALL)
@pytest.mark.parametrize("index", [1, 2])
def test_gradient_is_finite_deterministic_and_of_the_parameters_size(
    method: str, targets: str, index: int
) -> None:
    _, named, _ = student()
    rows, weights = tiny_step_rows(), Weights(targets=targets)
    first, second = (take_step(method, rows, index=index, weights=weights) for _ in range(2))
    assert first.shape == (sum(p.numel() for p in named.values()),) and first.dtype == torch.float64
    assert torch.isfinite(first).all() and first.norm() > 0
    assert torch.equal(first, second)


@pytest.mark.parametrize("targets", TARGETS)
@pytest.mark.parametrize("method", ALL)
@pytest.mark.parametrize("index", [1, 2])
def test_micro_batches_give_the_gradient_of_the_whole_batch(method: str, targets: str, index: int) -> None:
    rows, weights = tiny_step_rows(), Weights(targets=targets)
    whole = take_step(method, rows, index=index, weights=weights)
    for micro_batches, joint in ((1, False), (2, True), (4, False)):
        got = take_step(
            method,
            rows,
            index=index,
            weights=weights,
            micro_batches=micro_batches,
            hvp="recompute",
            joint=joint,
        )
        assert relative(got, whole) < 1e-12


@pytest.mark.parametrize("hvp", ["exact", "recompute", "fd_central"])
@pytest.mark.parametrize("method", ALL)
def test_a_step_leaves_parameters_and_gradients_alone(method: str, hvp: str) -> None:
    model, named, teacher = student()
    before = {name: tensor.clone() for name, tensor in model.net.state_dict().items()}
    line, settings = METHODS[method], method_settings(method, SMALL.get(method, {}))
    given = preparation(settings)
    memory = line.prepare(given) if line.prepare else Memory()
    tools = Tools(model=model, teacher=teacher, settings=settings, named=named, memory=memory.vectors)
    terms = build_terms(
        model,
        own_rows(method, tiny_step_rows(), given, memory),
        Weights(),
        teacher=teacher,
        own=own_losses(method, tools),
        penalties=own_penalties(method, tools),
    )
    local = LocalGradients(params=list(named.values()), terms=terms, hvp=hvp)
    for index in (1, 2):
        line.gradient(
            Gradients(index=index, local=local, collectives=Collectives(), memory=memory.vectors), settings
        )
    assert set(memory.vectors) == set(line.vectors)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.net.state_dict().items())
    assert all(parameter.grad is None for parameter in model.net.parameters())


@pytest.mark.parametrize("method", [m for m in ALL if m != "esd"])
def test_methods_do_without_exchange_rows(method: str) -> None:
    rows = tiny_step_rows()
    without = StepRows(retain=rows.retain, forget=rows.forget, exchange=None)
    got = take_step(method, without, index=2)
    assert torch.isfinite(got).all()
    if method == "exchange":
        assert torch.equal(got, take_step("finetune", rows))


@pytest.fixture(scope="module")
def naive() -> dict[str, torch.Tensor]:
    """g_f, g_r = grad (L_r + L_x) and grad L_r of the whole batch, one loss at a time."""
    model, named, _ = student()
    params, rows = list(named.values()), tiny_step_rows()
    losses = {
        name: model.losses(model.net, part.x0, part.y, part.noise).mean()
        for name, part in (("f", rows.forget), ("r", rows.retain), ("x", rows.exchange))
        if part is not None
    }
    found = {name: flat(torch.autograd.grad(loss, params), params) for name, loss in losses.items()}
    return {"forget": found["f"], "keep": found["r"] + found["x"], "retain": found["r"]}


def test_first_order_methods_are_what_they_say(naive: dict[str, torch.Tensor]) -> None:
    rows = tiny_step_rows()
    for method, index, wanted in (
        ("finetune", 1, naive["retain"]),
        ("exchange", 1, naive["keep"]),
        ("ascent", 1, -naive["forget"]),
        ("ascent_descent", 1, naive["retain"]),
        ("ascent_descent", 2, -naive["forget"]),
        ("ascent_descent", 3, naive["retain"]),
    ):
        assert relative(take_step(method, rows, index=index), wanted) < 1e-12, (method, index)


def test_teacher_is_the_base_model_and_stays_it() -> None:
    """It shares the untrained weights, keeps a copy of the trained ones, and gets no gradient."""
    base = tiny_dit()
    model, _, teacher = student()
    part = tiny_step_rows().retain
    said, wanted = (
        teacher.predict(part, part.y).value,
        base.predict(base.net, part.x0, part.y, part.noise).value,
    )
    assert torch.equal(said, wanted.detach()) and not said.requires_grad
    assert relative(model.predict(model.net, part.x0, part.y, part.noise).value.detach(), said) > 1e-3


def test_teacher_targets_ask_the_teacher_for_the_exchange_class() -> None:
    rows = tiny_step_rows()
    model, named, teacher = student()
    params = list(named.values())
    assert rows.exchange is not None
    total = torch.zeros((), dtype=torch.float64)
    for part in (rows.retain, rows.exchange):
        target = teacher.targets(part)
        total = (
            total
            + (model.predict(model.net, part.x0, part.y, part.noise).value - target.value)
            .square()
            .mean((1, 2, 3))
            .mean()
        )
    wanted = flat(torch.autograd.grad(total, params), params)
    assert relative(take_step("exchange", rows, weights=Weights(targets="teacher")), wanted) < 1e-12
    assert set(rows.exchange.y.tolist()) == {1} and set(rows.exchange.target_y.tolist()) == {2}


def test_an_extrapolated_target_leaves_retain_rows_alone() -> None:
    rows = tiny_step_rows()
    model = tiny_dit()
    teacher = Teacher(model, select(model, "labels"))
    assert rows.exchange is not None
    there, kept = teacher.targets(rows.exchange).value, teacher.targets(rows.retain).value
    teacher.aim({1: (2,)}, {1: 0.5})
    table = model.label_table()
    assert table is not None
    with torch.no_grad():
        table[1] = table[2] + 0.5 * (table[2] - table[1])
        beyond = model.predict(model.net, rows.exchange.x0, rows.exchange.y, rows.exchange.noise).value
    assert torch.equal(teacher.targets(rows.exchange).value, beyond) and not torch.allclose(beyond, there)
    assert torch.equal(teacher.targets(rows.retain).value, kept)


def test_a_push_needs_a_trained_label_table() -> None:
    model = tiny_dit()
    with pytest.raises(ValueError, match="label table, which is not among the trained weights"):
        Teacher(model, select(model, "adaln:1")).aim({1: (2,)}, {1: 0.5})


@pytest.mark.parametrize("push", [0.0, 0.5])
def test_from_the_exchange_start_nothing_is_left_to_learn_from_a_teacher(push: float) -> None:
    """The moved row is the minimum of L_x, at any row count and noise."""
    rows, model = tiny_step_rows(), tiny_dit()
    named = select(model, "labels_and_adaln:1")
    teacher = Teacher(model, named)
    teacher.aim({1: (2,)}, {1: push})
    table = model.label_table()
    assert table is not None
    start_at_exchange(table, {1: (2,)}, push)
    terms = build_terms(model, rows, Weights(targets="teacher"), teacher=teacher)
    local = LocalGradients(params=list(named.values()), terms=terms)
    g_r, g_f = Gradients(index=1, local=local, collectives=Collectives()).of("keep", "forget")
    assert g_r.norm().item() < 1e-12 < g_f.norm().item()


def test_the_exchange_start_goes_beyond_by_the_push_and_moves_no_other_row() -> None:
    table = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    before = table.clone()
    start_at_exchange(table, {1: (2,), 0: (3,)}, 0.5)
    torch.testing.assert_close(table[1], before[2] + 0.5 * (before[2] - before[1]))
    torch.testing.assert_close(table[0], before[3] + 0.5 * (before[3] - before[0]))
    assert torch.equal(table[2:], before[2:])
    with pytest.raises(ValueError, match="class 1 has 2 exchange classes, expected one"):
        start_at_exchange(table, {1: (2, 3)}, 0.0)


def test_contrast_subtracts_the_loss_under_the_null_label() -> None:
    rows = tiny_step_rows()
    model, named, _ = student()
    params, f = list(named.values()), rows.forget
    own, null = (
        model.losses(model.net, f.x0, y, f.noise).mean()
        for y in (f.y, torch.full_like(f.y, model.null_label))
    )
    wanted = -flat(torch.autograd.grad(own - null, params), params)
    assert relative(take_step("ascent", rows, weights=Weights(contrast=True)), wanted) < 1e-12


@pytest.mark.parametrize("method", ["uno", "surgery"])
def test_descending_a_method_lowers_what_is_kept(method: str) -> None:
    """A small step along the result of a strong penalty or a projection still descends L_r + L_x."""
    rows = tiny_step_rows()
    settings = {"penalty": PENALTY / 100} if method == "uno" else {}
    gradient = take_step(method, rows, settings=settings)
    model, named, _ = student()
    before = naive_losses(model, rows)["keep"].item()
    with torch.no_grad():
        start = 0
        for parameter in named.values():
            parameter.sub_(1e-4 * gradient[start : start + parameter.numel()].view(parameter.shape))
            start += parameter.numel()
    assert naive_losses(model, rows)["keep"].item() < before


@pytest.mark.parametrize("method", ALL)
def test_the_table_says_what_a_method_asks_for(method: str) -> None:
    """Its facts are what is seen when it is asked on vectors of a few numbers."""

    class Probe(Gradients):
        def of(self, *names: str, twice: bool = False) -> list[torch.Tensor]:
            asked.append((names, twice))
            return [
                torch.randn(8, generator=torch.Generator().manual_seed(index)) for index in range(len(names))
            ]

        def value(self, name: str) -> float:
            asked.append(((name,), False))
            return 2.0

        def second_order_product(self, directions: object) -> torch.Tensor:
            asked.append("second order")
            return torch.ones(8)

    line, settings = METHODS[method], method_settings(method, {})
    seen, summed = [], []
    for index in range(1, 2 * line.period(settings) + 1):
        asked: list[object] = []
        probe = Probe(
            index=index,
            local=LocalGradients(params=[], terms={}),
            collectives=Collectives(),
            memory={name: torch.ones(8) for name in line.vectors},
        )
        vector = line.gradient(probe, settings)
        parts = [part for part in probe.parts.values() if part is not None]
        assert bool(parts) <= line.summands
        assert not parts or torch.equal(vector, sum(parts[1:], parts[0]))
        summed.append(bool(parts))
        seen.append(asked)
    half = len(seen) // 2
    assert seen[:half] == seen[half:]
    assert any("second order" in asked for asked in seen) == line.second_order
    assert line.title and line.meaning
    names = {name for asked in seen for entry in asked if entry != "second order" for name in entry[0]}
    assert {*line.losses, *line.penalties} <= names
    assert names <= {"retain", "keep", "forget", *line.losses, *line.penalties}
    # ESD is a sum only with a retain term, which is not its source's
    assert all(summed) == line.summands or method == "esd"


@pytest.mark.parametrize(
    ("method", "values", "message"),
    [
        ("surgery", {"penalty": 0.1}, "penalty"),
        ("uno", {"surgery_every": 2}, "surgery_every"),
        ("uno_s", {"surgery_every": 0}, "greater than or equal to 1"),
        ("salun", {"saliency": 1.5}, "less than or equal to 1"),
        ("esd", {"eta": -1.0}, "greater than or equal to 0"),
        ("siss", {"mixture": 1.0}, "less than 1"),
        ("sfr_on", {"adaptivity": 1.0}, "less than 1"),
    ],
)
def test_a_setting_that_a_method_does_not_have_is_refused(
    method: str, values: dict[str, float], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        method_settings(method, values)
    assert method_settings(method, {}) == METHODS[method].settings()
