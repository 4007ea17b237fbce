"""Forgetting in the weights: the forgotten rows are redirected to the exchange class whatever embedding leads
to them, and everything else is held to the base (docs/numerics.md has the terms).

N rows of a kind on this worker, L of the partition's lanes on it; a gradient is one vector (P,).
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial, reduce

import torch
from torch import Tensor

from models.diffusion import Anchor
from models.generative import GenerativeModel
from pipeline.data.batch import Batch, Side, lanes_of
from pipeline.seeding import generator
from pipeline.unlearning.adversary import Adversary
from pipeline.unlearning.gradients import Term
from pipeline.unlearning.noising import Relabel, Rows, ask_for, noised_rows
from pipeline.unlearning.teacher import Teacher

NEAREST_NOISES = 8
NEAR_ROWS = 32  # of a class, over which its near classes are found
ADVERSARY = "adversary"  # the term whose gradient the embeddings take


@dataclass(frozen=True, kw_only=True)
class Mixture:
    """How much of each term: its weight against the retain rows' 1, and its rows in the global batch."""

    weight: float  # of the redirection
    rows: int
    label_weight: float
    label_rows: int  # of either kind
    others_weight: float
    others_rows: int
    near_rows: int

    @property
    def forget_rows(self) -> int:
        """Forgotten rows of a global batch: every term takes the first of them, on noise of its own."""
        return max(self.rows, self.label_rows, self.others_rows)


@dataclass(frozen=True, kw_only=True)
class RedirectionRows:
    """A worker's share of a step. `held`: (weight, rows) of each kind that is held to the base's prediction
    under `target_y`, the retain rows first. `adversarial`: forgotten rows whose `y` are slots of the pool."""

    held: Sequence[tuple[float, Rows]]
    adversarial: Rows

    def __len__(self) -> int:
        return len(self.held[0][1])

    def of_lanes(self, lanes: Sequence[int], count: int) -> "RedirectionRows":
        """The rows of some of this worker's `count` lanes, in that order."""
        return RedirectionRows(
            held=[(weight, rows.of_lanes(lanes, count)) for weight, rows in self.held],
            adversarial=self.adversarial.of_lanes(lanes, count),
        )


def to_exchange(exchange: Mapping[int, Sequence[int]]) -> Relabel:
    """A relabelling for forgotten rows: the student keeps the row's own class c, the teacher is conditioned
    on an exchange class of c."""

    def relabel(y: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor]:
        targets = [
            exchange[c][int(place * len(exchange[c]))]
            for c, place in zip(y.tolist(), uniform.tolist(), strict=True)
        ]
        return y, torch.tensor(targets, dtype=torch.long)

    return relabel


@torch.no_grad()
def denoising_losses(
    model: GenerativeModel, rows: Side, labels: Sequence[int], *, seed: int, device: torch.device
) -> Tensor:
    """(N, L): of each row under each of the L `labels`, at the weights as they are, over `NEAREST_NOISES`
    noises that are the same for all labels."""
    y = torch.tensor(list(labels), device=device)
    losses = []
    for position in range(len(rows)):
        row = rows.take([position] * NEAREST_NOISES)
        noised = noised_rows(
            model,
            replace(row, occurrence=tuple(range(NEAREST_NOISES))),
            seed=seed,
            step=0,
            term="nearest",
            device=device,
        )
        index = torch.arange(NEAREST_NOISES, device=device).repeat(len(y))
        every = noised.take(index)  # every noise under every label
        loss = model.losses(model.net, every.x0, y.repeat_interleave(NEAREST_NOISES), every.noise)
        losses.append(loss.view(len(y), -1).mean(1))
    return torch.stack(losses).cpu()


def nearest_labels(
    model: GenerativeModel, forget: Side, labels: Sequence[int], *, seed: int, device: torch.device
) -> dict[str, int]:
    """Of each forgotten row, by sample id, the one of `labels` under which the base denoises it best: what it
    is shown as where its class has no exchange class. The optimum of the redirection is then the base's
    mixture of what is near."""
    losses = denoising_losses(model, forget, labels, seed=seed, device=device)
    return {name: labels[int(index)] for name, index in zip(forget.sample_id, losses.argmin(1), strict=True)}


