"""What the main job starts from is held against the lake and the device, in one line where
it does not fit."""

from pathlib import Path
from typing import Any

import pytest

from pipeline.config import UnlearnConfig, parse
from pipeline.data.lake import Class, Encoding, Lake, Manifest
from pipeline.data.parquet_shards import Statistics
from pipeline.errors import InputError
from pipeline.runs import run_weights
from pipeline.runs.final_evaluation import require_unaware
from pipeline.weights import decoder, model_folder

NAMES = ["golden_retriever", "Labrador_retriever", "tench", "goldfish"]


def latent_lake(
    shape: tuple[int, ...] = (4, 4, 4), scale: float = 0.18215, statistics: Statistics | None = None
) -> Lake:
    return Lake(
        uri="memory://lake",
        manifest=Manifest(
            name="latents",
            schema_version=1,
            kind="latent",
            shape=list(shape),
            classes=[
                Class(label=label, name=name, train_rows=1, heldout_rows=0)
                for label, name in enumerate(NAMES)
            ],
            shards=[],
            source={},
            preprocessing={"size": 32},
            encoder=Encoding(kind="autoencoder_kl", scale=scale, statistics=statistics),
        ),
    )


def described(blocks: int = 4, scale: float = 0.18215) -> dict[str, Any]:
    config = {"block_out_channels": [8] * blocks, "latent_channels": 4, "out_channels": 3}
    return {"autoencoder": {"config": config, "scale": scale}}


def stored(config: dict[str, Any], autoencoder: Any = None) -> model_folder.Stored:
    return model_folder.Stored(
        uri="u", config=config, state={}, digest="d", manifest={}, autoencoder=autoencoder
    )


def test_a_decoder_has_to_fit_the_lake() -> None:
    run_weights.require_decoder(described(), latent_lake())
    with pytest.raises(
        InputError, match=r"its latents of 32 pixels are \(4, 8, 8\), but lake 'latents' holds \(4, 4, 4\)"
    ):
        run_weights.require_decoder(described(blocks=3), latent_lake())
    with pytest.raises(InputError, match=r"its scale is 0\.13025, the lake was made with 0\.18215"):
        run_weights.require_decoder(described(scale=0.13025), latent_lake())
    assert decoder.image_shape(stored(described(), autoencoder={}), (4, 4, 4)) == (32, 32, 3)
    assert decoder.image_shape(stored({}), (1, 8, 8)) == (8, 8, 1)


def test_a_lake_is_normalised_as_the_model_was() -> None:
    own = Statistics(mean=[0.0] * 4, std=[1.0] * 4)
    other = Statistics(mean=[0.5] * 4, std=[1.0] * 4)
    model = {"family": "lightningdit", "size": "LightningDiT-XL/1"}
    recorded = model | {"autoencoder": run_weights.in_units_of(latent_lake(statistics=own), {"scale": 0.5})}
    assert recorded["autoencoder"] == {"scale": 0.18215, "statistics": own.model_dump()}
    for config in (model, recorded):
        run_weights.require_statistics(config, latent_lake(statistics=own))
        with pytest.raises(
            InputError, match="'latents' has no latent statistics, which a LightningDiT-XL/1 was"
        ):
            run_weights.require_statistics(config, latent_lake())
    with pytest.raises(InputError, match="normalised by other statistics than the model's"):
        run_weights.require_statistics(recorded, latent_lake(statistics=other))
    for family in ("dit", "sit"):
        scaled = {"family": family, "size": "x", "autoencoder": {"scale": 0.18215}}
        run_weights.require_statistics(scaled, latent_lake())
        with pytest.raises(InputError, match="normalised by other statistics than the model's"):
            run_weights.require_statistics(scaled, latent_lake(statistics=own))


@pytest.mark.parametrize(
    ("names", "fits"),
    [
        (["golden retriever", "Labrador retriever, Lab", "tench, Tinca tinca", "goldfish"], True),
        ([f"LABEL_{label}" for label in range(4)], True),
        (["tench, Tinca tinca", "goldfish", "golden retriever", "Labrador retriever"], False),
    ],
)
def test_a_judge_with_its_classes_in_another_order_is_refused(names: list[str], fits: bool) -> None:
    judge = stored({"family": "transformers", "class_names": names})
    if fits:
        run_weights.require_same_names(latent_lake(), judge)
    else:
        with pytest.raises(
            InputError,
            match=r"its class 0 is 'tench, Tinca tinca', the lake's is 'golden_retriever', and 3 more differ",
        ):
            run_weights.require_same_names(latent_lake(), judge)


def test_what_will_run_is_what_fits() -> None:
    from models.generative import dit_description

    values = {"model": {"size": "DiT-nano"}, "trainable": "labels_and_adaln:1", "optim": {"batch_size": 8}}
    config = parse(UnlearnConfig, {**values, "train": {"workers": 1, "memory_gib": 80.0}})
    base = stored(
        dit_description("DiT-nano", shape=(4, 4, 4), num_classes=1000, class_names=NAMES * 250, latent=True)
    )
    choice = run_weights.choose(config, base)
    assert choice is not None and run_weights.fitted(config, choice) == config
    small = parse(
        UnlearnConfig,
        {**values, "method": {"hvp": "fd_central"}, "train": {"workers": 1, "memory_gib": 1e-6}},
    )
    with pytest.raises(InputError, match=r"train\.memory_gib: fd_central needs .*lower optim\.micro_batch"):
        run_weights.choose(small, base)
    given = choice._replace(hvp="recompute", micro_batch=4)
    assert (
        run_weights.fitted(config, given).method.hvp == "recompute"
        and run_weights.fitted(config, given).optim.micro_batch == 4
    )
    assert run_weights.choose(parse(UnlearnConfig, values), base) is None


def test_differences_are_not_taken_in_tf32() -> None:
    with pytest.raises(
        InputError, match=r"train\.tf32: its rounding drowns the differences of method\.hvp fd_central"
    ):
        parse(UnlearnConfig, {"train": {"tf32": True}, "method": {"hvp": "fd_central"}})


def test_a_reference_that_saw_the_class_is_refused(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text('{"made_with": {"without": [3]}}')
    require_unaware(str(tmp_path), [3], "evaluate.reference", "/s", "digits")
    with pytest.raises(InputError, match="was trained on class 1, which a reference must not have seen"):
        require_unaware(str(tmp_path), [3, 1], "evaluate.reference", "/s", "digits")
