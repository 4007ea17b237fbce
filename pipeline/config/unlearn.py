"""The main job: what to forget, how, and what has to hold before the result may be promoted."""

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from pipeline.config.base import Fraction, JobConfig, Section
from pipeline.config.measuring import Attacks, Measuring

SHA256 = r"^[0-9a-fA-F]{64}$"


class Model(Section):
    size: str = "DiT-tiny"
    weights: str | None = Field(
        None,
        description=(
            "folder, published .pt, DiTPipeline folder: path, URI or Hugging Face id; absent: what"
            " pretrain.py left"
        ),
    )
    sha256: str | None = Field(
        None, pattern=SHA256, description="of the file that holds the weights: any other is refused"
    )
    batch_norm: Literal["running", "batch"] = Field(
        "running",
        description=(
            "statistics of a VAE's batch norm while it is trained: stored ones, or the batch's (one worker,"
            " whole batches)"
        ),
    )


class Decoder(Section):
    """The autoencoder of a model of latents: what turns its samples into images."""

    weights: str | None = Field(
        None, description="AutoencoderKL folder, URI or Hugging Face id; absent: what came with model.weights"
    )
    sha256: str | None = Field(None, pattern=SHA256)


class StandIn(Section):
    """For trying the whole way where there is nothing: tiny untrained weights in the published formats, and a
    lake made with them."""

    use: bool = Field(False, description="make the lake and the weights that are left open")
    images: str | None = Field(
        None, description="folder or URI of <wnid>/*.JPEG to make the lake of; absent: made ones"
    )


class Request(Section):
    """What to forget. `exchange` maps a forgotten class to the class its label shall draw from now on, or to
    several: their mixture."""

    id: str | None = None
    classes: list[int] = Field(default_factory=list)
    sample_ids: str | None = Field(None, description="URI of a text file with one sample id a line")
    exchange: dict[int, int | Annotated[list[int], Field(min_length=1)]] = Field(default_factory=dict)
    without_exchange: bool = Field(False, description="accept a forgotten class without an exchange class")
    retain: Literal["exchange", "neighbours", "all"] = "all"
    neighbours: int = Field(
        5, ge=1, description="how many nearest classes count as neighbours of the forgotten ones"
    )
    nearest_by: Literal["embedding", "judge"] = Field(
        "embedding",
        description=(
            "what nearest means: the model's label table, or what the judge confuses on images of the"
            " forgotten classes"
        ),
    )
    reason: str = ""

    @property
    def forgotten_classes(self) -> list[int]:
        """The classes to forget whole: none when samples are named, `classes` then only
        says where they are."""
        return [] if self.sample_ids else self.classes

    @property
    def exchange_classes(self) -> dict[int, tuple[int, ...]]:
        """The exchange classes of each forgotten class, sorted."""
        return {
            c: (e,) if isinstance(e, int) else tuple(sorted(set(e))) for c, e in sorted(self.exchange.items())
        }


class Method(Section):
    name: str = "uno_s"
    penalty: float = Field(0.01, ge=0, description="lambda of grad cos^2")
    surgery_every: int = Field(2, ge=1, description="uno_s: every k-th step is a surgery step")
    hvp: Literal["exact", "recompute", "fd_central", "fd_forward"] = Field(
        "exact", description="how the penalty's gradient is made"
    )
    targets: Literal["data", "teacher"] = Field(
        "teacher", description="what L_r and L_x are measured against"
    )
    exchange_weight: float = Field(0.5, ge=0, description="weight of L_x against L_r; 1 in the paper")
    start: Literal["base", "exchange"] = Field(
        "base",
        description=(
            "exchange: the forgotten labels' rows begin at those of their exchange classes (docs/methods.md)"
        ),
    )
    push: Annotated[float, Field(ge=0)] | Literal["auto"] = Field(
        0.0,
        description=(
            "how far beyond the exchange class, away from itself, a forgotten label is aimed; auto: as the"
            " judge finds best"
        ),
    )
    contrast: bool = Field(
        False, description="L_f minus the loss of the same noised images under the null label"
    )
    null_fraction: Fraction = Field(
        0.1, description="teacher targets: share of retain rows under the null label"
    )
    hat_weight: float = Field(
        0.0,
        ge=0,
        description=(
            "unconditional models: weight of the judge's pull towards the kept classes, in L_r and L_f;"
            " 0: off"
        ),
    )
    fold: bool = Field(
        False,
        description=(
            "unconditional models: L_x on the forgotten rows; where they lie, what the base draws on the kept"
            " side of the edge"
        ),
    )
    eta: float = Field(3.0, ge=0, description="esd: how far the forgotten label is steered away from itself")
    saliency: float = Field(0.5, gt=0, le=1, description="salun: share of the trained parameters that move")
    share_noise: bool = Field(False, description="L_f draws the timestep and noise of L_x")


