"""The published MNIST experiment under its own protocol: Adam, batch statistics, a fixed set of latents
judged before each update.

The gradients are those of this project's methods. Losses here are means over the batch, the published ones
sums: Adam does not see the difference, and the published weights of penalty and hat are divided by the batch
size. Every run is one process.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from models import weights
from models.diffusion import Noise
from models.generative import GenerativeModel
from models.judge import Judge, build_judge
from models.vae import VAEModel
from pipeline.config import ReproduceConfig
from pipeline.config.reproduce import ReproducedRow
from pipeline.data.batch import Batch
from pipeline.data.tombstones import open_lake
from pipeline.errors import InputError
from pipeline.evaluation.confidence import proportion
from pipeline.evaluation.feature_statistics import Moments, frechet_distance
from pipeline.evaluation.stopping_rule import SettleRule
from pipeline.seeding import generator
from pipeline.unlearning.collectives import Collectives, NonFiniteError
from pipeline.unlearning.gradients import Gradients, LocalGradients
from pipeline.unlearning.losses import Weights, build_terms
from pipeline.unlearning.methods.table import METHODS, method_settings
from pipeline.unlearning.noising import Rows, StepRows
from pipeline.unlearning.optimizer import apply_gradient
from pipeline.unlearning.parameters import select
from pipeline.unlearning.uniformity import uniformity_loss
from pipeline.weights import model_folder


@dataclass(frozen=True, kw_only=True)
class Sides:
    """Real rows, all in memory: those to keep and those to forget (N, C, H, W)."""

    retain: Tensor
    forget: Tensor


@dataclass(kw_only=True)
class Trial:
    """One model on its way under one row: weights, optimiser, the fixed latents."""

    config: ReproduceConfig
    row: ReproducedRow
    model: GenerativeModel
    judge: Judge
    latents: Tensor
    optimiser: torch.optim.Optimizer
    params: list[Any]
    retained: list[int]
    collectives: Collectives = field(default_factory=Collectives)

    def judged(self) -> float:
        """Share of the fixed latents that the judge calls the forgotten class, sampled with
        batch statistics."""
        with torch.no_grad():
            predicted = self.judge.logits(self.model.decode(self.latents)).argmax(1)
        return (predicted == self.config.forget).double().mean().item()

    def step(self, index: int, retain: Rows, forget: Rows) -> None:
        """One step of the row's method, index from 1."""
        row, size = self.row, self.config.batch_size
        surgery = row.method == "uno_s" and index % row.surgery_every == 0
        weight = (
            row.surgery_uniformity_weight
            if surgery and row.surgery_uniformity_weight is not None
            else row.uniformity_weight
        )
        hat = uniformity_loss(self.model, self.judge, self.latents, self.retained, self.collectives)
        terms = build_terms(
            self.model,
            StepRows(retain=retain, forget=forget, exchange=None),
            Weights(),
            teacher=None,
            hat=(lambda: weight / size * hat()) if weight else None,
        )
        gradients = Gradients(
            index=index,
            local=LocalGradients(params=self.params, terms=terms),
            collectives=self.collectives,
        )
        values = {
            "penalty": row.penalty / size,
            "surgery_every": row.surgery_every,
            **{"first": "ascent", "project": True},  # as the authors' vae_ad.py
        }
        own = {name: values[name] for name in METHODS[row.method].settings.model_fields}
        gradient = METHODS[row.method].gradient(gradients, method_settings(row.method, own))
        self.collectives.require_finite({**gradients.quantities, "gradient": gradient.norm()}, index)
        apply_gradient(self.optimiser, self.params, gradient, lr=self.config.lr, clip=None)


def begin(
    config: ReproduceConfig, row: ReproducedRow, model: GenerativeModel, judge: Judge, seed: int
) -> Trial:
    """`model` has the base weights loaded; its batch norm tracks."""
    model.net.train()
    params = list(select(model, "all").values())
    assert model.latent is not None
    return Trial(
        config=config,
        row=row,
        model=model,
        judge=judge,
        latents=torch.randn((config.latents, *model.latent), generator=generator(seed, "latents")),
        optimiser=torch.optim.Adam(params, lr=config.lr),
        params=params,
        retained=[label for label in range(judge.num_classes) if label != config.forget],
    )


def pairs(
    config: ReproduceConfig, sides: Sides, model: GenerativeModel, seed: int
) -> Iterator[tuple[Rows, Rows]]:
    """Batches of both sides for ever: a pass ends with the smaller side, whose last batch may be short, as
    the published loaders do."""
    assert model.latent is not None
    size, passes = config.batch_size, 0
    while True:
        orders = [
            torch.randperm(len(side), generator=generator(seed, "order", passes, i))
            for i, side in enumerate((sides.retain, sides.forget))
        ]
        g = generator(seed, "noise", passes)
        for r, f in zip(orders[0].split(size), orders[1].split(size)):
            yield _rows(sides.retain[r], model.latent, g), _rows(sides.forget[f], model.latent, g)
        passes += 1


