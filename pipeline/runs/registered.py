"""A registered version as weights: which one a name means, what it honours, what it holds."""

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from pipeline import storage
from pipeline.config import Registry, UnlearnConfig, parse_stored
from pipeline.errors import InputError
from pipeline.weights import model_folder

if TYPE_CHECKING:
    from pipeline.tracking.registry import ModelVersion

# models:/name@champion, models:/name/7, name:7
NAMED = re.compile(
    r"models:/(?P<name>[^/@:]+)(?:@(?P<alias>[^/@:]+)|/(?P<number>\d+))|(?P<short>\w[\w.-]*):(?P<of_short>\d+)"
)


@dataclass(frozen=True, kw_only=True)
class BaseVersion:
    """The version a run starts from, the deletion requests it honours and the classes it samples no more."""

    name: str
    version: int
    request_ids: tuple[str, ...]
    forgotten_classes: tuple[int, ...]

    @property
    def uri(self) -> str:
        """What names this version and, later as well, no other."""
        return f"models:/{self.name}/{self.version}"

    @property
    def line(self) -> str:
        """What is said of it before the run."""
        text = f"base: {self.name} version {self.version}"
        if self.request_ids:
            text += f", which honours {', '.join(self.request_ids)}"
        return text

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def named(text: str | None) -> tuple[str, str] | None:
    """The model's name, and the alias or number, where `text` names a registered version. Raises `InputError`
    for what starts like one and is none."""
    match = NAMED.fullmatch(text or "")
    if match is None and (text or "").startswith("models:"):
        raise InputError(
            f"model.weights: got {text!r}, expected models:/<name>@<alias> or models:/<name>/<number>"
        )
    if match is None:
        return None
    return match["name"] or match["short"], match["alias"] or match["number"] or match["of_short"]


def find(tracking: Registry, storage_root: str, text: str, key: str) -> "ModelVersion":
    """The version that `text` names. Raises `InputError` about `key` where there is none."""
    from pipeline.tracking.registry import resolve

    place = named(text)
    assert place is not None
    try:
        return resolve(tracking.model_copy(update={"model_name": place[0]}), storage_root, place[1])
    except InputError as error:
        raise InputError(f"{key}: {text}: {str(error).removeprefix('version: ')}") from error


def with_base_version(
    config: UnlearnConfig, labels: Mapping[int, str]
) -> tuple[UnlearnConfig, BaseVersion | None]:
    """`config` with its base as the number that an alias means now, and the classes that this version samples
    no more among those forgotten earlier; `labels` are the lake's. None where the base is no version."""
    if named(config.model.weights) is None:
        return config, None
    version = find(config.tracking, config.storage, str(config.model.weights), "model.weights")
    base, request = _honours(version, config.storage), config.request
    base = replace(base, forgotten_classes=tuple(c for c in base.forgotten_classes if c in labels))
    earlier = {*request.forgotten_earlier, *base.forgotten_classes} - set(request.classes)
    update = {
        "model": config.model.model_copy(update={"weights": base.uri}),
        "request": request.model_copy(update={"forgotten_earlier": sorted(earlier)}),
    }
    return config.model_copy(update=update), base


def base_version(tracking: Registry, storage_root: str, text: str, key: str) -> BaseVersion:
    """The version that `text` names, with what it honours."""
    return _honours(find(tracking, storage_root, text, key), storage_root)


def read(tracking: Registry, storage_root: str, version: "ModelVersion", key: str) -> model_folder.Stored:
    """The weights of `version`, checked against the digest it was registered with; to be `kept` where they do
    not lie under the storage root."""
    from pipeline.tracking.registry import local_copy

    folder = str(local_copy(tracking, storage_root, version))
    stored = model_folder.read(folder, key)
    if stored.digest != version.tags.get("weights_digest", stored.digest):
        raise InputError(
            f"{version.name} version {version.version}: its weights have digest {stored.digest[:12]}, it was"
            f" registered with {version.tags['weights_digest'][:12]}"
        )
    within = storage.is_local(storage_root) and folder.startswith(f"{storage_root.rstrip('/')}/")
    return replace(stored, foreign=not within)


def _honours(version: "ModelVersion", storage_root: str) -> BaseVersion:
    """What its tags say or, of a version of a time that noted none, the request of its run."""

    from pipeline.tracking.registry import RUN_ID_TAG, honoured

    listed = honoured(version.tags)
    run_id = version.tags.get(RUN_ID_TAG, "")
    settings = storage.join(storage_root, "runs", run_id, "config.yaml")
    if listed is None and run_id and storage.exists(settings):
        request = parse_stored(UnlearnConfig, storage.read_yaml(settings)).request
        listed = {"request_ids": [str(request.id)], "forgotten_classes": request.forgotten_classes}
    listed = listed or {"request_ids": [], "forgotten_classes": []}
    return BaseVersion(
        name=version.name,
        version=int(version.version),
        request_ids=tuple(listed["request_ids"]),
        forgotten_classes=tuple(listed["forgotten_classes"]),
    )
