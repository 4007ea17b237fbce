"""Published weights: read from paths and URIs, checked, and refused in one line where they are not what they
should be."""

import argparse
import hashlib
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import fsspec
import pytest
import safetensors.torch
import torch

from models.dit import DiT, dit_config
from pipeline import fetching
from pipeline.errors import InputError
from pipeline.weights import import_published, model_folder


@pytest.fixture(scope="module")
def state() -> dict[str, torch.Tensor]:
    net = DiT(dit_config("DiT-nano"))
    net.initialise(torch.Generator().manual_seed(0))
    return dict(net.state_dict())


def saved(path: Path, value: Any) -> str:
    torch.save(value, path)
    return str(path)


def read(uri: str, **options: Any) -> model_folder.Stored:
    return model_folder.read(uri, "model.weights", **({"size": "DiT-nano"} | options))


def test_bare_state_dicts_by_path_and_uri(tmp_path: Path, state: dict[str, torch.Tensor]) -> None:
    safetensors.torch.save_file(state, tmp_path / "w.safetensors")
    pt = saved(tmp_path / "w.pt", state)
    checkpoint = saved(tmp_path / "training.pt", {"model": {"x": torch.ones(1)}, "ema": state, "opt": {}})
    half = saved(tmp_path / "half.pt", {name: value.bfloat16() for name, value in state.items()})
    fsspec.filesystem("memory").pipe_file("/weights/w.pt", Path(pt).read_bytes())
    found = [read(uri) for uri in (pt, str(tmp_path / "w.safetensors"), checkpoint, "memory://weights/w.pt")]
    assert len({stored.digest for stored in found}) == 1
    config = found[0].config
    assert (
        config["schedule"] == "linear"
        and config["clip_samples"] is False
        and config["architecture"]["learn_sigma"] is True
    )
    assert config["class_names"][207] == "golden_retriever" and len(config["class_names"]) == 1000
    widened = read(half)
    assert all(tensor.dtype == torch.float32 for tensor in widened.state.values())


def test_checkpoints_as_training_scripts_write_them(tmp_path: Path, state: dict[str, torch.Tensor]) -> None:
    """Under the names that wrappers give, beside an optimizer's state and the arguments of the script."""
    other = {name: torch.zeros_like(value) for name, value in state.items()}
    bare = read(saved(tmp_path / "w.pt", state)).digest

    def wrapped(*prefixes: str) -> dict[str, torch.Tensor]:
        return {"".join(prefixes) + name: value for name, value in state.items()}

    arguments = argparse.Namespace(image_size=256, results_dir="results", lr=None)
    for number, checkpoint in enumerate(
        [
            {"model": other, "ema": state, "opt": {"state": {}}, "args": arguments},
            {"model": wrapped("module."), "opt": {}, "args": arguments},
            {"model": state, "ema": {}},  # one that was not kept
            {"state_dict": wrapped("_orig_mod."), "epoch": 3},
            {"ema": wrapped("module.", "_orig_mod."), "model": other},
            wrapped("_orig_mod.", "module."),
        ]
    ):
        assert read(saved(tmp_path / f"{number}.pt", checkpoint)).digest == bare
    safetensors.torch.save_file(wrapped("module."), tmp_path / "w.safetensors")
    assert read(str(tmp_path / "w.safetensors")).digest == bare
    half = {name: value.half() for name, value in state.items()}
    safetensors.torch.save_file(half, tmp_path / "half.safetensors")
    assert read(str(tmp_path / "half.safetensors")).digest == read(saved(tmp_path / "half.pt", half)).digest
    assert {value.dtype for value in read(str(tmp_path / "half.safetensors")).state.values()} == {
        torch.float32
    }


LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"model.safetensors": LFS}, r"model\.safetensors is a Git LFS pointer; run `git lfs pull`"),
        ({"config.json": "{"}, r"config\.json: is no JSON"),
        ({"config.json": LFS}, r"config\.json: is no JSON"),
        ({"config.json": "[]"}, r"config\.json: holds a list, expected a dict"),
        ({"preprocessor_config.json": "\0\0"}, r"preprocessor_config\.json: is empty"),
        ({"model.safetensors": "abc"}, r"judge\.weights: .*[Ee]rror"),
    ],
)
def test_a_classifier_that_was_not_fetched_whole(tmp_path: Path, files: dict[str, str], message: str) -> None:
    pytest.importorskip("transformers")
    vit = {"hidden_size": 12, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 12}
    config = {"model_type": "vit", "num_labels": 10, "image_size": 8, "patch_size": 4, **vit}
    whole = {"config.json": json.dumps(config), "preprocessor_config.json": "{}", "model.safetensors": "x"}
    for name, text in {**whole, **files}.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=message) as caught:
        model_folder.read(str(tmp_path), "judge.weights")
    assert "\n" not in str(caught.value)


