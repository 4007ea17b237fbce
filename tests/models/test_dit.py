"""DiT against the published names, counts and formulas, written out here a second time and naively."""

import math

import numpy as np
import pytest
import torch
from tiny import SIDE, tiny_dit

from models.dit import SIZES, DiT, dit_config, sincos_position
from models.generative import build, dit_description
from pipeline.unlearning.parameters import select


def published_names(
    width: int, depth: int, patch: int, channels: int, classes: int, tokens: int, out: int
) -> dict[str, tuple[int, ...]]:
    """Names and shapes of facebookresearch/DiT's state dict."""
    names: dict[str, tuple[int, ...]] = {
        "pos_embed": (1, tokens, width),
        "x_embedder.proj.weight": (width, channels, patch, patch),
        "x_embedder.proj.bias": (width,),
        "t_embedder.mlp.0.weight": (width, 256),
        "t_embedder.mlp.0.bias": (width,),
        "t_embedder.mlp.2.weight": (width, width),
        "t_embedder.mlp.2.bias": (width,),
        "y_embedder.embedding_table.weight": (classes + 1, width),
        "final_layer.linear.weight": (patch * patch * out, width),
        "final_layer.linear.bias": (patch * patch * out,),
        "final_layer.adaLN_modulation.1.weight": (2 * width, width),
        "final_layer.adaLN_modulation.1.bias": (2 * width,),
    }
    for index in range(depth):
        block = f"blocks.{index}"
        names |= {
            f"{block}.attn.qkv.weight": (3 * width, width),
            f"{block}.attn.qkv.bias": (3 * width,),
            f"{block}.attn.proj.weight": (width, width),
            f"{block}.attn.proj.bias": (width,),
            f"{block}.mlp.fc1.weight": (4 * width, width),
            f"{block}.mlp.fc1.bias": (4 * width,),
            f"{block}.mlp.fc2.weight": (width, 4 * width),
            f"{block}.mlp.fc2.bias": (width,),
            f"{block}.adaLN_modulation.1.weight": (6 * width, width),
            f"{block}.adaLN_modulation.1.bias": (6 * width,),
        }
    return names


def test_state_dict_has_the_published_names_and_shapes() -> None:
    with torch.device("meta"):
        net = DiT(dit_config("DiT-XL/2"))
    wanted = published_names(1152, 28, 2, 4, 1000, 256, 8)
    assert {name: tuple(tensor.shape) for name, tensor in net.state_dict().items()} == wanted
    assert len(wanted) == 292


@pytest.mark.parametrize(
    ("size", "parameters"),
    # the published training script counts 675,129,632 for DiT-XL/2; the paper's table 1 gives 33, 130, 458
    # and 675 million
    [("DiT-XL/2", 675_129_632), ("DiT-L/2", 458e6), ("DiT-B/2", 130e6), ("DiT-S/2", 33e6)],
)
def test_parameter_counts_are_the_published_ones(size: str, parameters: float) -> None:
    with torch.device("meta"):
        net = DiT(dit_config(size))
    count = sum(p.numel() for p in net.parameters())
    assert count == parameters if isinstance(parameters, int) else abs(count / parameters - 1) < 0.006


def test_labels_and_the_last_four_adaln_of_xl_are_33_million() -> None:
    model = build(
        dit_description(
            "DiT-XL/2", shape=(4, 32, 32), num_classes=1000, class_names=[""] * 1000, latent=True
        ),
        device="meta",
    )
    chosen = sum(p.numel() for p in select(model, "labels_and_adaln:4").values())
    assert chosen == 1001 * 1152 + 4 * (6 * 1152 * 1152 + 6 * 1152)
    assert round(chosen / 1e6, 1) == 33.0