def near_classes(
    model: GenerativeModel,
    forget: Side,
    candidates: Mapping[int, Sequence[int]],
    k: int,
    *,
    seed: int,
    device: torch.device,
) -> dict[int, list[int]]:
    """For each class of `candidates` the `k` of its candidates under which the base denoises the class's rows
    best, the nearest first: what shares most with it, and suffers first when it goes."""
    near = {}
    for label, others in candidates.items():
        own = (forget.y == label).nonzero().flatten().tolist()[:NEAR_ROWS]
        losses = denoising_losses(model, forget.take(own), others, seed=seed, device=device).mean(0)
        near[label] = [others[int(index)] for index in losses.argsort()[:k]]
    return near


def to_others(retained: Sequence[int], null_label: int, near: Mapping[int, Sequence[int]]) -> Relabel:
    """A relabelling for forgotten rows: half under the null label, as the base predicts them under a retained
    one, so that the optimum is the mean over those labels; half under a retained label, as the base predicts
    them there, every second of these under one of the labels `near` its class, where there are any."""

    def relabel(y: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor]:
        pairs = []
        for c, place in zip(y.tolist(), uniform.tolist(), strict=True):
            half, rest = divmod(2 * place, 1.0)
            labels = retained
            if half and near.get(c):
                quarter, rest = divmod(2 * rest, 1.0)
                labels = near[c] if quarter else retained
            label = labels[int(rest * len(labels))]
            pairs.append((label if half else null_label, label))
        student, teacher = torch.tensor(pairs, dtype=torch.long).reshape(-1, 2).unbind(1)
        return student, teacher

    return relabel


def beside_siblings(
    rows: Rows, batch: Batch, siblings: Mapping[int, Batch], *, seed: int, step: int, term: str
) -> Rows:
    """`rows` of `batch` with another row of its class in place of every named sample, where the teacher is
    asked: on the same noise, so that what the student learns to predict at a sample is how the base does at
    any other of its class. `siblings`: by class; rows of other classes stay."""
    if not siblings:
        return rows
    target_x0 = rows.x0.clone()
    for place, (label, name, occurrence) in enumerate(
        zip(batch.y.tolist(), batch.sample_id, batch.occurrence, strict=True)
    ):
        if label not in siblings:
            continue
        there, g = siblings[label], generator(seed, step, term, "sibling", name, occurrence)
        index = int(torch.randint(len(there), (), generator=g))
        x0 = there.mean[index]
        if there.std is not None:
            x0 = x0 + there.std[index] * torch.randn(x0.shape, generator=g)
        target_x0[place] = x0.to(target_x0)
    return replace(rows, target_x0=target_x0)


def redirection_rows(
    model: GenerativeModel,
    retain: Batch,
    forget: Batch,
    adversary: Adversary,
    mixture: Mixture,
    *,
    lanes: int,
    rank: int,
    world_size: int,
    seed: int,
    step: int,
    device: torch.device,
    retain_labels: Relabel,
    retained: Sequence[int],
    exchange: Mapping[int, Sequence[int]],
    nearest: Mapping[str, int],
    siblings: Mapping[int, Batch],
    near: Mapping[int, Sequence[int]],
    beside: Batch | None,
) -> RedirectionRows:
    """A worker's share of one step, out of its lanes' `retain` rows and the `forget` rows of
    `mixture.forget_rows` in the global batch. `retain_labels` are the labels of L_r. A forgotten row that
    `nearest` names is shown as that label, a named sample as one of its `siblings`, any other as an exchange
    class of its own. `near`: by forgotten class, the classes that share most with it; `beside` are retained
    rows of these."""
    mine = lanes_of(lanes, rank, world_size)
    noised = partial(noised_rows, model, seed=seed, step=step, device=device)

    def some(batch: Batch, count: int) -> Batch:
        """The first of every lane, `count` in the global batch."""
        there, each = len(batch) // len(mine), count // lanes
        return batch.take([lane * there + row for lane in range(len(mine)) for row in range(each)])

    def shown_as(rows: Rows, batch: Batch, term: str) -> Rows:
        return beside_siblings(rows, batch, siblings, seed=seed, step=step, term=term)

    def redirected(batch: Batch, term: str) -> Rows:
        targets = {**exchange, **{label: (label,) for label in siblings}}
        rows = shown_as(noised(batch, term=term, relabel=to_exchange(targets)), batch, term)
        labels = [
            nearest.get(name, label)
            for name, label in zip(batch.sample_id, rows.target_y.tolist(), strict=True)
        ]
        return replace(rows, target_y=torch.tensor(labels, device=device))

    others, term = some(forget, mixture.others_rows), "other labels"
    held = [
        (1.0, noised(retain, term="retain", relabel=retain_labels)),
        (mixture.label_weight / 2, redirected(some(forget, mixture.label_rows), "own label")),
        (
            mixture.others_weight,
            shown_as(
                noised(others, term=term, relabel=to_others(retained, model.null_label, near)),
                others,
                term,
            ),
        ),
    ]
    if exchange:  # a class that is forgotten whole
        shown = noised(some(retain, mixture.label_rows), term="exchange", relabel=ask_for(exchange))
        held.insert(1, (mixture.label_weight / 2, shown))
    if beside is not None:  # each weighs as much as a row of the first kind
        share = mixture.near_rows / (len(retain) * lanes / len(mine))
        held.append((share, noised(beside, term="near")))
    batch, each = some(forget, mixture.rows), mixture.rows // lanes
    adversarial = redirected(batch, ADVERSARY)
    places = [lane * each + row for lane in mine for row in range(each)]
    slots = adversary.slots(batch.y, places).to(device)
    return RedirectionRows(held=held, adversarial=replace(adversarial, y=slots))


