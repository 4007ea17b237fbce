"""The step benchmark on a small model: the modes agree, the figures are all there."""

from pipeline.benchmarks import checks
from pipeline.benchmarks.step import run
from pipeline.config import BenchmarkConfig, parse


def test_modes_of_the_second_order_product_agree() -> None:
    small = {
        "width": 24,
        "depth": 4,
        "tokens": 16,
        "batch": 2,
        "repeats": 1,
        "trainable": "labels_and_adaln:2",
    }
    found = run(parse(BenchmarkConfig, {"step": small}))
    assert found["recompute_error"] < 1e-4 and found["fd_central_error"] < 1e-2
    ratios = [name for name in found if "_over_" in name]
    assert {
        "uno_s_over_finetune",
        "uno_s_over_naive",
        "surgery_over_finetune",
        "uno_exact_over_surgery",
        "recompute_memory_over_naive",
        "depth_weights_over_finetune",
    } <= set(ratios)
    assert all(found[name] > 0 for name in ratios)


def test_checks_with_the_classes_in_turn_decide_alike_on_a_fraction_of_the_images() -> None:
    small = {"runs": 6, "classes": 200, "rotation": 100, "rotation_samples": 4}
    result = checks.run(parse(BenchmarkConfig, {"benchmark": "checks", "checks": small}))
    assert result["images_over_all_classes"] < 0.25
    assert result["same_passed"] == 6 and result["same_settled_step"] >= 5
    assert 0 < result["passed"] < 6, "among the runs are some that pass the gate and some that do not"
