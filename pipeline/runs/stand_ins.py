"""Samples of a model in the place of rows that were purged: which are asked for, whether there is anything to
stand in for, and how they are drawn.

Row k of a class depends on (seed, class, k) alone, so the rows are the same at any number of workers.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from models import weights
from models.generative import build
from models.judge import build_judge
from models.pixels import unit_to_pixels
from pipeline.config import UnlearnConfig
from pipeline.data.lake import Lake
from pipeline.data.selection import without
from pipeline.data.stand_ins import Drawn, StandIns
from pipeline.data.units import Units
from pipeline.errors import InputError
from pipeline.evaluation.partials import Shard
from pipeline.evaluation.sampling import plan, sample_blocks
from pipeline.runs import registered, run_weights
from pipeline.weights import decoder, model_folder

KEY = "request.stand_in_weights"


def of(
    config: UnlearnConfig, lake: Lake, base: model_folder.Stored, judge: model_folder.Stored
) -> StandIns | None:
    """What `config` asks for, None where it asks for none. Raises `InputError` where there is nothing to
    stand in for, or nothing that could draw it."""
    request, evaluate = config.request, config.evaluate
    labels = tuple(sorted(set(request.stood_in)))
    if not labels:
        return None
    if other := sorted(set(labels) - set(request.forgotten_classes)):
        raise InputError(
            f"request.stood_in: class {other[0]} is neither in request.classes nor in"
            " request.forgotten_earlier; expected forgotten classes"
        )
    if there := without(lake, lake.shards(labels), []):
        label = there[0].shard.label
        raise InputError(
            f"request.stood_in: the rows of class {label} are in lake {lake.manifest.name!r}, so there is"
            f" nothing to stand in for; expected purged classes: leave {label} out"
        )
    drawing = _drawing(config, lake, base)
    key: dict[str, Any] = {
        "weights": drawing.digest,
        "classes": list(labels),
        "samples": request.stand_in_samples,
        "cfg_scale": evaluate.cfg_scale,
        "sampler_steps": evaluate.final_sampler_steps,
        "seed": config.seed,
    }
    return StandIns(
        weights_digest=drawing.digest,
        labels=labels,
        key=key,
        draw=lambda label: _draw(config, lake, drawing, judge, label),
    )


def _drawing(config: UnlearnConfig, lake: Lake, base: model_folder.Stored) -> model_folder.Stored:
    """The weights that draw them. Raises `InputError` for a registered version that samples one of the
    classes no more."""
    request, source = config.request, config.request.stand_in_weights
    if source is None:
        if lost := sorted(set(request.stood_in) & set(request.forgotten_earlier)):
            raise InputError(
                f"{KEY}: got none, but what the run starts from does not sample class {lost[0]} any more"
                " (request.forgotten_earlier); expected weights that do"
            )
        drawing, named = base, config.model.weights
    else:
        model = config.model.model_copy(update={"weights": source, "sha256": None})
        try:
            drawing = run_weights.read_base(config.model_copy(update={"model": model}), lake)
        except InputError as error:
            raise InputError(str(error).replace("model.weights", KEY)) from error
        named = source
    if registered.named(named):
        version = registered.base_version(config.tracking, config.storage, str(named), KEY)
        if lost := sorted(set(request.stood_in) & set(version.forgotten_classes)):
            raise InputError(
                f"{KEY}: {named} has forgotten class {lost[0]} and draws nothing that could stand in for it;"
                " expected weights that still sample it"
            )
    if not build(drawing.config).conditional:
        raise InputError(
            f"request.stood_in: {config.model.size} samples without labels, so it draws no class when asked"
            " for it; expected none"
        )
    return drawing


@torch.no_grad()
def _draw(
    config: UnlearnConfig, lake: Lake, drawing: model_folder.Stored, judge: model_folder.Stored, label: int
) -> Drawn:
    evaluate = config.evaluate
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model, network = build(drawing.config), build_judge(judge.config)
    weights.load_into(model.net, drawing.state, drawing.uri)
    weights.load_into(network.net, judge.state, judge.uri)
    model.net.to(device).eval()
    network.net.to(device).eval()
    samples: list[Tensor] = []

    decoded: Callable[[Tensor], Tensor] = decoder.to_pixels(drawing, device)

    def to_pixels(x: Tensor) -> Tensor:
        samples.append(x.float().cpu())
        return decoded(x)

    drawn = plan(
        {label: config.request.stand_in_samples},
        seed=config.seed,
        purpose="stand_in",
        cfg_scale=evaluate.cfg_scale,
        steps=evaluate.final_sampler_steps,
        batch=evaluate.batch,
    )
    predicted = torch.cat(
        [block.ranked[:, 0] for block in sample_blocks(model, network, drawn, Shard(), to_pixels=to_pixels)]
    )
    return Drawn(
        tensors=_as_stored(torch.cat(samples), lake),
        recognised=float((predicted == label).double().mean()),
    )


def _as_stored(x: Tensor, lake: Lake) -> list[np.ndarray]:
    """Samples (N, C, H, W) as rows of the lake: 8-bit pixels, or a posterior without width."""
    if lake.manifest.kind == "image":
        return [unit_to_pixels(x)]
    encoder = lake.manifest.encoder
    mean = Units(encoder.scale, encoder.statistics).stored(x).half().numpy()
    return [mean, np.zeros_like(mean)]