def redirection_terms(
    model: GenerativeModel,
    rows: RedirectionRows,
    weight: float,
    *,
    teacher: Teacher,
    adversary: Adversary,
    micro_batches: int = 1,
    autocast: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> dict[str, Term]:
    """`retain` (L_r), `keep` (all that is held to the base, and `weight` times the redirection), `forget`
    (L_f under the adversarial embeddings), and the adversary's own loss, cut into micro-batches.

    They are called as at the other depth, so every method of the table has its meaning.
    """

    adversarial = rows.adversarial
    parts = min(micro_batches, len(adversarial))

    def held(kinds: Sequence[tuple[float, Rows]], index: int, anchor: Anchor) -> Tensor:
        parts = [(share / len(kind), _part(kind, index, micro_batches)) for share, kind in kinds]
        together = reduce(Rows.joined, [rows for _, rows in parts])
        each = torch.cat([together.x0.new_full((len(rows),), share) for share, rows in parts])
        target = teacher.predict_aimed(together, together.target_y)
        losses = model.losses(
            model.net, together.x0, together.y, together.noise, target=target, anchor=anchor
        )
        return (each * losses).sum()

    def under_embeddings(index: int, anchor: Anchor, *, redirected: bool, attack: bool = False) -> Tensor:
        some = _part(adversarial, index, parts)
        embeddings = adversary.embeddings(some.y, some.noise.t)
        losses = model.losses(
            model.net,
            some.x0,
            embeddings if attack else embeddings.detach(),
            some.noise,
            target=teacher.predict_aimed(some, some.target_y) if redirected else None,
            anchor=anchor,
        )
        return (weight if redirected else 1.0) * losses.sum() / len(adversarial)

    def cut(make: Callable[[int, Anchor], Tensor], parts: int) -> list[Callable[[], Tensor]]:
        def closure(index: int) -> Callable[[], Tensor]:
            anchor = Anchor()

            def loss() -> Tensor:
                with autocast():
                    return make(index, anchor)

            return loss

        return [closure(index) for index in range(parts)]

    redirected = cut(partial(under_embeddings, redirected=True), parts)
    return {
        "retain": cut(partial(held, rows.held[:1]), micro_batches),
        "keep": cut(partial(held, rows.held), micro_batches) + redirected,
        "forget": cut(partial(under_embeddings, redirected=False), parts),
        ADVERSARY: cut(partial(under_embeddings, redirected=False, attack=True), parts),
    }


def _part(rows: Rows, index: int, parts: int) -> Rows:
    """The index-th of `parts` stretches of nearly the same length."""
    return rows.take(slice(len(rows) * index // parts, len(rows) * (index + 1) // parts))
