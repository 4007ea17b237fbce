"""The losses of a comparison's models and of the retrained references on the same rows, and how far they are
apart."""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pipeline import storage
from pipeline.weights import model_folder

if TYPE_CHECKING:
    from models.generative import GenerativeModel
    from pipeline.data.batch import Batch
    from pipeline.data.lake import Lake

ROWS, NOISES, BLOCK = 64, 8, 64  # of the forgotten class and of the others; a row; at once
GROUPS = ("forgotten", "retained")
Losses = dict[str, list[float]]  # by group, of each row


def probe_losses(model: "GenerativeModel", lake: "Lake", forgotten: int) -> Losses:
    """The model's own loss on training rows of the class to forget and of all others, each row over the same
    noises whatever the model."""
    from pipeline.evaluation.metrics.membership import row_losses
    from pipeline.evaluation.partials import Shard
    from pipeline.seeding import seed_of

    others = [item.label for item in lake.manifest.classes if item.label != forgotten]
    seed = seed_of("behaviour")
    return {
        group: [
            loss
            for rows in _spread_rows(lake, labels)
            for loss in row_losses(model, rows, noises=NOISES, seed=seed, batch=BLOCK, ranks=Shard()).tolist()
        ]
        for group, labels in zip(GROUPS, ([forgotten], others), strict=True)
    }


def _spread_rows(lake: "Lake", labels: Sequence[int]) -> "Iterator[Batch]":
    """`ROWS` training rows of `labels`, as far apart as they come; of more classes than that one of each, a
    class at a time in memory."""
    from pipeline.unlearning.methods.preparation import spread

    counts = {item.label: item.train_rows for item in lake.manifest.classes}
    there = [label for label in labels if counts[label]]
    if len(there) <= ROWS:
        rows = lake.read(labels, "train")
        yield rows.take(spread(range(len(rows)), ROWS))
        return
    for label in spread(there, ROWS):
        rows = lake.read([label], "train")
        yield rows.take(range(min(1, len(rows))))  # none where every row was purged


def reference_uris(base_uri: str, forgotten: int) -> list[str]:
    """The references without the class that are there: the first, and those with a number."""
    first = f"{base_uri}-without-{forgotten}"
    uris, number = [first], 1
    while model_folder.manifest_of(f"{first}-number-{number}") is not None:
        uris.append(f"{first}-number-{number}")
        number += 1
    return [uri for uri in uris if model_folder.manifest_of(uri) is not None]


def losses_at(uri: str, lake: "Lake", forgotten: int, cache_uri: str) -> Losses:
    """`probe_losses` of the model at `uri`, made once for the weights that lie there."""
    from models import weights
    from models.generative import build

    stored = model_folder.read(uri, "reference")
    cached = storage.join(cache_uri, f"{storage.digest_of([stored.digest, lake.digest, forgotten])}.json")
    if not storage.exists(cached):
        model = build(stored.config)
        weights.load_into(model.net, stored.state, stored.uri)
        storage.write_json(cached, probe_losses(model, lake, forgotten))
    return dict(storage.read_json(cached))


def distances(models: Sequence[Mapping[str, Any]], references: Sequence[Losses]) -> dict[str, float | None]:
    """By group, how far results with `losses` behave from the references."""
    from pipeline.evaluation.behaviour_distance import as_losses, behaviour_distance

    own = [model["losses"] for model in models if model.get("losses")]
    if not own or not references:
        return dict.fromkeys(GROUPS)
    return {
        group: behaviour_distance(
            as_losses([losses[group] for losses in own]),
            as_losses([losses[group] for losses in references]),
        )
        for group in GROUPS
    }


def said(of_base: Mapping[str, float | None], references: Sequence[Losses]) -> str:
    """What the distances are to be read against: the base, and a further reference."""
    from pipeline.evaluation.behaviour_distance import as_losses, floor

    texts = []
    for group in GROUPS:
        value, least = of_base[group], floor(as_losses([losses[group] for losses in references]))
        if value is not None:
            beside = "" if least is None else f", a further reference {least:.2f}"
            texts.append(f"{group}: the base {value:.2f}{beside}")
    return "behaviour, " + "; ".join(texts) + f" ({len(references)} references)" if texts else ""
