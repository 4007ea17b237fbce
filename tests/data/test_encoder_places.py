"""Where a lake's encoder may lie: a folder, a pipeline folder's `vae`, a Hugging Face repository; the same
latents from each."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from stand_ins import write_autoencoder

from pipeline.config import PrepareConfig, parse
from pipeline.data.vae_encoder import Encoder, plan_encoding
from pipeline.errors import InputError

pytest.importorskip("diffusers")


def config(weights: str) -> PrepareConfig:
    return parse(
        PrepareConfig,
        {
            "source": {"kind": "digits"},
            "encoder": {"kind": "autoencoder_kl", "weights": weights},
            "prepare": {"size": 32},
        },
    )


def test_the_same_latents_from_every_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    write_autoencoder(tmp_path / "pipe" / "vae")
    monkeypatch.setattr(
        huggingface_hub, "snapshot_download", lambda name, **_: str(tmp_path / "pipe" / "vae")
    )
    monkeypatch.chdir(tmp_path)
    plans = [
        plan_encoding(config(text))
        for text in (str(tmp_path / "pipe" / "vae"), str(tmp_path / "pipe"), "stabilityai/sd-vae-ft-mse")
    ]
    assert (
        len({plan.encoding.digest for plan in plans}) == 1
        and plans[2].weights == "hf://stabilityai/sd-vae-ft-mse"
    )
    images = np.random.default_rng(0).integers(0, 255, (2, 32, 32, 3), dtype=np.uint8)
    made = [Encoder(plan).columns(images)["latent_mean"] for plan in plans]
    assert made[0].equals(made[1]) and made[0].equals(made[2])


def test_an_encoder_that_is_not_there_is_said_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    def offline(*_: Any, **__: Any) -> str:
        raise ConnectionError("no network")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    with pytest.raises(
        InputError,
        match=r"encoder\.weights: the Hugging Face repository 'stabilityai/sd-vae-ft-mse' cannot be fetched",
    ):
        plan_encoding(config("stabilityai/sd-vae-ft-mse"))
    with pytest.raises(InputError, match=r"encoder\.weights: .*config\.json is missing"):
        plan_encoding(config(str(tmp_path)))