def run_trial(trial: Trial, sides: Sides, real: Moments, seed: int) -> dict[str, Any]:
    """The row's run: counts of steps, the settled step, the Frechet distance and the shares of all classes at
    its end."""
    config = trial.config
    rule = SettleRule(target=config.threshold, patience_steps=config.patience_steps)
    budget = trial.row.max_steps or config.max_steps
    fractions: list[float] = []
    failed = None
    for index, (retain, forget) in enumerate(pairs(config, sides, trial.model, seed), start=1):
        fractions.append(trial.judged())
        try:
            trial.step(index, retain, forget)
        except NonFiniteError as error:
            failed = str(error)
            break
        if index % config.check_every == 0:
            predicted, _ = fresh_samples(trial, config.check_samples, generator(seed, "check", index))
            rule.observe(index, proportion(int((predicted == config.forget).sum()), len(predicted)))
        if index == budget:
            break
    below = [k for k, share in enumerate(fractions, start=1) if share < config.threshold]
    above = [k for k, share in enumerate(fractions, start=1) if share > config.threshold]
    return {
        "steps": len(fractions),
        "first_below": below[0] if below else None,
        "last_above": above[-1] if above else 0,
        "settled": rule.settled_step,
        "failed": failed,
        **measured(trial, real, seed),
    }


def measured(trial: Trial, real: Moments, seed: int) -> dict[str, Any]:
    """Frechet distance and shares of all classes of fresh samples; on one seed the same latents for every
    row."""
    predicted, moments = fresh_samples(trial, trial.config.frechet_samples, generator(seed, "final"))
    shares = torch.bincount(predicted, minlength=trial.judge.num_classes).double() / len(predicted)
    return {"frechet": frechet_distance(moments, real), "shares": shares.tolist()}


@torch.no_grad()
def fresh_samples(trial: Trial, count: int, g: torch.Generator) -> tuple[Tensor, Moments]:
    """What the judge calls `count` fresh samples sampled as they would be served, by stored statistics, and
    the moments of its features."""
    assert trial.model.latent is not None
    trial.model.net.eval()
    x = trial.model.decode(torch.randn((count, *trial.model.latent), generator=g))
    trial.model.net.train()
    return trial.judge.logits(x).argmax(1), Moments.of(trial.judge.features(x))


def step_costs(config: ReproduceConfig, trials: dict[str, Trial], sides: Sides) -> dict[str, list[float]]:
    """Process CPU seconds of a step of every row, paired: each round takes one step (for uno_s two, halved)
    of each in turn."""
    costs: dict[str, list[float]] = {name: [] for name in trials}
    batches = pairs(config, sides, next(iter(trials.values())).model, 0)
    for repeat in range(config.timing_repeats + 1):
        retain, forget = next(batches)
        for name, trial in trials.items():
            steps = (
                trial.row.surgery_every
                if trial.row.method == "uno_s"
                else 2
                if trial.row.method == "ascent_descent"
                else 1
            )
            started = time.process_time()
            for index in range(1, steps + 1):
                trial.step(index, retain, forget)
            if repeat:  # the first round warms up
                costs[name].append((time.process_time() - started) / steps)
    return costs


@lru_cache(maxsize=1)
def read_sides(storage_root: str, lake: str, forget: int) -> tuple[Sides, Batch]:
    """Training rows of the lake as the two sides, and all of them."""
    rows = open_lake(storage_root, lake).read()
    return Sides(retain=rows.mean[rows.y != forget], forget=rows.mean[rows.y == forget]), rows


def real_moments(config: ReproduceConfig, judge: Judge, rows: Batch) -> Moments:
    """Moments of the judge's features of real rows of every class, as the authors take them."""
    order = torch.randperm(len(rows), generator=generator(0, "real"))[: config.frechet_samples]
    with torch.no_grad():
        return Moments.of(judge.features(rows.mean[order]))


def _rows(x: Tensor, latent: Sequence[int], g: torch.Generator) -> Rows:
    nothing = torch.zeros(len(x), dtype=torch.int64)
    return Rows(
        x0=x,
        y=nothing,
        target_y=nothing,
        noise=Noise(t=nothing, eps=torch.randn((len(x), *latent), generator=g)),
    )


def load(model: model_folder.Stored, judge: model_folder.Stored) -> tuple[VAEModel, Judge]:
    """Both with their weights, the model's batch norm tracking. Raises `InputError` for another family or
    architecture."""
    if model.config.get("family") != "vae":
        raise InputError(
            f"model.weights: {model.uri} holds a {model.config.get('family')}, expected the paper's VAE"
            " (model.size vae-mnist)"
        )
    vae, judge_network = VAEModel({**model.config, "batch_norm": "tracked"}), build_judge(judge.config)
    try:
        weights.load_into(vae.net, model.state, f"model.weights: {model.uri}")
        weights.load_into(judge_network.net, judge.state, f"judge.weights: {judge.uri}")
    except weights.WeightsError as error:
        raise InputError(str(error)) from error
    judge_network.net.requires_grad_(False).eval()
    return vae, judge_network
