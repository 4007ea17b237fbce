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
        "rollback": ("override", "key"),
        "history": ("key", "public_key"),
        "sign": ("key",),
        "verify": ("version", "key", "public_key", "replay", "allow_missing"),
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
        None,
        description=(
            "Ed25519 private key (PEM file) that signs the certificate of a promoted version and the entries"
            " of the log that move champion; with it a log that it does not vouch for is refused"
        ),
    )
    audit_days: int = Field(
        90, ge=1, description="days until a promoted version is to be measured again; in its certificate"
    )
    request: Annotated[str, BeforeValidator(str)] | None = Field(
        None, description="purge: the id of the request whose data goes"
    )
    public_key: str | None = Field(
        None, description="Ed25519 public key (PEM file) that the signatures of certificate and log must bear"
    )
    allow_missing: bool = Field(
        False, description="verify: accept what is not there, or was not recorded, to be checked"
    )
    replay: bool = Field(False, description="verify: run the request again as well, and compare the weights")
