"""The table of attacks: how each is tried, how a report calls it and what its outcome means. A new one is
one file and one line here."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from pydantic import BaseModel

from pipeline.config.measuring import Attacks, Measuring
from pipeline.errors import InputError
from pipeline.evaluation.attacks import (
    fine_tuning,
    inversion,
    label_embedding,
    lora,
    null_embedding,
    quantization,
    relearning,
    samplers,
    timestep_embedding,
)
from pipeline.evaluation.attacks.suite import Attempt
from pipeline.evaluation.own_settings import NoSettings, own_settings

IMAGES = "somebody who has the weights and some images of the class"


@dataclass(frozen=True, kw_only=True)
class Attack:
    """`attempts(attacks section, measuring section, own settings)` are the ways it is tried, each
    independent of the others. `holds` and `returns` say what it means that the class stays away or comes
    back, `threat` who would do it and what they have. `settings`: those of its own, under attacks.<name>."""

    title: str
    holds: str
    returns: str
    attempts: Callable[[Attacks, Measuring, Any], Sequence[Attempt]]
    settings: type[BaseModel] = NoSettings
    threat: str = ""
    recalls: bool = False  # teaches with images of the class, so a model that never saw it gives way as well


ATTACKS: dict[str, Attack] = {
    "none": Attack(
        title="No attack",
        holds="As it stands, the class is not sampled.",
        returns="As it stands, the class is still sampled.",
        attempts=lambda settings, measuring, own: [
            Attempt(name="none", about="the model as it is", change=lambda context: context)
        ],
    ),
    "finetune": Attack(
        title="Benign fine-tuning",
        holds="Training it further on kept images does not bring the class back.",
        returns="Training it further on kept images brings the class back: measure again after any training.",
        attempts=fine_tuning.attempts,
        threat="nobody in particular: whoever has the weights and trains them further on other images",
    ),
    "quantise": Attack(
        title="Rounded weights",
        holds="Rounding the weights does not bring the class back.",
        returns="The rounded model samples the class: judge the weights in the form that will serve.",
        attempts=quantization.attempts,
        threat="nobody in particular: whoever serves the weights in a smaller format",
    ),
    "sampler": Attack(
        title="Another way of sampling",
        holds="Drawing in this way does not bring the class back.",
        returns="The class is forgotten only for the sampler that it was judged with.",
        attempts=samplers.attempts,
        threat="whoever may choose the sampler, its steps and its guidance, without the weights",
    ),
    "embedding": Attack(
        title="Free label embedding",
        holds="With the network as it is, no label embedding that was tried leads to the class.",
        returns=(
            "The network can still sample the class: its label does not lead there any more, but an embedding"
            " made by whoever has the weights and some images does. A model that never saw it can be led"
            " there some of the way too: compare with one."
        ),
        attempts=label_embedding.attempts,
        threat=IMAGES,
        recalls=True,
    ),
    "timestep_embedding": Attack(
        title="Free label embedding by timestep",
        holds="No embeddings that were tried, one for each stretch of the timesteps, lead to the class.",
        returns=(
            "The network can still sample the class, led by a label embedding that changes with the timestep."
            " A model that never saw it can be led there some of the way too: compare with one."
        ),
        attempts=timestep_embedding.attempts,
        settings=timestep_embedding.TimestepEmbeddingSettings,
        threat=IMAGES,
        recalls=True,
    ),
    "null_embedding": Attack(
        title="Free null embedding",
        holds="No null embedding that was tried, alone or with the label's own, leads guidance to the class.",
        returns=(
            "The network can still sample the class, led by guidance from a null embedding of the attacker's."
            " A model that never saw it can be led there some of the way too: compare with one."
        ),
        attempts=null_embedding.attempts,
        settings=null_embedding.NullEmbeddingSettings,
        threat=IMAGES,
        recalls=True,
    ),
    "lora": Attack(
        title="Low-rank adapters on a few images",
        holds="Adapters taught with a few images of the class do not bring it back.",
        returns=(
            "Adapters taught with a few images of the class bring it back. They teach it to a model that"
            " never saw it too: compare with one."
        ),
        attempts=lora.attempts,
        settings=lora.LoraSettings,
        threat="somebody who has the weights and a few images of the class, and trains adapters",
        recalls=True,
    ),
    "relearn": Attack(
        title="Teaching it again, against a model that never saw it",
        holds="The class is not learnt sooner than by a model that never saw it.",
        returns="The class is learnt sooner than by a model that never saw it: the weights hold some of it.",
        attempts=relearning.attempts,
        settings=relearning.RelearnSettings,
        threat="somebody who has the weights and a few images of the class, and trains on them",
        recalls=True,
    ),
    "inversion": Attack(
        title="Denoising real images of the class",
        holds="It denoises images of the class no better than a model that never saw it.",
        returns="It denoises images of the class better than a model that never saw it: it holds some of it.",
        attempts=inversion.attempts,
        settings=inversion.InversionSettings,
        threat=IMAGES,
        recalls=True,
    ),
}


def attempts_of(settings: Attacks, measuring: Measuring) -> dict[str, Attempt]:
    """Every attempt of the suite by name, or of the attacks that `only` names. Raises `InputError` for an
    attack, or settings of one, that there is not."""
    own = own_settings("attacks", settings, {name: attack.settings for name, attack in ATTACKS.items()})
    if unknown := [name for name in settings.only if name not in ATTACKS]:
        raise InputError(f"attacks.only: got {unknown[0]!r}, expected some of {', '.join(ATTACKS)}")
    return {
        attempt.name: replace(attempt, kind=kind, recalls=attack.recalls)
        for kind, attack in ATTACKS.items()
        if not settings.only or kind in settings.only
        for attempt in attack.attempts(settings, measuring, own[kind])
    }
