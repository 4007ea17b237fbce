"""Configuration: one YAML per job, checked before anything is touched. An unknown key names the valid ones near it."""

import difflib
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator, model_validator

from pipeline import storage
from pipeline.errors import InputError

Fraction = Annotated[float, Field(ge=0, le=1)]
Version = Annotated[str, BeforeValidator(str), Field(min_length=1, description="alias or number of a registered version")]


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


class Source(Section):
    """Where raw images come from."""

    kind: Literal["digits", "imagefolder", "parquet", "webdataset", "mnist", "celeba"] = "digits"
    uri: str | None = Field(None, description="folder, file or glob on any storage; digits needs none")
    classes: list[str] | str | None = Field(
        None, description="class names by label; or 'imagenet'; or the URI of an index file; absent: what the source says itself"
    )
    attribute: str | None = Field(None, description="celeba: the attribute that makes the two classes, such as Eyeglasses")
    held_out: Fraction = Field(
        0.2, description="share of each class kept out of training, by sample id; unused where the source has a split"
    )

    @model_validator(mode="after")
    def _complete(self) -> "Source":
        if self.kind != "digits" and not self.uri:
            raise ValueError(f"source.uri: got none, expected where the {self.kind} images are: --set source.uri=<folder or URI>")
        if self.kind == "celeba" and not self.attribute:
            raise ValueError("source.attribute: got none, expected a column of list_attr_celeba: --set source.attribute=Eyeglasses")
        return self


class Encoder(Section):
    """What the lake holds: pixels, or an autoencoder's latents (posterior mean and std)."""

    kind: Literal["identity", "autoencoder_kl"] = "identity"
    weights: str | None = Field(None, description="folder or URI of a diffusers AutoencoderKL: config.json and safetensors")
    batch: int = Field(32, ge=1, description="images encoded at once")
    workers: int = Field(1, ge=1, description="processes that hold the autoencoder")
    gpus_per_worker: float = Field(0, ge=0)

    @model_validator(mode="after")
    def _has_weights(self) -> "Encoder":
        if self.kind != "identity" and not self.weights:
            raise ValueError(f"encoder.weights: got none, expected the {self.kind} folder: --set encoder.weights=<folder or URI>")
        return self


class Prepare(Section):
    size: int = Field(256, ge=1, description="height and width of the lake's images")
    channels: Literal[1, 3] = 3
    shard_rows: int = Field(4096, ge=1, description="rows of one Parquet shard, fewer where they would exceed 128 MB")
    flip: bool = Field(False, description="a second row per training image, mirrored, its sample id marked ~flip")
    max_rejected: int | None = Field(None, ge=0, description="unusable images a run puts up with; absent: any number")

    @property
    def shape(self) -> tuple[int, int, int]:
        """(H, W, C) of an image."""
        return self.size, self.size, self.channels


class Model(Section):
    size: str = "DiT-tiny"
    weights: str | None = Field(None, description="folder or URI; absent: what pretrain.py left under storage for this lake")


class Request(Section):
    """What to forget. `exchange` maps a forgotten class to the class its label shall draw from now on."""

    id: str | None = None
    classes: list[int] = []
    sample_ids: str | None = Field(None, description="URI of a text file with one sample id a line")
    exchange: dict[int, int] = {}
    without_exchange: bool = Field(False, description="accept a forgotten class without an exchange class")
    retain: Literal["exchange", "neighbours", "all"] = "all"
    neighbours: int = Field(5, ge=1, description="how many nearest classes count as neighbours of the forgotten ones")
    reason: str = ""

    @property
    def forgotten_classes(self) -> list[int]:
        """The classes to forget whole: none when samples are named, `classes` then only says where they are."""
        return [] if self.sample_ids else self.classes


class Method(Section):
    name: str = "uno_s"
    penalty: float = Field(0.01, ge=0, description="lambda of grad cos^2")
    surgery_every: int = Field(2, ge=1, description="uno_s: every k-th step is a surgery step")
    hvp: Literal["exact", "recompute", "fd_central", "fd_forward"] = Field("exact", description="how the penalty's gradient is made")
    targets: Literal["data", "teacher"] = Field("teacher", description="what L_r and L_x are measured against")
    exchange_weight: float = Field(0.5, ge=0, description="weight of L_x against L_r; 1 in the paper")
    contrast: bool = Field(False, description="L_f minus the loss of the same noised images under the null label")
    null_fraction: Fraction = Field(0.1, description="teacher targets: share of retain rows under the null label")
    share_noise: bool = Field(False, description="L_f draws the timestep and noise of L_x")


