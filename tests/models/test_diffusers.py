"""Our DiT beside diffusers' own implementation of the architecture; folders that its pipeline runs; round
trips to the bit."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from models import export, weights
from models.diffusers_names import from_diffusers, to_diffusers, transformer_config
from models.diffusion import SamplerSettings, gaussian
from models.dit import DiT, DiTConfig, dit_config
from models.generative import dit_description
from models.weights import WeightsError
from pipeline.errors import InputError
from pipeline.weights import model_folder

diffusers = pytest.importorskip("diffusers")


def random_dit(config: DiTConfig, seed: int = 0) -> DiT:
    """Published initialisation plus noise everywhere, so that no branch is closed."""
    net = DiT(config)
    generator = torch.Generator().manual_seed(seed)
    net.initialise(generator)
    with torch.no_grad():
        for parameter in net.parameters():
            if parameter.requires_grad:
                parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator))
    return net.eval()


def tiny_autoencoder(latent_channels: int = 4, blocks: int = 2) -> Any:
    torch.manual_seed(0)
    return diffusers.AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * blocks,
        up_block_types=("UpDecoderBlock2D",) * blocks,
        block_out_channels=(8,) * blocks,
        norm_num_groups=4,
        latent_channels=latent_channels,
        sample_size=16,
        scaling_factor=0.18215,
    ).eval()


def nano_description(**more: Any) -> dict[str, Any]:
    names = [f"class {label}" for label in range(1000)]
    return (
        dit_description("DiT-nano", shape=(4, 4, 4), num_classes=1000, class_names=names, latent=True) | more
    )


def same(a: Any, b: Any) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize(
    ("size", "shift"), [("DiT-nano", 0), ("DiT-nano", 1), ("DiT-tiny", 1), ("DiT-S/2", 0)]
)
@torch.no_grad()
def test_parity_with_diffusers(size: str, shift: int) -> None:
    """With and without guidance. At shift 0 their frequencies are set to the published ones: as shipped they
    differ, by the last check."""
    config = dit_config(size, frequency_shift=shift)
    net, g = random_dit(config), torch.Generator().manual_seed(1)
    theirs = diffusers.DiTTransformer2DModel(**transformer_config(replace(config, pos_std=None))).eval()
    theirs.load_state_dict(to_diffusers(net.state_dict(), config))
    if config.pos_std is not None:  # learned positions, which no folder of theirs could hold
        theirs.pos_embed.pos_embed = net.pos_embed.detach()
    x = torch.randn(2, config.channels, config.input_size, config.input_size, generator=g)
    t, y = torch.tensor([37, 801]), torch.tensor([3, config.num_classes - 1])

    def their_net(x: torch.Tensor, t: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return theirs(x, timestep=t, class_labels=torch.where(y == config.num_classes, 1000, y)).sample

    as_shipped = (their_net(x, t, y) - net(x, t, y)).abs().max()
    assert as_shipped < 1e-4 if shift else as_shipped > 1e-4
    for block in theirs.transformer_blocks:
        block.norm1.emb.time_proj.downscale_freq_shift = shift
    ours = net(x, t, y)
    assert ours.abs().mean() > 0.01
    assert (their_net(x, t, y) - ours).abs().max() < 1e-4
    diffusion = gaussian("linear", learn_sigma=config.learn_sigma)
    settings = SamplerSettings(cfg_scale=4.0, steps=2)
    samples = [
        diffusion.sample(one, x, y, settings, null_label=config.num_classes, clip=False)
        for one in (net, their_net)
    ]
    assert (samples[0] - samples[1]).abs().max() < 1e-4


def test_round_trip_through_published_formats_is_exact(tmp_path: Path) -> None:
    """.pt -> ours -> DiTPipeline folder -> ours, kept in our own folder, and the digests say so."""
    config = dit_config("DiT-nano")
    state = random_dit(config).state_dict()
    torch.save(state, tmp_path / "published.pt")
    first = model_folder.read(str(tmp_path / "published.pt"), "model.weights", size="DiT-nano")
    assert (
        first.foreign
        and same(first.state, state)
        and first.config["architecture"]["num_classes"] == config.num_classes
    )
    autoencoder = tiny_autoencoder()
    description = first.config | {"autoencoder": {"config": public(autoencoder), "scale": 0.18215}}
    export.write_pipeline(tmp_path / "pipeline", description, first.state, autoencoder.state_dict())
    second = model_folder.read(str(tmp_path / "pipeline"), "model.weights")
    assert same(second.state, state) and second.digest == first.digest == weights.weights_digest(state)
    # as others publish it: everything from diffusers' own files
    (tmp_path / "pipeline" / "config.json").unlink()
    third = model_folder.read(str(tmp_path / "pipeline"), "model.weights")
    assert same(third.state, state) and third.config["class_names"] == description["class_names"]
    kept = model_folder.kept(second, str(tmp_path / "runs"))
    again = model_folder.read(kept.uri, "model.weights")
    assert same(again.state, state) and not again.foreign
    assert same(again.autoencoder, autoencoder.state_dict())


def test_positions_of_another_computer_come_back_to_the_bit(tmp_path: Path) -> None:
    config = dit_config("DiT-nano")
    state = dict(random_dit(config).state_dict())
    state["pos_embed"] = torch.nextafter(state["pos_embed"], torch.tensor(2.0))
    autoencoder = tiny_autoencoder()
    description = nano_description(autoencoder={"config": public(autoencoder), "scale": 0.18215})
    export.write_pipeline(tmp_path / "pipeline", description, state, autoencoder.state_dict())
    assert same(model_folder.read(str(tmp_path / "pipeline"), "model.weights").state, state)


def public(autoencoder: Any) -> dict[str, Any]:
    return {key: value for key, value in autoencoder.config.items() if not key.startswith("_")}


@torch.no_grad()
def test_the_pipeline_samples_what_the_model_samples(tmp_path: Path) -> None:
    """A latent model: the pipeline's images are those that the model samples itself."""
    net, autoencoder = random_dit(dit_config("DiT-nano")), tiny_autoencoder()
    description = nano_description(autoencoder={"config": public(autoencoder), "scale": 0.18215})
    export.write_pipeline(tmp_path / "p", description, net.state_dict(), autoencoder.state_dict())
    pipeline = export.load_pipeline(str(tmp_path / "p"))
    pipeline.set_progress_bar_config(disable=True)
    assert pipeline.labels["class 207"] == 207
    start = torch.randn(2, 4, 4, 4, generator=torch.Generator().manual_seed(5))
    got = pipeline(
        [207, 208],
        guidance_scale=4.0,
        generator=torch.Generator().manual_seed(5),
        num_inference_steps=5,
        output_type="pt",
    ).images
    x = gaussian("linear", learn_sigma=True).sample(
        net,
        start,
        torch.tensor([207, 208]),
        SamplerSettings(cfg_scale=4.0, steps=5),
        null_label=1000,
        clip=False,
    )
    wanted = (autoencoder.decode(x / 0.18215).sample / 2 + 0.5).clamp(0, 1)
    assert (got - wanted).abs().max() < 1e-3 and wanted.std() > 0.01
    plain = diffusers.DiTPipeline.from_pretrained(tmp_path / "p")
    plain.set_progress_bar_config(disable=True)
    assert len(plain([207], num_inference_steps=2).images) == 1


