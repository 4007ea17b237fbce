"""An unlearning request checked against the lake and the model it is about, before anything is written."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pipeline import storage
from pipeline.config import Request, UnlearnConfig
from pipeline.config.own_settings import complete
from pipeline.config.request import Answer
from pipeline.data.selection import read_sample_ids
from pipeline.errors import InputError
from pipeline.evaluation.samplers import require_sampler_of
from pipeline.unlearning.methods.table import METHODS, settings_classes

if TYPE_CHECKING:
    from models.generative import GenerativeModel

ID_DIGITS = 10  # of the scope's digest in a request's own id


def with_own_settings(config: UnlearnConfig) -> UnlearnConfig:
    """`config` with its method's own settings checked and complete; raises `InputError`."""
    method = complete(config.method, "method", settings_classes())
    return config.model_copy(update={"method": method})


def require_scope(
    classes: Sequence[int],
    sample_ids: str | None,
    exchange: Mapping[int, Sequence[int]],
    *,
    earlier: Sequence[int] = (),
) -> None:
    """Raise `InputError` for a request that contradicts itself, whatever lake it is about. `earlier` are the
    classes that the base does not sample any more."""
    if not classes and not sample_ids:
        raise InputError(
            "request: got neither classes nor sample_ids, expected what to forget, such as --set"
            " 'request.classes=[1]'"
        )
    if len(set(classes)) != len(classes):
        raise InputError(f"request.classes: got {classes}, expected each class once")
    if len(set(earlier)) != len(earlier):
        raise InputError(f"request.forgotten_earlier: got {list(earlier)}, expected each class once")
    if again := sorted(set(classes) & set(earlier)):
        raise InputError(
            f"request.forgotten_earlier: class {again[0]} is among request.classes too; expected it there if"
            " the base still samples it, or here if it does not"
        )
    for forgotten, targets in exchange.items():
        if forgotten not in (*classes, *earlier):
            raise InputError(
                f"request.exchange: {forgotten} is not among request.classes {list(classes)}; name it there"
                " or drop it here"
            )
        for target in targets:
            if target in classes or target in earlier:
                when = "is itself to be forgotten" if target in classes else "was forgotten earlier"
                raise InputError(
                    f"request.exchange: class {forgotten} would give class {target}, which {when}; choose a"
                    " retained class"
                )


def resolve(
    config: UnlearnConfig, class_names: Mapping[int, str], *, conditional: bool = True
) -> UnlearnConfig:
    """`config` with its request completed (an id made of what it asks); raises `InputError` for one that
    cannot be served."""
    request = config.request
    for name, label in [
        *(("classes", c) for c in request.classes),
        *(("sample_classes", c) for c in request.sample_classes),
        *(("forgotten_earlier", c) for c in request.forgotten_earlier),
        *(("exchange", e) for es in request.exchange_classes.values() for e in es),
    ]:
        if label not in class_names:
            labels = sorted(class_names)
            raise InputError(
                f"request.{name}: class {label} is not in lake {config.lake!r}, expected one of {labels[0]}"
                f" to {labels[-1]}"
            )
    if len(request.forgotten_classes) >= len(class_names):
        raise InputError("request.classes: got every class of the lake, expected at least one to be kept")
    require_scope(
        request.classes, request.sample_ids, request.exchange_classes, earlier=request.forgotten_earlier
    )
    require_answers(request)
    if not conditional:
        _require_unlabelled(config)
    _require_method(config)
    missing = [c for c in request.classes if c not in request.exchange]
    if missing and conditional and not request.without_exchange:
        raise InputError(
            f"request.exchange: class {missing[0]} has none. A label without an exchange class gets no"
            " gradient that says what to sample instead, and what it samples is left to chance; give one"
            f" (--set 'request.exchange={exchange_hint(request.exchange, missing)}') or insist with --set"
            " request.without_exchange=true"
            + (
                f"; to forget no more than the named samples of class {missing[0]}, name it in"
                " request.sample_classes instead"
                if request.sample_ids
                else ""
            )
        )
    if config.method.label_extrapolation == "auto" and config.method.label_init != "exchange":
        raise InputError(
            "method.label_extrapolation: got auto, which is tried out at the start; expected a number, or"
            " method.label_init=exchange with it"
        )
    if config.method.depth == "weights":
        _require_redirection(config)
    moves = config.method.label_init == "exchange" or config.method.label_extrapolation
    if moves and any(len(request.exchange_classes.get(c, ())) != 1 for c in request.classes):
        key = "label_init" if config.method.label_init == "exchange" else "label_extrapolation"
        raise InputError(
            f"method.{key}: aims a forgotten label at the one exchange class it has, but a forgotten class"
            " has none or several; expected label_init base and label_extrapolation 0"
        )
    driven = (
        METHODS[config.method.name].drives
        or config.method.uniformity_weight
        or config.method.latent_reflection
    )
    if (
        not request.exchange_classes_now
        and config.method.targets == "teacher"
        and config.method.depth == "label"
        and not driven
    ):
        raise InputError(
            f"method.targets: with {config.method.name}, no exchange class and targets teacher nothing would"
            " move, the base model being its own teacher; expected --set method.targets=data"
        )
    if request.id:
        return config
    return config.model_copy(update={"request": request.model_copy(update={"id": request_id(config)})})


