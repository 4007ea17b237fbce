"""A comparison whose runs are attacked."""

from pydantic import Field, model_validator

from pipeline.config.compare import CompareConfig
from pipeline.config.measuring import Attacks, Measuring


class AttackMethodsConfig(CompareConfig):
    """A comparison whose runs are attacked: see jobs/attack_methods.py."""

    references: bool = Field(
        True,
        description="rows for the base model and, where it was pretrained, for one that never saw the class",
    )
    attack_suite: list[str] = Field(
        ["none", "finetune", "int8", "embedding from own", "embedding from mean", "embedding from random"],
        min_length=1,
        description="names of the attacks",
    )
    measuring: Measuring = Measuring()
    attacks: Attacks = Attacks()

    @model_validator(mode="after")
    def _makes_them(self) -> "AttackMethodsConfig":
        if self.attack_results is not None:
            raise ValueError(
                f"attack_results: got {self.attack_results}, but this job makes them; expected none"
            )
        if self.requests:
            raise ValueError(
                f"requests: got {self.requests[0].name}, but the attacks bring a class back, of which named"
                " samples are a part; expected pairs alone"
            )
        return self