class Partition(Section):
    lanes: int = Field(
        8,
        ge=1,
        description=(
            "equal streams the retain side is cut into; any worker count that divides it sees the same"
            " batches"
        ),
    )
    segment_steps: int | None = Field(
        None, ge=1, description="steps of one file of a lane; absent: what makes a file about 16 MB"
    )


class Optim(Section):
    """AdamW of an unlearning run. The defaults are those that served the digits model best
    (docs/methods.md)."""

    lr: float = Field(0.01, gt=0)
    label_lr: float | None = Field(None, gt=0, description="learning rate of the label table; absent: lr")
    batch_size: int = Field(
        64, ge=1, description="rows of each kind (retain, exchange, forget) in the global batch"
    )
    micro_batch: int | None = Field(
        None, ge=1, description="rows of each kind a worker holds at once; absent: its whole share"
    )
    max_steps: int = Field(60, ge=1)
    max_seconds: float | None = Field(
        None, gt=0, description="seconds of steps after which a run ends, at its next check; absent: no bound"
    )
    warmup_steps: int = Field(0, ge=0)
    prime_steps: int = Field(
        0, ge=0, description="gradient evaluations at lr 0 that fill the optimiser's moments first"
    )
    clip: float | None = Field(1.0, gt=0, description="bound on the gradient's norm")
    weight_decay: float = Field(0.0, ge=0)
    ema: float = Field(
        0.7, ge=0, lt=1, description="decay of the averaged weights that are evaluated and registered; 0: off"
    )


class Train(Section):
    """The workers. With `workers: [min, max]` a run goes on with as many as are alive, on the same global
    batches."""

    workers: int | list[int] = Field(2, description="how many, or [fewest, most]")
    cpus_per_worker: float = Field(0.5, gt=0)
    gpus_per_worker: float = Field(0, ge=0)
    precision: Literal["fp32", "bf16"] = "fp32"
    tf32: bool = Field(
        False, description="float32 matrix products in TF32 on GPUs: faster, with 10 bits of mantissa"
    )
    compile: bool = Field(
        False,
        description=(
            "torch.compile for passes of first order and for sampling (DiTs): pays where a run is much longer"
            " than a minute"
        ),
    )
    memory_gib: float | None = Field(
        None,
        gt=0,
        description=(
            "memory of one GPU: hvp exact gives way to recompute where it would not fit; absent: not"
            " looked at"
        ),
    )
    threads: int = Field(1, ge=1, description="BLAS threads of a worker")
    max_failures: int = Field(3, ge=0, description="worker failures a run survives")
    wait_s: float = Field(
        600.0, ge=0, description="how long to wait for a cluster that has not got the resources (yet)"
    )
    resize_s: float = Field(60.0, gt=0, description="elastic: seconds between two looks for workers to add")
    grace_s: float = Field(
        30.0, gt=0, description="after SIGTERM: how long the driver waits for the workers' checkpoint"
    )

    @property
    def fewest(self) -> int:
        return self.workers if isinstance(self.workers, int) else self.workers[0]

    @property
    def most(self) -> int:
        return self.workers if isinstance(self.workers, int) else self.workers[1]

    @field_validator("workers", mode="before")
    @classmethod
    def _a_number_or_a_range(cls, value: Any) -> Any:
        numbers = list(value) if isinstance(value, list | tuple) else [value, value]
        if (
            len(numbers) != 2
            or not all(type(number) is int for number in numbers)
            or not 1 <= numbers[0] <= numbers[1]
        ):
            raise ValueError("expected a positive number or [fewest, most]")
        return value


