"""No code comes with weights: what loads from transformers and diffusers says so at every call."""

import ast
from pathlib import Path

import pytest

from models.transformers_judge import require_no_code

ROOT = Path(__file__).resolve().parents[2]
LOADS = ("from_pretrained", "from_config", "from_single_file", "pipeline", "snapshot_download")
# AutoencoderKL's own loader, which has no such switch, and a download without .py files
WITHOUT = {("models/latents.py", "from_pretrained"), ("pipeline/fetching.py", "snapshot_download")}


def calls(path: Path) -> list[tuple[str, ast.Call]]:
    names = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call):
            name = getattr(node.func, "attr", getattr(node.func, "id", ""))
            names += [(name, node)] if name in LOADS else []
    return names


def test_every_load_refuses_remote_code() -> None:
    paths = [path for room in ("models", "pipeline", "jobs") for path in (ROOT / room).rglob("*.py")]
    loads = [(path.relative_to(ROOT).as_posix(), name, call) for path in paths for name, call in calls(path)]
    assert {(path, name) for path, name, _ in loads} >= WITHOUT and len(loads) >= 6
    for path, name, call in loads:
        settings = {keyword.arg: keyword.value for keyword in call.keywords}
        refuses = "trust_remote_code" in settings and ast.unparse(settings["trust_remote_code"]) == "False"
        assert refuses or (path, name) in WITHOUT, f"{path}:{call.lineno}: {name} without trust_remote_code"
        if name == "snapshot_download":
            patterns = ast.literal_eval(settings["allow_patterns"])
            assert patterns and not [one for one in patterns if one.endswith(("py", "*"))], patterns


@pytest.mark.parametrize(
    "config",
    [
        {"attn_implementation": "stranger/kernel"},
        {"_attn_implementation": "kernels-community/flash-attn"},
        {"attn_implementation": {"": "eager", "vision_config": "stranger/kernel@main"}},
        {"vision_config": {"_experts_implementation": "stranger/kernel:fn"}},
    ],
)
def test_a_kernel_of_a_hub_is_refused(config: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"asks for .*, which is code from a hub; expected none"):
        require_no_code({"model_type": "vit", "hidden_size": 8, **config})
    require_no_code({"_attn_implementation": "sdpa", "_name_or_path": "google/vit", "vision_config": {}})