def test_larger_images_are_known_by_their_positions(tmp_path: Path) -> None:
    net = DiT(dit_config("DiT-nano", input_size=8))
    assert read(saved(tmp_path / "w.pt", net.state_dict())).config["architecture"]["input_size"] == 8


def test_wrong_state_dicts_list_the_first_keys(tmp_path: Path, state: dict[str, torch.Tensor]) -> None:
    from models import weights

    few = {name: value for name, value in state.items() if not name.startswith("blocks.1.")}
    stored = read(saved(tmp_path / "few.pt", few))
    net = DiT(dit_config("DiT-nano"))
    with pytest.raises(
        weights.WeightsError, match=r"lacks blocks\.1\.adaLN_modulation\.1\.bias, .*, .* and 7 more"
    ):
        weights.load_into(net, stored.state, "w")
    with pytest.raises(
        InputError,
        match=r"lacks 'x_embedder.proj.weight'; expected the names of the published DiT, SiT, REPA, Li",
    ):
        read(saved(tmp_path / "other.pt", {"conv.weight": torch.ones(2)}))
    with pytest.raises(InputError, match=r"model.size: got 'DiT-XXL/2', expected one of"):
        read(saved(tmp_path / "w.pt", state), size="DiT-XXL/2")


class Mischief:
    def __reduce__(self) -> Any:
        return (Path("/tmp/never").touch, ())


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"w": torch.ones(1), "args": SimpleNamespace(lr=1)}, "holds more than plain tensors"),
        ({"w": Mischief()}, "holds more than plain tensors"),
        ([torch.ones(1)], "it holds a list; expected a state dict"),
        ({"w": torch.ones(1), "step": 3}, r"not every entry is a tensor: 'step' \(int\)"),
        ({}, "it holds a dict; expected a state dict"),
        ({"w": Mischief(), "x": torch.ones(1)}, r"holds more than plain tensors: it names \w+"),
        ({"a": torch.eye(2).to_sparse()}, r"'a' \(torch\.sparse_coo, torch\.float32, cpu\)"),
        ({"a": torch.ones(2, device="meta")}, r"'a' \(torch\.strided, torch\.float32, meta\)"),
        ({"a": torch.ones(2, dtype=torch.complex64)}, r"'a' \(torch\.strided, torch\.complex64, cpu\)"),
        ({"ema": {"b": torch.tensor([1, float("nan")])}}, r"b is not a number \(NaN\)"),
        ({"b": torch.tensor([1, float("-inf")])}, r"b is not a number \(NaN\) or without bound"),
    ],
)
def test_pickles_that_are_not_plain_tensors_are_refused(tmp_path: Path, value: Any, message: str) -> None:
    with pytest.raises(InputError, match=rf"model.weights: .*w\.pt: refused, .*{message}") as caught:
        read(saved(tmp_path / "w.pt", value))
    assert "\n" not in str(caught.value)


def test_a_program_is_no_state_dict(tmp_path: Path) -> None:
    torch.jit.save(torch.jit.trace(torch.nn.Linear(2, 2), torch.ones(1, 2)), str(tmp_path / "w.pt"))
    with pytest.raises(
        InputError, match=r"w\.pt: refused, it is a TorchScript program; expected a state dict"
    ):
        read(str(tmp_path / "w.pt"))


def test_the_size_of_a_bare_state_dict_is_read_off_it(tmp_path: Path, state: dict[str, torch.Tensor]) -> None:
    assert read(saved(tmp_path / "w.pt", state), size=None).config["size"] == "DiT-nano"


def test_damaged_and_foreign_files_are_refused(tmp_path: Path, state: dict[str, torch.Tensor]) -> None:
    whole = Path(saved(tmp_path / "w.pt", state)).read_bytes()
    (tmp_path / "cut.pt").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.pt").write_text("version https://git-lfs.github.com/spec/v1")
    safetensors.torch.save_file(state, tmp_path / "w.safetensors")
    (tmp_path / "cut.safetensors").write_bytes((tmp_path / "w.safetensors").read_bytes()[:-100])
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 1
    (tmp_path / "flipped.pt").write_bytes(flipped)
    with pytest.raises(InputError, match=r"flipped\.pt: is damaged, w/data/\d+ has another checksum"):
        read(str(tmp_path / "flipped.pt"))
    with pytest.raises(InputError, match=r"cut\.pt: got neither safetensors nor a file of torch.save"):
        read(str(tmp_path / "cut.pt"))
    with pytest.raises(InputError, match=r"text\.pt is a Git LFS pointer; run `git lfs pull`"):
        read(str(tmp_path / "text.pt"))
    with pytest.raises(InputError, match=r"cut\.safetensors: not a readable safetensors file"):
        read(str(tmp_path / "cut.safetensors"))
    with pytest.raises(InputError, match=r"model\.weights: nothing at .*nowhere\.pt"):
        read(str(tmp_path / "nowhere.pt"))
    with pytest.raises(InputError, match=r"model\.weights: no weights at"):
        read(str(tmp_path))