@pytest.mark.parametrize("grid", [2, 4])
def test_fixed_positions_are_sines_and_cosines_of_column_then_row(grid: int) -> None:
    width = 16
    table = sincos_position(width, grid)[0]
    for row in range(grid):
        for column in range(grid):
            wanted = []
            for coordinate in (column, row):
                angles = [coordinate / 10000 ** (i / (width / 4)) for i in range(width // 4)]
                wanted += [math.sin(a) for a in angles] + [math.cos(a) for a in angles]
            np.testing.assert_allclose(table[row * grid + column].numpy(), wanted, atol=1e-6)


def test_null_label_is_the_last_row_of_the_table() -> None:
    model = tiny_dit()
    table = model.net.get_parameter("y_embedder.embedding_table.weight")
    assert model.null_label == model.num_classes == len(table) - 1
    assert torch.equal(model.label_table(), table[:-1])
    x, t = torch.ones(1, 1, SIDE, SIDE, dtype=torch.float64), torch.tensor([5])
    before = {label: model.net(x, t, torch.tensor([label])) for label in (0, model.null_label)}
    with torch.no_grad():
        table[-1] += 1
    assert not torch.equal(model.net(x, t, torch.tensor([model.null_label])), before[model.null_label])
    assert torch.equal(model.net(x, t, torch.tensor([0])), before[0])


def test_initial_model_predicts_zero_and_is_a_function_of_its_seed() -> None:
    nets = [DiT(dit_config("DiT-tiny")) for _ in range(2)]
    for net in nets:
        net.initialise(torch.Generator().manual_seed(3))
    x = torch.ones(2, 1, 8, 8)
    assert nets[0](x, torch.tensor([0, 999]), torch.tensor([0, 10])).abs().max() == 0  # adaLN-Zero
    assert all(torch.equal(a, b) for a, b in zip(nets[0].parameters(), nets[1].parameters(), strict=True))


@pytest.mark.parametrize("learn_sigma", [False, True])
def test_forward_equals_a_naive_transcription(learn_sigma: bool) -> None:
    model = tiny_dit(learn_sigma=learn_sigma, seed=4)
    x = torch.randn(3, 1, SIDE, SIDE, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    t, y = [0, 1, 3], [0, 2, model.null_label]
    got = model.net(x, torch.tensor(t), torch.tensor(y)).detach().numpy()
    weights = {name: tensor.detach().numpy() for name, tensor in model.net.state_dict().items()}
    wanted = np.stack(
        [naive_dit(weights, x[i].numpy(), t[i], y[i], patch=2, depth=2, heads=2) for i in range(3)]
    )
    assert got.shape == (3, 2 if learn_sigma else 1, SIDE, SIDE)
    np.testing.assert_allclose(got, wanted, atol=1e-5)  # the time angles are float32


def test_sizes_and_image_sizes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match=r"DiT-XXL.*expected one of DiT-tiny"):
        dit_config("DiT-XXL")
    with pytest.raises(ValueError, match="patches of 4"):
        dit_config("DiT-mini", input_size=30)
    assert {f"DiT-{name}/{patch}" for name in ("S", "B", "L", "XL") for patch in (2, 4, 8)} < SIZES.keys()


def naive_dit(
    w: dict[str, np.ndarray], x: np.ndarray, t: int, y: int, *, patch: int, depth: int, heads: int
) -> np.ndarray:
    """One image through a DiT, patch by patch and head by head."""
    side = x.shape[1]
    grid = side // patch

    def linear(name: str, v: np.ndarray) -> np.ndarray:
        return v @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    def silu(v: np.ndarray) -> np.ndarray:
        return v / (1 + np.exp(-v))

    def norm(v: np.ndarray) -> np.ndarray:
        return (v - v.mean(-1, keepdims=True)) / np.sqrt(v.var(-1, keepdims=True) + 1e-6)

    def gelu(v: np.ndarray) -> np.ndarray:
        return 0.5 * v * (1 + np.tanh(math.sqrt(2 / math.pi) * (v + 0.044715 * v**3)))

    tokens = []
    for i in range(grid):
        for j in range(grid):
            cut = x[:, i * patch : (i + 1) * patch, j * patch : (j + 1) * patch]
            tokens.append(
                np.einsum("dcpq,cpq->d", w["x_embedder.proj.weight"], cut) + w["x_embedder.proj.bias"]
            )
    h = np.stack(tokens) + w["pos_embed"][0]
    rates = [math.exp(-math.log(10000) * k / 128) for k in range(128)]
    wave = np.array([math.cos(t * r) for r in rates] + [math.sin(t * r) for r in rates])
    c = (
        linear("t_embedder.mlp.2", silu(linear("t_embedder.mlp.0", wave)))
        + w["y_embedder.embedding_table.weight"][y]
    )

    width = len(c)
    for index in range(depth):
        block = f"blocks.{index}"
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = np.split(
            linear(f"{block}.adaLN_modulation.1", silu(c)), 6
        )
        qkv = linear(f"{block}.attn.qkv", norm(h) * (1 + scale_a) + shift_a)
        outputs = []
        for head in range(heads):
            d = width // heads
            q, k, v = (qkv[:, part * width + head * d : part * width + (head + 1) * d] for part in range(3))
            score = np.exp(q @ k.T / math.sqrt(d))
            outputs.append(score / score.sum(1, keepdims=True) @ v)
        h = h + gate_a * linear(f"{block}.attn.proj", np.concatenate(outputs, axis=1))
        h = h + gate_m * linear(
            f"{block}.mlp.fc2", gelu(linear(f"{block}.mlp.fc1", norm(h) * (1 + scale_m) + shift_m))
        )

    shift, scale = np.split(linear("final_layer.adaLN_modulation.1", silu(c)), 2)
    out = linear("final_layer.linear", norm(h) * (1 + scale) + shift)
    image = np.zeros((out.shape[1] // patch**2, side, side))
    for i in range(grid):
        for j in range(grid):
            # the published order: pixel row, pixel column, channel
            cell = out[i * grid + j].reshape(patch, patch, -1)
            image[:, i * patch : (i + 1) * patch, j * patch : (j + 1) * patch] = cell.transpose(2, 0, 1)
    return image
