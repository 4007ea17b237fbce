"""The published CelebA VAE through the whole path on made faces in CelebA's own layout: 64x64, an attribute,
unconditional.

The weights are hardly trained: what is tested is the flow, at the real size of 8.7 million parameters.
"""

import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

COLUMNS = """
5_o_Clock_Shadow Arched_Eyebrows Attractive Bags_Under_Eyes Bald Bangs Big_Lips Big_Nose Black_Hair
Blond_Hair Blurry Brown_Hair Bushy_Eyebrows Chubby Double_Chin Eyeglasses Goatee Gray_Hair
Heavy_Makeup High_Cheekbones Male Mouth_Slightly_Open Mustache Narrow_Eyes No_Beard Oval_Face
Pale_Skin Pointy_Nose Receding_Hairline Rosy_Cheeks Sideburns Smiling Straight_Hair Wavy_Hair
Wearing_Earrings Wearing_Hat Wearing_Lipstick Wearing_Necklace Wearing_Necktie Young"""
COUNT, HELD_OUT = 64, 16
UNLEARN = [
    "optim.batch_size=8",
    "optim.max_steps=2",
    "optim.moment_warmup_steps=1",
    "method.uniformity_weight=1",
    "partition.lanes=4",
    "partition.segment_steps=2",
    "train.cpus_per_worker=0.4",
    "evaluate.every=1",
    "evaluate.samples=40",
    "evaluate.final_samples=100",
    "evaluate.batch=20",
]

pytestmark = [pytest.mark.e2e, pytest.mark.ray]


def face(number: int, male: bool) -> bytes:
    """178 x 218 pixels as JPEG: a head on a ground, darker and lower where the attribute is set."""
    g = np.random.default_rng(number)
    y, x = np.mgrid[:218, :178]
    head = ((x - 89 - g.integers(-8, 8)) / 50) ** 2 + ((y - (130 if male else 95)) / 65) ** 2 < 1
    pixels = np.where(head[..., None], (120, 90, 70) if male else (235, 200, 180), g.integers(0, 255, 3))
    out = io.BytesIO()
    Image.fromarray((pixels + g.integers(-10, 10, pixels.shape)).clip(0, 255).astype(np.uint8)).save(
        out, "JPEG"
    )
    return out.getvalue()


def made(root: Path) -> str:
    """CelebA as it is downloaded: the zip of aligned images, the attributes and the partition beside it."""
    attributes = COLUMNS.split()
    names = [f"{number:06d}.jpg" for number in range(1, COUNT + 1)]
    male = {name: number % 3 == 0 for number, name in enumerate(names)}
    with zipfile.ZipFile(root / "img_align_celeba.zip", "w") as archive:
        for number, name in enumerate(names):
            archive.writestr(f"img_align_celeba/{name}", face(number, male[name]))
    rows = [
        f"{name} " + " ".join(f"{1 if a == 'Male' and male[name] else -1:2d}" for a in attributes)
        for name in names
    ]
    (root / "list_attr_celeba.txt").write_text(
        "\n".join([str(COUNT), " ".join(attributes) + " ", *rows]) + "\n"
    )
    parts = (f"{name} {0 if number < COUNT - HELD_OUT else 2}" for number, name in enumerate(names))
    (root / "list_eval_partition.txt").write_text("\n".join(parts) + "\n")
    return str(root)


def test_celeba_from_the_zip_to_a_registered_version(tmp_path: Path, here: Callable[..., Any]) -> None:
    (tmp_path / "raw").mkdir()
    root, raw = str(tmp_path / "storage"), made(tmp_path / "raw")

    prepared = here("prepare_data", "prepare_celeba", f"storage={root}", f"source.uri={raw}")
    assert prepared.code == 0, prepared.err
    lake = json.loads((tmp_path / "storage" / "lakes" / "celeba" / "manifest.json").read_text())
    assert lake["shape"] == [64, 64, 3] and [c["name"] for c in lake["classes"]] == ["not Male", "Male"]

    small = [
        "optim.max_steps=12",
        "optim.batch_size=16",
        "judge.max_steps=30",
        "judge.batch_size=16",
        "evaluate.retain_samples=20",
    ]
    second = "uniformity_judge={net: mlp, max_steps: 5}"
    trained = here("pretrain", "pretrain_celeba_vae", f"storage={root}", *small, second)
    assert trained.code == 0, trained.err
    assert "vae-celeba, 8,742,659 parameters: 40 sampled images judged 0: " in trained.out

    done = here("unlearn_imagenet", "celeba_vae", f"storage={root}", "run_id=faces", *UNLEARN)
    assert done.code == 0, done.err
    assert "registered vae-celeba-unlearned version 1 @candidate" in done.out
    run = tmp_path / "storage" / "runs" / "faces"
    result = json.loads((run / "result.json").read_text())
    for moment in ("before", "after"):
        shares = result[moment]["class_shares"]
        assert (
            shares["n"] == 100
            and shares["chance"] == 0.5
            and sum(shares["per_class"].values()) == pytest.approx(1)
        )
        assert result[moment]["forget_fraction"]["value"] == shares["per_class"]["1"]
    assert result["steps"] == 2 and result["method_config"]["latent_reflection"] is True
    checked = {check["name"] for check in result["gate"]["checks"]}
    assert checked >= {"forget_fraction", "settled", "class_share_drift"}
    assert "judge_trained_against" not in checked, "the hat term had a judge of its own"
    assert result["before"]["fid"]["judge"] != result["after"]["fid"]["judge"], "the decoder moved"
    page = (run / "report.html").read_text()
    assert "not Male" in page and "Shares of all images" in page

    other = here(
        "unlearn_imagenet", "celeba_vae", f"storage={root}", f"model.weights={root}/models/judge-celeba"
    )
    assert other.code == 2 and len(other.err.strip().splitlines()) == 1
    assert f"model.weights: {root}/models/judge-celeba holds a judge (small_cnn)" in other.err
