"""The images of a report: every judged label on fixed seeds, the same noise before and after."""

import torch

from models import weights
from models.generative import GenerativeModel
from pipeline import storage
from pipeline.config import UnlearnConfig
from pipeline.data.rows import unit_to_pixels
from pipeline.evaluation.measure import Subject
from pipeline.evaluation.sampling import draw_images

EACH_FORGOTTEN, EACH_RETAINED = 8, 4  # images of a label


@torch.no_grad()
def draw_grids(model: GenerativeModel, config: UnlearnConfig, subject: Subject, uri: str) -> None:
    """Images of every judged label, as uint8 (n, H, W, C) tensors named by label, at `uri`; drawn once."""
    if storage.exists(uri):
        return
    evaluate = config.evaluate
    grids: dict[str, torch.Tensor] = {}
    for labels, each in ((subject.forgotten, EACH_FORGOTTEN), (subject.retained, EACH_RETAINED)):
        if not labels:
            continue
        x = draw_images(
            model,
            sorted(labels),
            each=each,
            seed=config.seed,
            purpose="final",
            cfg_scale=evaluate.cfg_scale,
            steps=evaluate.final_sampler_steps,
        )
        pixels = torch.from_numpy(unit_to_pixels(subject.to_pixels(x)))
        grids |= {str(label): pixels[i * each : (i + 1) * each] for i, label in enumerate(sorted(labels))}
    storage.write_bytes(uri, weights.to_bytes(grids))