class Partition(Section):
    lanes: int = Field(
        8, ge=1, description="equal streams the retain side is cut into; any worker count that divides it sees the same batches"
    )
    segment_steps: int | None = Field(None, ge=1, description="steps of one file of a lane; absent: what makes a file about 16 MB")


class Optim(Section):
    """AdamW of an unlearning run. The defaults are those that served the digits model best (docs/methods.md)."""

    lr: float = Field(0.01, gt=0)
    batch_size: int = Field(64, ge=1, description="rows of each kind (retain, exchange, forget) in the global batch")
    micro_batch: int | None = Field(None, ge=1, description="rows of each kind a worker holds at once; absent: its whole share")
    max_steps: int = Field(60, ge=1)
    warmup_steps: int = Field(0, ge=0)
    prime_steps: int = Field(0, ge=0, description="gradient evaluations at lr 0 that fill the optimiser's moments first")
    clip: float | None = Field(1.0, gt=0, description="bound on the gradient's norm")
    weight_decay: float = Field(0.0, ge=0)
    ema: float = Field(0.7, ge=0, lt=1, description="decay of the averaged weights that are evaluated and registered; 0: off")


class Train(Section):
    workers: int = Field(2, ge=1)
    cpus_per_worker: float = Field(0.5, gt=0)
    gpus_per_worker: float = Field(0, ge=0)
    precision: Literal["fp32", "bf16"] = "fp32"
    threads: int = Field(1, ge=1, description="BLAS threads of a worker")
    max_failures: int = Field(3, ge=0, description="worker failures a run survives")


class Evaluate(Section):
    every: int = Field(2, ge=1, description="steps between two checks")
    samples: int = Field(200, ge=20, description="images a check draws for the forgotten classes together")
    retain_samples: int = Field(20, ge=1, description="images a check draws for each retained class")
    final_samples: int = Field(500, ge=100, description="the same before and after, on fresh noise")
    final_retain_samples: int = Field(100, ge=1)
    cfg_scale: float = Field(2.0, ge=0)
    sampler_steps: int = Field(12, ge=1)
    final_sampler_steps: int = Field(20, ge=1)
    membership_draws: int = Field(16, ge=1, description="named samples: noises over which a row's loss is averaged")
    hold_steps: int = Field(16, ge=1, description="steps over which every check must stay below the target before the run is settled")
    batch: int = Field(128, ge=1, description="images sampled at once by a worker")


class Judge(Section):
    weights: str | None = Field(None, description="folder or URI; absent: what pretrain.py left under storage for this lake")


class Gate(Section):
    max_forget_fraction: Fraction = Field(0.05, description="bound on the measured share and, for settling, on its upper 95 % bound")
    min_retain_accuracy: Fraction = Field(0.97, description="bound on the mean over retained classes")
    min_class_accuracy: Fraction = Field(0.90, description="bound on the worst retained class")
    max_membership_auc: Fraction = Field(
        0.60, description="named samples: bound on the loss attack's AUC and, for settling, on its upper bound"
    )
    max_fid_increase: float | None = Field(None, ge=0, description="bound on how far the Frechet distance may rise; absent: reported only")


class Tracking(Section):
    uri: str | None = Field(None, description="MLflow tracking URI; absent: SQLite under the storage root")
    experiment: str = "unlearning"
    model_name: str = "dit-digits-unlearned"


class JobConfig(Section):
    """What every job has."""

    storage: str = Field("./runs", validate_default=True)
    seed: int = Field(0, ge=0)

    @field_validator("storage")
    @classmethod
    def _absolute(cls, value: str) -> str:
        return storage.absolute(value)


class PrepareConfig(JobConfig):
    lake: str = "digits"
    source: Source = Source()
    encoder: Encoder = Encoder()
    prepare: Prepare = Prepare()


