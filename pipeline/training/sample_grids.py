"""The images of a report: every judged label on fixed seeds, the same noise before and after."""

import torch

from models import weights
from models.generative import GenerativeModel
from models.pixels import unit_to_pixels
from pipeline import storage
from pipeline.config import UnlearnConfig
from pipeline.evaluation.context import EvalContext
from pipeline.evaluation.samplers import options
from pipeline.evaluation.sampling import plan, seeds_predicted

EACH_FORGOTTEN, EACH_RETAINED = 8, 4  # images of a label that something is forgotten of, and of another


@torch.no_grad()
def draw_grids(model: GenerativeModel, config: UnlearnConfig, subject: EvalContext, uri: str) -> None:
    """Images of every judged label, as uint8 (n, H, W, C) tensors named by label, at `uri`; sampled once."""
    if storage.exists(uri):
        return
    evaluate, spec = config.evaluate, subject.spec
    counts = dict.fromkeys(spec.retained, EACH_RETAINED)
    counts |= dict.fromkeys((*spec.gone, *spec.sample_classes), EACH_FORGOTTEN)
    chosen = _seeds(model, config, subject, counts, storage.join(uri.rsplit("/", 1)[0], "seeds.json"))
    grids: dict[str, torch.Tensor] = {}
    for label, seeds in chosen.items():
        labels = torch.full((len(seeds),), label)
        x = model.sample(
            labels=labels,
            seeds=seeds,
            cfg_scale=evaluate.cfg_scale,
            steps=evaluate.final_sampler_steps,
            **options(model, evaluate.sampler),
        )
        grids[str(label)] = torch.from_numpy(unit_to_pixels(subject.to_pixels(x)))
    storage.write_bytes(uri, weights.to_bytes(grids))


def _seeds(
    model: GenerativeModel, config: UnlearnConfig, subject: EvalContext, counts: dict[int, int], uri: str
) -> dict[int, list[int]]:
    """Seeds by label. A model without labels is asked which seeds it samples each class from, once, before:
    they are kept at `uri`."""
    if model.conditional:
        final = plan(counts, seed=config.seed, purpose="final", cfg_scale=1.0, steps=1, batch=1)
        return {
            label: [seed for of_seed, seed in zip(final.labels, final.seeds) if of_seed == label]
            for label in sorted(counts)
        }
    if not storage.exists(uri):
        chosen = seeds_predicted(model, subject.judge, counts, seed=config.seed)
        storage.write_json(uri, {str(label): seeds for label, seeds in chosen.items()})
    return {int(label): seeds for label, seeds in storage.read_json(uri).items()}