def test_a_model_of_few_classes_runs_as_a_pipeline(tmp_path: Path) -> None:
    """Its null label is 10, the pipeline's always 1000: the table between them is filled up."""
    net, autoencoder = random_dit(dit_config("DiT-nano", num_classes=10)), tiny_autoencoder()
    names = [str(label) for label in range(10)]
    description = dit_description("DiT-nano", shape=(4, 4, 4), num_classes=10, class_names=names, latent=True)
    description["autoencoder"] = {"config": public(autoencoder), "scale": 0.18215}
    export.write_pipeline(tmp_path / "p", description, net.state_dict(), autoencoder.state_dict())
    pipeline = diffusers.DiTPipeline.from_pretrained(tmp_path / "p")
    pipeline.set_progress_bar_config(disable=True)
    images = pipeline([1, 9], guidance_scale=2.0, num_inference_steps=2, output_type="np").images
    assert images.shape == (2, 8, 8, 3)
    back = model_folder.read(str(tmp_path / "p"), "model.weights")
    assert same(back.state, net.state_dict())
    assert back.config == json.loads(json.dumps(description))  # tuples are lists there


def test_what_the_pipeline_cannot_be_is_refused(tmp_path: Path) -> None:
    learned = dit_description("DiT-tiny", shape=(1, 8, 8), num_classes=10, class_names=["x"] * 10)
    with pytest.raises(WeightsError, match="has learned ones; export it as a state dict"):
        export.write_pipeline(tmp_path / "p", learned, {}, {})
    pixels = dit_description("DiT-small", shape=(3, 32, 32), num_classes=10, class_names=["x"] * 10)
    with pytest.raises(WeightsError, match=r"model of pixels.*export it as a state dict: --set format="):
        export.write_pipeline(tmp_path / "p", pixels, {}, None)
    with pytest.raises(WeightsError, match="expected at most 1000"):
        transformer_config(dit_config("DiT-nano", num_classes=1001))
    with pytest.raises(WeightsError, match="family 'vae'"):
        export.write_pipeline(tmp_path / "p", {"family": "vae"}, {}, None)
    assert list(tmp_path.iterdir()) == []


