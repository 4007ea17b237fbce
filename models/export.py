"""A DiT as a folder that `diffusers.DiTPipeline.from_pretrained` runs, beside this project's own description
of it.

The model is one of latents: the pipeline wants an autoencoder. Two things diffusers' files cannot hold, and
`load_pipeline` sets: timestep frequencies (10000^(-k / 127) in its code, 10000^(-k / 128) in the published
model), and DDIM over rounded equal strides from the last timestep to 0. Its DDIM goes in strides of
T // steps from the last one ("trailing"), which is what the folder asks for.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from models.diffusers_names import to_diffusers, transformer_config
from models.diffusion.respacing import timesteps
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

    `autoencoder` holds the weights of the one that `description` names.
    Raises `WeightsError` for a model that the pipeline cannot run, `ImportError` without diffusers.
    """
    if description.get("family") != "dit":
        raise WeightsError(
            f"got a model of family {description.get('family')!r}, expected a DiT: only they make a"
            " DiTPipeline"
        )
    if autoencoder is None:
        raise WeightsError(
            "got a model of pixels, expected one of latents with its autoencoder, which a DiTPipeline needs;"
            " export it as a state dict: --set format=safetensors"
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
    vae = build_autoencoder(description["autoencoder"], autoencoder)
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
        folder, local_files_only=True, low_cpu_mem_usage=False, trust_remote_code=False
    )
    own = Path(folder) / DESCRIPTION
    shift = 0
    if own.is_file():
        description = json.loads(own.read_text())
        shift = dit_config(description["size"], **description.get("architecture", {})).frequency_shift
    for block in pipeline.transformer.transformer_blocks:
        block.norm1.emb.time_proj.downscale_freq_shift = shift
    pipeline.register_modules(scheduler=_even_scheduler(pipeline.scheduler))
    return pipeline


def _even_scheduler(scheduler: Any) -> Any:
    """A DDIMScheduler that visits the timesteps of this project's DDIM, and steps from each to the next."""
    diffusers = _diffusers()

    class EvenDDIMScheduler(diffusers.DDIMScheduler):  # type: ignore[name-defined]
        def set_timesteps(self, num_inference_steps: int, device: Any = None) -> None:
            super().set_timesteps(num_inference_steps, device)
            visited = timesteps(self.config.num_train_timesteps, num_inference_steps, "even")
            self.following = dict(zip(visited[1:], visited, strict=False))
            self.timesteps = torch.tensor(visited[::-1], device=device)

        def step(self, model_output: Tensor, timestep: Any, sample: Tensor, **_: Any) -> Any:
            abar = self.alphas_cumprod[int(timestep)]
            after = self.following.get(int(timestep))
            x0 = (sample - (1 - abar).sqrt() * model_output) / abar.sqrt()
            if self.config.clip_sample:
                x0 = x0.clamp(-1, 1)
                model_output = (sample - abar.sqrt() * x0) / (1 - abar).sqrt()
            then = self.alphas_cumprod[after] if after is not None else torch.tensor(1.0)
            moved = then.sqrt() * x0 + (1 - then).sqrt() * model_output
            return diffusers.schedulers.scheduling_ddim.DDIMSchedulerOutput(moved)

    settings = {key: value for key, value in scheduler.config.items() if not key.startswith("_")}
    return EvenDDIMScheduler(**settings)


def _diffusers() -> Any:
    try:
        import diffusers
    except ImportError as error:
        raise ImportError(
            "diffusers is missing, the export needs it: pip install -e '.[diffusers]' in the checkout"
        ) from error
    return diffusers