class PretrainOptim(Section):
    """The recipe of docs/numerics.md: minutes on two cores."""

    lr: float = Field(3e-3, gt=0)
    batch_size: int = Field(128, ge=1)
    max_steps: int = Field(600, ge=1)
    warmup_steps: int = Field(50, ge=0)
    clip: float | None = Field(1.0, gt=0)
    weight_decay: float = Field(0.0, ge=0)
    ema: float = Field(0.99, ge=0, lt=1)


class JudgeOptim(Section):
    lr: float = Field(3e-3, gt=0)
    batch_size: int = Field(128, ge=1)
    max_steps: int = Field(300, ge=1)
    warmup_steps: int = Field(20, ge=0)
    ema: float = Field(0.98, ge=0, lt=1)
    noise: float = Field(0.3, ge=0, description="deviation of the noise added to the images it learns from")


class PretrainConfig(JobConfig):
    lake: str = "digits"
    model: Model = Model()
    label_dropout: Fraction = Field(0.1, description="share of rows trained under the null label (classifier-free guidance)")
    optim: PretrainOptim = PretrainOptim()
    judge: JudgeOptim = JudgeOptim()
    train: Train = Train()
    evaluate: Evaluate = Evaluate()


class UnlearnConfig(JobConfig):
    run_id: str | None = Field(None, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")
    lake: str = "digits"
    model: Model = Model()
    request: Request = Request()
    method: Method = Method()
    trainable: str = "labels_and_adaln:2"
    partition: Partition = Partition()
    optim: Optim = Optim()
    train: Train = Train()
    evaluate: Evaluate = Evaluate()
    judge: Judge = Judge()
    gate: Gate = Gate()
    tracking: Tracking = Tracking()

    @model_validator(mode="after")
    def _divisible(self) -> "UnlearnConfig":
        if self.method.hvp == "fd_forward" and self.train.precision == "bf16":
            raise ValueError(
                "method.hvp: got fd_forward with train.precision bf16, whose rounding drowns a one-sided difference; expected fd_central"
            )
        batch, lanes, workers = self.optim.batch_size, self.partition.lanes, self.train.workers
        if batch % lanes:
            raise ValueError(f"optim.batch_size: got {batch}, expected a multiple of partition.lanes ({lanes})")
        if lanes % workers:
            raise ValueError(f"train.workers: got {workers}, expected a divisor of partition.lanes ({lanes})")
        if self.optim.micro_batch and (batch // workers) % self.optim.micro_batch:
            raise ValueError(
                f"optim.micro_batch: got {self.optim.micro_batch}, expected a divisor of a worker's share of the batch "
                f"({batch} / {workers} = {batch // workers})"
            )
        return self


class GenerateConfig(JobConfig):
    tracking: Tracking = Tracking()
    version: Version = "candidate"
    labels: list[int] = Field([1], min_length=1)
    seeds: list[Annotated[int, Field(ge=0, lt=2**63)]] = Field([0, 1, 2, 3, 4, 5, 6, 7], min_length=1)
    cfg_scale: float | None = Field(None, ge=0, description="absent: the scale the model was registered with")
    steps: int | None = Field(None, ge=1, description="sampler steps; absent: those the model was registered with")
    output: str | None = Field(None, description="PNG to write; absent: <storage>/generated/<model>-v<version>.png")


class RegistryConfig(JobConfig):
    tracking: Tracking = Tracking()
    version: Version | None = Field(None, description="absent: candidate for show and promote, champion for verify")
    override: str | None = Field(None, min_length=10, description="promote although the gate did not pass: the reason, which is recorded")
    key: str | None = Field(None, description="Ed25519 private key (PEM file) that signs the certificate of a promoted version")
    public_key: str | None = Field(None, description="Ed25519 public key (PEM file) that verify holds the signature against")


class CompareConfig(JobConfig):
    name: str = Field("digits", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")
    lake: str = "digits"
    seeds: list[int] = Field([0, 1, 2, 3, 4], min_length=1)
    pairs: list[tuple[int, int]] = Field([(1, 7), (3, 5)], min_length=1, description="forgotten class, exchange class")
    processes: int = Field(2, ge=1)
    unlearn: dict[str, Any] = Field({}, description="settings of the main job that all rows share")
    rows: dict[str, dict[str, Any]] = Field(min_length=1, description="name of a row -> the settings it changes, by dotted key")


class StepBenchmark(Section):
    width: int = Field(384, ge=24, multiple_of=12)
    depth: int = Field(6, ge=1)
    tokens: int = Field(256, ge=4, description="a square number")
    batch: int = Field(2, ge=1, description="images of each kind")
    trainable: str = "labels_and_adaln:4"
    penalty: float = Field(0.02, gt=0)
    repeats: int = Field(11, ge=1)


class BenchmarkConfig(JobConfig):
    benchmark: str = "step"
    threads: int = Field(1, ge=1)
    step: StepBenchmark = StepBenchmark()


ConfigT = TypeVar("ConfigT", bound=JobConfig)


def read_yaml(path: str) -> dict[str, Any]:
    """The mapping in a YAML file (safe_load). A relative path is looked up from the working directory, then from the checkout."""
    candidates = [Path(path), Path(__file__).resolve().parents[1] / path]
    found = next((candidate for candidate in candidates if candidate.is_file()), None)
    if found is None:
        raise InputError(f"--config: got {path!r}, which is no file; expected a YAML file such as jobs/configs/quickstart.yaml")
    try:
        value = yaml.safe_load(found.read_text())
    except yaml.YAMLError as error:
        raise InputError(f"--config: {path} is not valid YAML ({' '.join(str(error).split())})") from error
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise InputError(f"--config: {path} holds a {type(value).__name__}, expected a mapping of keys")
    return value


def apply_overrides(values: dict[str, Any], overrides: list[str]) -> dict[str, Any]:
    """`values` with each `a.b=c` of `overrides` set; c is read as YAML, so lists and mappings can be given."""
    result: dict[str, Any] = dict(values)
    for override in overrides:
        key, separator, text = override.partition("=")
        if not separator or not key:
            raise InputError(f"--set: got {override!r}, expected key=value such as optim.lr=0.001")
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise InputError(f"--set {key}: got {text!r}, which is not valid YAML") from error
        node = result
        *parents, leaf = key.strip().split(".")
        for parent in parents:
            child = node.get(parent)
            node[parent] = dict(child) if isinstance(child, dict) else {}
            node = node[parent]
        node[leaf] = value
    return result


def parse(kind: type[ConfigT], values: dict[str, Any]) -> ConfigT:
    """`values` as a checked configuration of `kind`; `InputError` names the first key that is wrong."""
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        raise InputError(_explain(kind, error)) from error


def load(kind: type[ConfigT], path: str, overrides: list[str] | None = None) -> ConfigT:
    return parse(kind, apply_overrides(read_yaml(path), overrides or []))


def dump(config: BaseModel) -> str:
    """`config` as YAML that `load` reads back."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)


def _explain(kind: type[BaseModel], error: ValidationError) -> str:
    first = error.errors()[0]
    location = [str(part) for part in first["loc"]]
    key = ".".join(location)
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    if first["type"] == "extra_forbidden":
        fields, section = _fields_at(kind, location[:-1])
        near = difflib.get_close_matches(location[-1], fields, n=3, cutoff=0.5)
        elsewhere = [path for path in _all_keys(kind) if path.rsplit(".", 1)[-1] == location[-1]]
        hint = f"did you mean {' or '.join(elsewhere or near)}? " if near or elsewhere else ""
        return f"unknown key {key!r}: {hint}valid keys{f' of {section}' if section else ''} are {', '.join(fields)}{more}"
    message = first["msg"].removeprefix("Value error, ")
    if not key:
        return message + more
    return f"{key}: got {first['input']!r}, {message[0].lower() + message[1:]}{more}"


def _fields_at(kind: type[BaseModel], location: list[str]) -> tuple[list[str], str]:
    for part in location:
        annotation = kind.model_fields[part].annotation
        if not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
            break
        kind = annotation
    return list(kind.model_fields), ".".join(location)


def _all_keys(kind: type[BaseModel], prefix: str = "") -> list[str]:
    keys = []
    for name, field in kind.model_fields.items():
        annotation = field.annotation
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            keys += _all_keys(annotation, f"{prefix}{name}.")
        else:
            keys.append(prefix + name)
    return keys
