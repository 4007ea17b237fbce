"""Another sampler than a model's own, where a configuration asks for one."""

from collections.abc import Mapping
from typing import Any

from models.diffusion.samplers.table import changed
from models.families.transformer import Transformer
from models.generative import GenerativeModel, build
from pipeline.config.measuring import Measuring
from pipeline.config.sampling import Sampler, Sampling
from pipeline.errors import InputError


def require_sampler(
    description: Mapping[str, Any],
    sampler: Sampler | None,
    section: str,
    steps: Mapping[str, int],
    own: Mapping[str, Any] | None = None,
) -> None:
    """Raise `InputError` unless the model of a config.json has the sampler that the key `<section>sampler`
    asks for, and can take the `steps` of every key there. `own`: what it changes, where that is not
    config.json's."""
    model = build(description, device="meta")
    if not isinstance(model, Transformer):
        if sampler is None:
            return
        raise InputError(
            f"{section}sampler: got one for a {description.get('size')}, which takes one pass to an image;"
            " expected none"
        )
    changes = sampler.changes if sampler else {}
    if (guided := changes.get("guided_channels") or 0) > model.shape[0]:
        raise InputError(
            f"{section}sampler.guided_channels: got {guided}, expected 1 to the model's {model.shape[0]}"
            " channels, or all"
        )
    described = model.sampler_with(changes) if own is None else changed(own, changes)
    for key, count in steps.items():
        try:
            model.require_sampler(described, steps=count)
        except ValueError as error:
            text = str(error)
            in_steps = text.startswith("sampler.steps")
            raise InputError(
                f"{key}{text.removeprefix('sampler.steps')}" if in_steps else f"{section}{text}"
            ) from error


def require_sampler_of(section: Sampling | Measuring, name: str, description: Mapping[str, Any]) -> None:
    """`require_sampler` for the sampler and all numbers of steps of the configuration's section `name`."""
    steps = {f"{name}.{key}": count for key, count in section if key.endswith("sampler_steps")}
    require_sampler(description, section.sampler, f"{name}.", steps)


def options(model: GenerativeModel, sampler: Sampler | None) -> dict[str, Any]:
    """What `model.sample` is given beside labels, seeds, guidance and steps."""
    if sampler is None:
        return {}
    assert isinstance(model, Transformer), "a sampler for a model that has none was refused before"
    return {"sampler": model.sampler_with(sampler.changes)}
