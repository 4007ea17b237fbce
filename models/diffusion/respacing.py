"""Which of T timesteps a sampler visits: ascending lists."""

import torch


def timesteps(total: int, count: int, respacing: str) -> list[int]:
    """`count` of `total` timesteps, ascending.

    `even`: rounded equal strides in single precision, as this project's DDIM always took them. `published`:
    those of "count" in the published DiT and ADM code (improved-diffusion's space_timesteps), which differ
    from the former by one at ties. `ddim`: integer strides from 0, "ddimN" there.
    """
    if not 1 <= count <= total:
        raise ValueError(f"sampler.steps: got {count}, expected 1 to {total}, the model's timesteps")
    if respacing == "even":
        return torch.linspace(total - 1, 0, count).round().long().tolist()[::-1]
    if respacing == "published":
        stride, at, kept = (total - 1) / (count - 1) if count > 1 else 1.0, 0.0, []
        for _ in range(count):
            kept.append(round(at))
            at += stride
        return kept
    if respacing == "ddim":
        for stride in range(1, total + 1):
            if len(range(0, total, stride)) == count:
                return list(range(0, total, stride))
        raise ValueError(f"sampler.steps: no integer stride takes {count} of {total} timesteps")
    raise ValueError(f"sampler.respacing: got {respacing!r}, expected even, published or ddim")
