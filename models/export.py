"""A DiT as a folder that `diffusers.DiTPipeline.from_pretrained` runs, beside this project's own description
of it.

A latent model brings its autoencoder. A pixel model gets one that hands pixels through (to about 1e-5), since
the pipeline wants one. The pipeline's timestep frequencies are 10000^(-k / 127), the published model's
10000^(-k / 128): `load_pipeline` sets what the model needs.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from models.diffusers_names import to_diffusers, transformer_config
from models.dit import DiTConfig, dit_config, sincos_position
from models.latents import build_autoencoder
from models.weights import WeightsError

DESCRIPTION, POSITIONS, INDEX = "config.json", "positions.safetensors", "model_index.json"
SCHEDULES = {"linear": "linear", "cosine": "squaredcos_cap_v2"}


def write_pipeline(
    folder: Path,
    description: Mapping[str, Any],
    state: Mapping[str, Tensor],
    autoencoder: Mapping[str, Tensor] | None,
) -> None:
    """Write the DiTPipeline folder (transformer, vae, scheduler, model_index.json with the class names) and
    `config.json`.

    `autoencoder` holds the weights of the one that `description` names; None for a model of pixels.
    Raises `WeightsError` for a model that the pipeline cannot run, `ImportError` without diffusers.
    """
    if description.get("family") != "dit":
        raise WeightsError(
            f"got a model of family {description.get('family')!r}, expected a DiT: only they make a"
            " DiTPipeline"
        )
    config = dit_config(description["size"], **description.get("architecture", {}))
    arguments = transformer_config(config)
    diffusers = _diffusers()
    transformer = diffusers.DiTTransformer2DModel(**arguments).eval()
    transformer.load_state_dict(to_diffusers(state, config))
    scheduler = diffusers.DDIMScheduler(
        num_train_timesteps=int(description["timesteps"]),
        beta_start=1e-4,
        beta_end=0.02,
        beta_schedule=SCHEDULES[description["schedule"]],
        clip_sample=bool(description["clip_samples"]),
        timestep_spacing="trailing",
    )
    if autoencoder is not None:
        vae = build_autoencoder(description["autoencoder"], autoencoder)
    else:
        vae = pixel_autoencoder(config.channels, config.input_size)
    diffusers.DiTPipeline(transformer=transformer, vae=vae, scheduler=scheduler).save_pretrained(
        folder, safe_serialization=True
    )
    index = json.loads((folder / INDEX).read_text())
    index["id2label"] = {str(label): name for label, name in enumerate(description["class_names"])}
    (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n")
    # another computer's last bit: kept, to come back the same
    if not torch.equal(state["pos_embed"].cpu(), computed_positions(config)):
        safetensors.torch.save_file(
            {"pos_embed": state["pos_embed"].detach().cpu().contiguous()}, folder / POSITIONS
        )
    (folder / DESCRIPTION).write_text(json.dumps(dict(description), indent=2) + "\n")


def computed_positions(config: DiTConfig) -> Tensor:
    return sincos_position(config.width, config.input_size // config.patch)


def load_pipeline(folder: str) -> Any:
    """The DiTPipeline in `folder`, with the timestep frequencies of the model that was exported."""
    pipeline = _diffusers().DiTPipeline.from_pretrained(
        folder, local_files_only=True, low_cpu_mem_usage=False
    )
    own = Path(folder) / DESCRIPTION
    shift = 0
    if own.is_file():
        description = json.loads(own.read_text())
        shift = dit_config(description["size"], **description.get("architecture", {})).frequency_shift
    for block in pipeline.transformer.transformer_blocks:
        block.norm1.emb.time_proj.downscale_freq_shift = shift
    return pipeline


@torch.no_grad()
def pixel_autoencoder(channels: int, size: int) -> Any:
    """An AutoencoderKL that decodes x to x: each colour c goes through its normalisation group as (d c, -d c,
    1, -1).

    The group's mean is 0 and its deviation sqrt((1 + d^2 c^2) / 2), and silu(a) - silu(-a) = a: the last
    layer scales it back.
    """
    d = 3e-3
    vae = (
        _diffusers()
        .AutoencoderKL(
            in_channels=channels,
            out_channels=channels,
            down_block_types=("DownEncoderBlock2D",),
            up_block_types=("UpDecoderBlock2D",),
            block_out_channels=(4 * channels,),
            layers_per_block=1,
            latent_channels=channels,
            norm_num_groups=channels,
            sample_size=size,
            scaling_factor=1.0,
            use_quant_conv=False,
            use_post_quant_conv=False,
            mid_block_add_attention=False,
        )
        .eval()
    )
    for name, parameter in vae.named_parameters():
        # residual branches add nothing
        parameter.fill_(1.0 if "norm" in name and name.endswith("weight") else 0.0)
    for half in (vae.encoder, vae.decoder):
        for colour in range(channels):
            first = 4 * colour
            half.conv_in.weight[first, colour, 1, 1], half.conv_in.weight[first + 1, colour, 1, 1] = d, -d
            half.conv_in.bias[first + 2], half.conv_in.bias[first + 3] = 1.0, -1.0
            gain = 0.5**0.5 / d
            half.conv_out.weight[colour, first, 1, 1], half.conv_out.weight[colour, first + 1, 1, 1] = (
                gain,
                -gain,
            )
    vae.encoder.conv_out.bias[channels:] = -30.0  # log variance: the posterior is its mean
    return vae


def _diffusers() -> Any:
    try:
        import diffusers
    except ImportError as error:
        raise ImportError(
            "diffusers is missing, the export needs it: pip install -e '.[diffusers]' in the checkout"
        ) from error
    return diffusers
