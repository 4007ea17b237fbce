"""What has to hold before a result may be promoted."""

from pydantic import Field

from pipeline.config.base import Fraction, Section


class Gate(Section):
    max_forget_fraction: Fraction = Field(
        0.05, description="bound on the measured share and, for settling, on its upper 95 % bound"
    )
    max_leakage: Fraction = Field(
        0.05, description="bound on the share of images under all other labels that are a forgotten class"
    )
    max_null_leakage: Fraction | None = Field(
        None, description="the same under the null label, which asks for no class; absent: reported only"
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
    require_memorised: bool = Field(
        True,
        description=(
            "named samples alone: refuse where the base shows no trace of them, since nothing was there to"
            " forget; false: accept that, with nothing claimed"
        ),
    )
    max_fid_increase: float | None = Field(
        None, ge=0, description="bound on how far the Frechet distance may rise; absent: reported only"
    )
    max_recall_excess: float | None = Field(
        None,
        ge=-1,
        le=1,
        description=(
            "bound on how much more often an attacker with images of the class brings it back than in"
            " evaluate.reference, upper 95 % bound of the worst attack; absent: reported only, but 0.1 with"
            " method.depth weights and a reference"
        ),
    )
    min_exchange_fidelity: Fraction | None = Field(
        None,
        description=(
            "bound on how much what the forgotten labels sample looks like their exchange classes"
            " (docs/evaluation.md); a settled run goes on until the lower 95 % bound is above it at two"
            " checks in a row; absent: reported, and warned of below a third"
        ),
    )
    min_patience_steps: int = Field(
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
            "accept the predictions of a judge that the model was trained against (uniformity_weight): it may"
            " have learnt to fool it"
        ),
    )
