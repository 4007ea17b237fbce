"""A result.json and a folder of weights for the tests of registry and report."""

from pathlib import Path
from typing import Any


def result_json(run_id: str, digest: str, *, passed: bool = True, value: float = 0.004) -> dict[str, Any]:
    """What a run leaves, as far as the registry and the report look at it."""
    share = {"value": value, "n": 500, "low": 0.001, "high": 0.014}
    measured = {
        "forget_fraction": share,
        "exchange_fraction": share,
        "retain_accuracy": {
            "mean": 0.984,
            "min": 0.95,
            "neighbours": None,
            "per_class": {"0": 0.99, "7": 0.95},
        },
        "fid": {"judge": 3.2},
    }
    return {
        "run_id": run_id,
        "request": {
            "id": "r-1",
            "classes": [1],
            "exchange": {"1": 7},
            "sample_ids": None,
            "retain": "all",
            "reason": "consent withdrawn",
        },
        "method": "uno_s",
        "method_config": {"penalty": 0.01},
        "model": {"name": "m", "version": 1, "alias": "candidate"},
        "base_digest": "a" * 64,
        "weights_digest": digest,
        "lake_digest": "b" * 64,
        "partition_digest": "c" * 64,
        "code_version": "0.1.0",
        "seed": 0,
        "world_size": 2,
        "steps": 40,
        "first_crossing_step": 18,
        "settled_step": 22,
        "before": measured | {"forget_fraction": share | {"value": 0.99}},
        "after": measured,
        "gate": {
            "passed": passed,
            "checks": [{"name": "forget_fraction", "value": value, "bound": 0.05, "passed": passed}],
        },
        "timing": {
            "seconds_to_first_batch": 4.2,
            "seconds_per_step": 0.18,
            "seconds_to_forget": 5.9,
            "gpu_seconds": None,
            "total_seconds": 83.0,
        },
    }


def write_model(folder: str, *, seed: int) -> str:
    """A DiT-tiny with random weights that samples something, written to the URI `folder`; the digest of its
    weights."""
    import torch

    from models import generative
    from pipeline.weights import model_folder

    config = generative.dit_description(
        "DiT-tiny", shape=(1, 8, 8), num_classes=10, class_names=[str(label) for label in range(10)]
    )
    torch.manual_seed(seed)
    net = generative.build(config).net
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model_folder.write(folder, config, net.state_dict(), {})


def make_keys(folder: Path, name: str) -> tuple[str, str]:
    """Paths of an Ed25519 private key and of its public one."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import (
        Encoding,
        NoEncryption,
        PrivateFormat,
        PublicFormat,
    )

    key = Ed25519PrivateKey.generate()
    private, public = folder / f"{name}.pem", folder / f"{name}.pub"
    private.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    public.write_bytes(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    return str(private), str(public)