class Evaluate(Section):
    every: int = Field(2, ge=1, description="steps between two checks")
    samples: int = Field(200, ge=20, description="images a check draws for the forgotten classes together")
    retain_samples: int = Field(20, ge=1, description="images a check draws for each retained class")
    retain_classes: int | None = Field(
        None,
        ge=1,
        description="retained classes that are drawn: exchange, nearest, others by seed; absent: all of them",
    )
    final_samples: int = Field(500, ge=100, description="the same before and after, on fresh noise")
    final_retain_samples: int = Field(100, ge=1)
    cfg_scale: float = Field(2.0, ge=0)
    sampler_steps: int = Field(12, ge=1)
    final_sampler_steps: int = Field(20, ge=1)
    membership_draws: int = Field(
        16, ge=1, description="named samples: noises over which a row's loss is averaged"
    )
    hold_steps: int = Field(
        16,
        ge=1,
        description="steps over which every check must stay below the target before the run is settled",
    )
    precision: Literal["fp32", "bf16"] = Field(
        "fp32", description="of the network while it samples; judge and decoder are in fp32"
    )
    batch: int = Field(128, ge=1, description="images sampled at once by a worker")
    guard: Fraction | None = Field(
        0.7,
        description=(
            "share of the base model's retain_accuracy; a run that falls below it stops and returns to its"
            " best check; null: never"
        ),
    )
    guard_checks: int = Field(3, ge=1, description="checks in a row below the guard that stop a run")
    max_checks: int | None = Field(
        None,
        ge=1,
        description="checks after which a run ends, settled or not; absent: optim.max_steps decides",
    )
    asynchronous: bool = Field(
        False, description="check in Ray tasks beside the training, which goes on meanwhile"
    )
    cpus: float = Field(0.5, ge=0, description="asynchronous: CPUs of such a task")
    gpus: float = Field(0, ge=0, description="asynchronous: GPUs of such a task")
    timeout_s: float = Field(
        1200.0, gt=0, description="asynchronous: a check that takes longer counts as failed"
    )
    battery: bool = Field(False, description="at the end, try to bring the class back (attacks says how)")
    measures: list[str] = Field(
        [],
        description="at the end, further measures of jobs/evaluate.py, such as leakage and loss_by_timestep",
    )
    gold: str | None = Field(
        None,
        description="name or URI of a model trained without the forgotten rows, to compare with at the end",
    )


class Judge(Section):
    weights: str | None = Field(
        None,
        description=(
            "folder, transformers image classifier: path, URI or Hugging Face id; absent: what pretrain.py"
            " left"
        ),
    )
    sha256: str | None = Field(
        None, pattern=SHA256, description="of the file that holds the weights: any other is refused"
    )


class Extractor(Section):
    """Weights of a feature space that distances are taken in beside the judge's: see
    models/features/table.py."""

    weights: str = Field(
        min_length=1, description="file or folder of the space's format: path, URI or Hugging Face id"
    )
    sha256: str | None = Field(
        None, pattern=SHA256, description="of the file that holds the weights; a TorchScript file needs it"
    )


class Gate(Section):
    max_forget_fraction: Fraction = Field(
        0.05, description="bound on the measured share and, for settling, on its upper 95 % bound"
    )
    min_retain_accuracy: Fraction = Field(0.97, description="bound on the mean over retained classes")
    min_class_accuracy: Fraction = Field(0.90, description="bound on the worst retained class")
    max_share_drift: Fraction = Field(
        0.03,
        description=(
            "unconditional models: how far any kept class's share may be from its share before among the kept"
            " classes"
        ),
    )
    max_membership_auc: Fraction = Field(
        0.60,
        description="named samples: bound on the loss attack's AUC and, for settling, on its upper bound",
    )
    max_fid_increase: float | None = Field(
        None, ge=0, description="bound on how far the Frechet distance may rise; absent: reported only"
    )
    min_likeness: Fraction | None = Field(
        None,
        description=(
            "bound on how much what the forgotten labels draw looks like their exchange classes"
            " (docs/evaluation.md); a settled run goes on until the lower 95 % bound is above it at two"
            " checks in a row; absent: reported, and warned of below a third"
        ),
    )
    min_hold_steps: int = Field(
        8,
        ge=0,
        description=(
            "bound on the steps for which a settled run was seen to stay below the target: a short hold"
            " proves little"
        ),
    )
    min_judge_accuracy: Fraction | None = Field(
        0.90, description="bound on the judge itself, on held-out images; null: accept what any judge says"
    )
    accept_trained_judge: bool = Field(
        False,
        description=(
            "accept the verdicts of a judge that the model was trained against (hat_weight): it may have"
            " learnt to fool it"
        ),
    )


