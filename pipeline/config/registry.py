"""Registered versions: which there are, which one serves, and the way back."""

from typing import Annotated, ClassVar

from pydantic import BeforeValidator, Field

from pipeline.config.base import JobConfig, Version
from pipeline.config.tracking import Registry


class RegistryConfig(JobConfig):
    keys_of_verb: ClassVar[dict[str, tuple[str, ...]]] = {
        "list": (),
        "show": ("version",),
        "promote": ("version", "override", "key", "audit_days"),
        "rollback": ("override",),
        "history": (),
        "verify": ("version", "public_key", "replay"),
        "replay": ("version",),
        "purge": ("request",),
    }

    tracking: Registry = Registry()
    version: Version | None = Field(
        None, description="absent: candidate for show and promote, champion for verify"
    )
    override: str | None = Field(
        None,
        min_length=10,
        description=(
            "promote although the gate did not pass, or promote or roll back to a version that honours fewer"
            " requests: the reason, which is recorded"
        ),
    )
    key: str | None = Field(
        None, description="Ed25519 private key (PEM file) that signs the certificate of a promoted version"
    )
    audit_days: int = Field(
        90, ge=1, description="days until a promoted version is to be measured again; in its certificate"
    )
    request: Annotated[str, BeforeValidator(str)] | None = Field(
        None, description="purge: the id of the request whose data goes"
    )
    public_key: str | None = Field(
        None, description="Ed25519 public key (PEM file) that verify holds the signature against"
    )
    replay: bool = Field(False, description="verify: run the request again as well, and compare the weights")
