"""Pretraining on one worker: the judges first, then the model, each with checkpoints of its own; the first
rank writes what came of it.

A stage is what one training makes: a judge by its folder's name, or the model (`MODEL`).
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch

from models import weights
from models.generative import GenerativeModel, build
from models.judge import Judge, build_judge, initialise
from pipeline import config as configuration
from pipeline import storage
from pipeline.config import PretrainConfig
from pipeline.data.lake import Lake
from pipeline.data.tombstones import open_lake
from pipeline.evaluation.metrics.class_shares import shares
from pipeline.evaluation.metrics.retain_accuracy import accuracy
from pipeline.evaluation.sampling import plan, predicted_classes
from pipeline.runtime import metrics_log
from pipeline.runtime.precision import require_precision, use_tf32
from pipeline.seeding import generator, seed_of
from pipeline.training import checkpoint as checkpoints
from pipeline.training.launch_ray import worker_setup
from pipeline.training.pretrain import LANES, Keeping, judge_accuracy, train_dit, train_judge
from pipeline.training.pretrain_run import MODEL, seen_rows
from pipeline.unlearning.collectives import Collectives
from pipeline.weights import model_folder

JUDGE_SETTINGS = {
    "noise",
    "shift",
    "label_smoothing",
    "batch_size",
    "lr",
    "ema",
    "warmup_steps",
    "weight_decay",
}


class Stages:
    """Where each stage goes on from, what it tells, and where its checkpoints go."""

    def __init__(self, arguments: Mapping[str, Any], collectives: Collectives, every_s: float) -> None:
        self._uri, self._every_s = arguments["checkpoints_uri"], every_s
        self._first = collectives.rank == 0
        self._starts = {
            stage: checkpoints.same_start(checkpoints.latest(storage.join(self._uri, stage)), collectives)
            for stage in (*arguments["fresh"], MODEL)
        }
        metrics_uri = arguments["metrics_uri"]
        lines = metrics_log.read(metrics_uri) if self._first else []
        first_steps = {
            stage: 0 if start is None else start.iteration for stage, start in self._starts.items()
        }
        self._writer = metrics_log.Writer(
            metrics_uri, [line for line in lines if line["step"] <= first_steps.get(line["of"], 0)]
        )

    def progress(self, stage: str) -> Callable[[int, float], None]:
        """Takes a step and its loss."""

        def tell(step: int, loss: float) -> None:
            if self._first:
                self._writer.write({"of": stage, "step": step, "loss": loss})

        return tell

    def keeping(self, stage: str) -> Keeping:
        uri = storage.join(self._uri, stage)
        save = (lambda checkpoint: checkpoints.commit(uri, checkpoint)) if self._first else None
        return Keeping(start=self._starts[stage], save=save, every_s=self._every_s)

    def flush(self) -> None:
        self._writer.flush()


def run_worker(arguments: dict[str, Any]) -> None:
    """Everything that a worker of pretraining does; `arguments` come from `pretrain_run`."""
    config = configuration.parse(PretrainConfig, arguments["config"])
    place = worker_setup(config.train, LANES, config.model.size)
    if place is None:
        return
    device, collectives = place
    require_precision(device, config)
    use_tf32(config.train.tf32)
    lake = open_lake(config.storage, arguments["lake_uri"])
    rows, stages = seen_rows(config, lake), Stages(arguments, collectives, config.checkpoint_s)
    common = {"device": device, "collectives": collectives, "precision": config.train.precision}
    description, judge_descriptions = arguments["described"]

    # The judges: those to be made, and the one that measures in any case.
    judges = _open_judges(config.seed, arguments, judge_descriptions, device)
    for name in arguments["fresh"]:
        optim = config.judges[name].model_dump(include=JUDGE_SETTINGS)
        train_judge(
            judges[name],
            rows,
            steps=config.judges[name].max_steps,
            clip=None,
            seed=_own_seed(config.seed, name),
            progress=stages.progress(name),
            keeping=stages.keeping(name),
            **optim,
            **common,
        )
    heldout = lake.read(split="heldout")
    accuracies = {
        name: judge_accuracy(judges[name], heldout, device=device) if len(heldout) else None
        for name in arguments["fresh"]
    }

    # The model.
    model = build(description, batch_norm="tracked")
    model.net.initialise(generator(config.seed, "model"))  # type: ignore[operator]
    model.net.to(device).train()
    train_dit(
        model,
        rows,
        label_dropout=config.label_dropout,
        steps=config.optim.max_steps,
        seed=config.seed,
        progress=stages.progress(MODEL),
        keeping=stages.keeping(MODEL),
        **config.optim.model_dump(exclude={"max_steps"}),
        **common,
    )
    model.net.eval()

    # What both are worth, and where they lie.
    quality = _quality(config, lake, model, judges["judge"], collectives)
    if collectives.rank > 0:
        return
    stages.flush()
    for name, made_with in arguments["fresh"].items():
        manifest = {
            "made_with": made_with,
            "heldout_accuracy": accuracies[name],
            "heldout_rows": len(heldout),
        }
        judge = judges[name]
        model_folder.write(arguments["judge_uris"][name], judge.config, judge.net.state_dict(), manifest)
    parameters = sum(p.numel() for p in model.net.parameters())
    manifest = {"made_with": arguments["made_with"], "parameters": parameters, **quality}
    model_folder.write(arguments["model_uri"], description, model.net.state_dict(), manifest)


def _own_seed(seed: int, judge: str) -> int:
    return seed if judge == "judge" else seed_of(seed, judge)


def _open_judges(
    seed: int,
    arguments: Mapping[str, Any],
    descriptions: Mapping[str, dict[str, Any]],
    device: torch.device,
) -> dict[str, Judge]:
    """Each judge by its folder's name: a fresh one initialised, another with the weights it has."""
    judges = {}
    for name, uri in arguments["judge_uris"].items():
        if name in arguments["fresh"]:
            judges[name] = build_judge(descriptions[name])
            initialise(judges[name].net, generator(_own_seed(seed, name), "judge"))
        else:
            stored = model_folder.read(uri, "judge.weights")
            judges[name] = build_judge(stored.config)
            weights.load_into(judges[name].net, stored.state, stored.uri)
        judges[name].net.to(device).eval()
    return judges


def _quality(
    config: PretrainConfig, lake: Lake, model: GenerativeModel, judge: Judge, collectives: Collectives
) -> dict[str, Any]:
    """How often the judge predicts the label that an image was sampled under; the shares of the classes of a
    model without labels. Collective."""
    evaluate = config.evaluate
    labels = [item.label for item in lake.manifest.classes if item.label not in config.without]
    images = plan(
        dict.fromkeys(labels, evaluate.retain_samples),  # a model without labels samples as many
        seed=config.seed,
        purpose="pretrained",
        cfg_scale=evaluate.cfg_scale,
        steps=evaluate.final_sampler_steps,
        batch=evaluate.batch,
    )
    predicted = predicted_classes(model, judge, images, collectives)
    if not model.conditional:
        return {"class_shares": shares(predicted, judge.num_classes)}
    right = accuracy(images.labels, predicted)
    return {
        "judged_right": {
            "mean": right["mean"],
            "min": right["min"],
            "samples": len(images.labels),
            "cfg_scale": evaluate.cfg_scale,
        }
    }