class Tracking(Section):
    uri: str | None = Field(None, description="MLflow tracking URI; absent: SQLite under the storage root")
    experiment: str = "unlearning"
    model_name: str = "dit-digits-unlearned"
    pipeline: bool = Field(
        False, description="leave the model under the run as a DiTPipeline folder of diffusers as well"
    )
    artifact: Literal["full", "delta"] = Field(
        "full",
        description=(
            "what a version holds: all weights, or the trained subset and the digest of the base it"
            " belongs to"
        ),
    )


class UnlearnConfig(JobConfig):
    run_id: str | None = Field(None, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")
    lake: str = "digits"
    model: Model = Model()
    encoder: Decoder = Decoder()
    stand_in: StandIn = StandIn()
    request: Request = Request()
    method: Method = Method()
    trainable: str = "labels_and_adaln:2"
    partition: Partition = Partition()
    optim: Optim = Optim()
    train: Train = Train()
    evaluate: Evaluate = Evaluate()
    judge: Judge = Judge()
    hat_judge: Judge = Field(
        Judge(),
        description=(
            "the classifier that method.hat_weight trains against; weights absent: the second one that"
            " pretrain.py left, or else the judge that measures"
        ),
    )
    features: dict[str, Extractor] = Field(
        {}, description="further feature spaces of the distances before and after: inception, dinov2"
    )
    gate: Gate = Gate()
    measuring: Measuring = Field(
        Measuring(), description="how much evaluate.measures, evaluate.gold and the battery draw"
    )
    attacks: Attacks = Field(Attacks(), description="what evaluate.battery tries")
    tracking: Tracking = Tracking()

    @model_validator(mode="after")
    def _divisible(self) -> "UnlearnConfig":
        if self.train.tf32 and self.train.precision == "fp32" and self.method.hvp.startswith("fd"):
            raise ValueError(
                f"train.tf32: its rounding drowns the differences of method.hvp {self.method.hvp}; expected"
                " exact or recompute"
            )
        if self.method.hvp == "fd_forward" and self.train.precision == "bf16":
            raise ValueError(
                "method.hvp: got fd_forward with train.precision bf16, whose rounding drowns a one-sided"
                " difference; expected fd_central"
            )
        if self.gate.min_likeness is not None and (not self.request.exchange or self.request.sample_ids):
            raise ValueError(
                f"gate.min_likeness: got {self.gate.min_likeness}, but no label of the request has an"
                " exchange class to look like; expected request.exchange, or gate.min_likeness=null"
            )
        batch, lanes, fewest, most = (
            self.optim.batch_size,
            self.partition.lanes,
            self.train.fewest,
            self.train.most,
        )
        if batch % lanes:
            raise ValueError(
                f"optim.batch_size: got {batch}, expected a multiple of partition.lanes ({lanes})"
            )
        if fewest == most and lanes % most:
            raise ValueError(f"train.workers: got {most}, expected a divisor of partition.lanes ({lanes})")
        if not any(lanes % workers == 0 for workers in range(fewest, most + 1)):
            raise ValueError(
                f"train.workers: got [{fewest}, {most}], expected a divisor of partition.lanes ({lanes})"
                " among them"
            )
        if self.optim.micro_batch and (batch // most) % self.optim.micro_batch:
            raise ValueError(
                f"optim.micro_batch: got {self.optim.micro_batch}, expected a divisor of a worker's share of"
                f" the batch ({batch} / {most} = {batch // most})"
            )
        return self