def _require_method(config: UnlearnConfig) -> None:
    """Raise `InputError` for a request, or a setting of the optimiser, that the method has no answer to."""
    request, name = config.request, config.method.name
    method = METHODS[name]
    if method.whole_classes and request.sample_ids:
        raise InputError(
            f"request.sample_ids: got named samples with method.name {name}, which forgets what a label"
            " shows; expected request.classes alone, or a method such as siss"
        )
    bare = [c for c in request.classes if c not in request.exchange]
    if method.exchange and bare and config.method.depth == "label":
        raise InputError(
            f"request.exchange: class {bare[0]} has none, but {name} shows each forgotten row beside one that"
            " its label shall show; expected --set"
            f" 'request.exchange={exchange_hint(request.exchange, bare)}'"
        )
    if config.optim.separate_moments and not method.summands:
        able = ", ".join(sorted(key for key, line in METHODS.items() if line.summands))
        raise InputError(
            f"optim.separate_moments: got true with method.name {name}, whose gradient is no sum of what"
            f" forgets and what retains; expected one of {able}"
        )


def exchange_hint(exchange: Mapping[int, Any], missing: Sequence[int]) -> str:
    """The whole map as --set takes it, which replaces the one there is: what is given, and a place to fill in
    for each class without one."""
    entries = {**{label: f"{to}" for label, to in exchange.items()}, **dict.fromkeys(missing, "<class>")}
    return "{" + ", ".join(f"{label}: {to}" for label, to in sorted(entries.items())) + "}"


def require_answers(request: Request) -> None:
    """Raise `InputError` for a deletion request that the run does not answer."""
    ids = [answer.id for answer in request.answers]
    if len(set(ids)) != len(ids):
        raise InputError(f"request.answers: got the ids {ids}, expected each once")
    for answer in request.answers:
        if absent := sorted(set(answer.classes) - set(request.forgotten_classes)):
            raise InputError(
                f"request.answers: {answer.id} asks for class {absent[0]}, which is neither in"
                " request.classes nor in request.forgotten_earlier"
            )


def require_fit(config: UnlearnConfig, model: "GenerativeModel") -> None:
    """Raise `InputError` for settings that the model cannot be trained or sampled with."""
    for section in ("evaluate", "measuring"):
        require_sampler_of(getattr(config, section), section, model.config)
    if config.method.uniformity_weight and model.latent is None:
        raise InputError(
            f"method.uniformity_weight: got {config.method.uniformity_weight:g} for {config.model.size},"
            " whose samples take many passes and cannot be differentiated; expected 0"
        )
    if config.method.uniformity_weight and not config.request.classes:
        raise InputError(
            "method.uniformity_weight: a judge of classes cannot tell named samples apart; expected 0"
        )
    if config.method.latent_reflection:
        _require_fold(config, model)
    if model.whole_batch and METHODS[config.method.name].vectors:
        raise InputError(
            f"model.batch_norm: got batch with method.name {config.method.name}, which takes the gradients of"
            " single rows; expected model.batch_norm=running"
        )
    if model.whole_batch and (config.train.most > 1 or config.optim.micro_batch):
        cut = (
            f"train.workers {config.train.most}"
            if config.train.most > 1
            else f"optim.micro_batch {config.optim.micro_batch}"
        )
        raise InputError(
            f"model.batch_norm: got batch with {cut}; statistics of a batch that is cut are those of another"
            " batch: use one worker and no micro-batches, or model.batch_norm=running"
        )