def test_blocks_that_differ_are_refused() -> None:
    config = dit_config("DiT-nano")
    theirs = to_diffusers(random_dit(config).state_dict(), config)
    table = "transformer_blocks.1.norm1.emb.class_embedder.embedding_table.weight"
    tuned = dict(theirs)
    tuned[table] = theirs[table].clone()
    tuned[table][207, 3] += 1
    with pytest.raises(
        WeightsError,
        match=r"the label tables of blocks 0 and 1 differ \(row 207\); expected one that all blocks share",
    ):
        from_diffusers(tuned, config, "w")
    clock = "transformer_blocks.1.norm1.emb.timestep_embedder.linear_1.bias"
    with pytest.raises(WeightsError, match="the timestep networks of blocks 0 and 1 differ"):
        from_diffusers({**theirs, clock: theirs[clock] + 1}, config, "w")
    with pytest.raises(WeightsError, match=r"w: lacks transformer_blocks.0.attn1.to_k.bias"):
        from_diffusers(
            {name: value for name, value in theirs.items() if not name.endswith("to_k.bias")}, config, "w"
        )
    few = dit_config("DiT-nano", num_classes=10)
    with pytest.raises(WeightsError, match="has 1000 labels of its own, its names 10"):
        from_diffusers(theirs, few, "w")


def test_a_folder_of_another_architecture_is_refused(tmp_path: Path) -> None:
    description = nano_description(autoencoder={"config": public(tiny_autoencoder()), "scale": 0.18215})
    state = random_dit(dit_config("DiT-nano")).state_dict()
    export.write_pipeline(tmp_path / "p", description, state, tiny_autoencoder().state_dict())
    (tmp_path / "p" / "config.json").unlink()
    file = tmp_path / "p" / "transformer" / "config.json"
    good = json.loads(file.read_text())
    for change, message in (
        ({"num_layers": 3}, "no known size has"),
        ({"attention_bias": False}, r"another architecture \(attention_bias False\)"),
        ({"patch_size": None}, "is not a DiT's"),
    ):
        file.write_text(json.dumps(good | change))
        with pytest.raises(InputError, match=message):
            model_folder.read(str(tmp_path / "p"), "model.weights")