def test_a_note_of_the_files_name_is_no_description(tmp_path: Path, state: dict[str, torch.Tensor]) -> None:
    uri = saved(tmp_path / "w.pt", state)
    (tmp_path / "w.json").write_text('{"step": 3}')
    assert read(uri, size=None).config["size"] == "DiT-nano"
    (tmp_path / "w.json").write_text('{"family": "dit", "size": "DiT-nano"}')
    with pytest.raises(InputError, match=r"model\.weights: .*w\.json: no '\w+'; expected the description"):
        read(uri)


def test_the_digest_is_held_against_the_file(tmp_path: Path, state: dict[str, torch.Tensor]) -> None:
    uri = saved(tmp_path / "w.pt", state)
    digest = hashlib.sha256(Path(uri).read_bytes()).hexdigest()
    assert read(uri, sha256=digest).state.keys() == state.keys()
    with pytest.raises(InputError, match=rf"model\.sha256: w\.pt has {digest}, expected {'0' * 64}"):
        read(uri, sha256="0" * 64)


def test_what_is_kept_is_kept_once(tmp_path: Path, state: dict[str, torch.Tensor]) -> None:
    stored = read(saved(tmp_path / "w.pt", state))
    kept = model_folder.kept(stored, str(tmp_path / "runs"))
    assert kept.uri != stored.uri and not kept.foreign and model_folder.kept(kept, "elsewhere") is kept
    manifest = Path(kept.uri) / "manifest.json"
    before = manifest.stat().st_mtime_ns
    assert (
        model_folder.kept(stored, str(tmp_path / "runs")).uri == kept.uri
        and manifest.stat().st_mtime_ns == before
    )
    again = model_folder.read(kept.uri, "model.weights")
    assert (
        again.digest == stored.digest
        and again.config == stored.config
        and again.manifest["imported_from"] == stored.uri
    )


@pytest.mark.parametrize(
    ("text", "uri"),
    [
        ("facebook/DiT-XL-2-256", "hf://facebook/DiT-XL-2-256"),
        ("s3://bucket/dit.pt", "s3://bucket/dit.pt"),
        ("weights/dit.pt", str(Path("weights/dit.pt").resolve())),
        ("/data/dit", "/data/dit"),
        ("./folder/model", str(Path("folder/model").resolve())),
    ],
)
def test_where_weights_are(text: str, uri: str) -> None:
    assert fetching.locate(text) == uri


def test_a_repository_that_cannot_be_fetched_is_said_so(monkeypatch: pytest.MonkeyPatch) -> None:
    hub = pytest.importorskip("huggingface_hub")

    def offline(*_: Any, **__: Any) -> None:
        raise ConnectionError("no network")

    monkeypatch.setattr(hub, "snapshot_download", offline)
    with pytest.raises(InputError, match="Hugging Face repository 'facebook/DiT-XL-2-256' cannot be fetched"):
        read(fetching.locate("facebook/DiT-XL-2-256"))


@pytest.mark.parametrize(
    ("config", "weights", "said"),
    [
        ("[]", b"cos\nsystem\n(S'touch /tmp/ran'\ntR.", "cannot be read as an image classifier"),
        (
            '{"model_type": "vit", "id2label": ["a", "b"]}',
            b"cos\nsystem\n(S'touch /tmp/ran'\ntR.",
            "cannot be read as an image classifier",
        ),
    ],
)
def test_a_classifier_of_another_form_is_one_line(
    tmp_path: Path, config: str, weights: bytes, said: str
) -> None:
    (tmp_path / "config.json").write_text(config)
    (tmp_path / "pytorch_model.bin").write_bytes(weights)
    with pytest.raises(InputError, match=said):
        import_published.read_judge(str(tmp_path), "judge.weights", None)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (torch.zeros(()), r"x_embedder\.proj\.weight has shape \(\), expected 4 dimensions"),
        (torch.zeros(4, 1, 2, 2, dtype=torch.int8), r"x_embedder\.proj\.weight \(torch\.int8\) is quantised"),
        (torch.zeros(4, 1, 2, 2).to(torch.float8_e4m3fn), r"\(torch\.float8_e4m3fn\) is quantised"),
    ],
)
def test_tensors_that_are_no_weights_of_a_transformer(tmp_path: Path, value: torch.Tensor, said: str) -> None:
    state = {
        "x_embedder.proj.weight": value,
        "y_embedder.embedding_table.weight": torch.zeros(11, 4),
        "pos_embed": torch.zeros(1, 4, 4),
        "final_layer.linear.bias": torch.zeros(4),
    }
    torch.save(state, tmp_path / "model.pt")
    with pytest.raises(ValueError, match=said):
        import_published.read_model(str(tmp_path / "model.pt"), "model.weights", None, None)