def _require_redirection(config: UnlearnConfig) -> None:
    """Depth weights needs an embedding of the pool for every class that is forgotten or that samples are
    named of, and a method of the common terms."""
    request, method = config.request, METHODS[config.method.name]
    labels = {*request.classes, *request.sample_classes}
    if len(labels) > config.redirection.pool:
        raise InputError(
            f"redirection.pool: got {config.redirection.pool} embeddings for {len(labels)} forgotten"
            " classes, expected one each at least"
        )
    if method.own:
        raise InputError(
            f"method.name: got {config.method.name}, whose own loss speaks of labels; expected exchange,"
            " surgery, uno or uno_s with method.depth weights"
        )


def _require_fold(config: UnlearnConfig, model: "GenerativeModel") -> None:
    """The fold exchanges what is sampled in a part of the latent space, against a teacher."""
    if model.latent is None:
        raise InputError(
            f"method.latent_reflection: got true for {config.model.size}, which has no encoder; expected"
            " request.exchange to say what to sample"
        )
    if config.method.targets != "teacher":
        raise InputError(
            "method.latent_reflection: got targets data, but no image is at hand of what is sampled there;"
            " expected method.targets=teacher"
        )
    if not config.request.classes:
        raise InputError(
            "method.latent_reflection: named samples have no place of their own among the latents; expected"
            " false"
        )


def _require_unlabelled(config: UnlearnConfig) -> None:
    """An unconditional model is asked for nothing, so what is about labels has no meaning."""
    request, method = config.request, config.method
    wrong = [
        (bool(request.exchange), "request.exchange", request.exchange, "none"),
        (request.retain != "all", "request.retain", request.retain, "all"),
        (method.contrast, "method.contrast", method.contrast, "false"),
        (METHODS[method.name].labels, "method.name", method.name, "a method without labels, such as surgery"),
    ]
    for is_wrong, key, got, expected in wrong:
        if is_wrong:
            raise InputError(
                f"{key}: got {got}, but {config.model.size} samples without labels; expected {expected}"
            )


def answers_of(request: Request) -> tuple[Answer, ...]:
    """The deletion requests that a run of `request` answers: those it names, or itself."""
    if request.answers:
        return tuple(request.answers)
    ids = sorted(set(read_sample_ids(request) or []))
    return (
        Answer(
            id=str(request.id),
            classes=sorted(request.classes),
            sample_ids_digest=storage.digest_of(ids) if ids else None,
            sample_count=len(ids),
        ),
    )


def request_id(config: UnlearnConfig) -> str:
    """The name of a request that came without one: `default_id` of what it asks."""
    request, lake = config.request, config.lake
    ids = read_sample_ids(request)
    scope = {
        "model_name": config.tracking.model_name,
        "lake": storage.absolute(lake) if "/" in lake else lake,
        "classes": sorted(request.classes),
        "exchange": {label: list(targets) for label, targets in request.exchange_classes.items()},
        "samples": None if ids is None else storage.digest_of(sorted(set(ids))),
    }
    return default_id(lake, request.classes, scope)


def default_id(lake: str, classes: Sequence[int], scope: Mapping[str, Any]) -> str:
    """Lake, classes and a digest of the scope: the same scope has the same name, on another lake another."""
    name = "".join(c if c.isalnum() and c.isascii() else "-" for c in lake.rsplit("/", 1)[-1])
    labels = "-".join(map(str, sorted(classes)[:5])) or "samples"
    return f"{name.strip('-')[:40] or 'lake'}-forget-{labels}-{storage.digest_of(scope)[:ID_DIGITS]}"
