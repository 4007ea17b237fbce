"""The step benchmark on a small model: the modes agree, the figures are all there. The simulated lake."""

from pipeline.benchmarks import checks, gpu, lake
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


def test_the_benchmark_of_a_card_measures_every_kind_in_small() -> None:
    small = {"size": "DiT-nano", "side": 4, "batches": [1], "trainable": "labels_and_adaln:1", "repeats": 1}
    more = {"precision": "fp32", "compile": False, "sampler_images": 2, "sampler_steps": 2}
    result = gpu.run(parse(BenchmarkConfig, {"benchmark": "gpu", "gpu": small | more}))
    at = result["by_batch"]["1"]
    assert all(isinstance(seconds, float) for seconds in at["seconds_a_step"].values())
    assert set(at["seconds_a_step"]) == {*gpu.KINDS, "naive surgery", "naive uno"}
    assert all(
        0.7 < one["planned_over_measured"] < 1.3 for one in list(at["peak_above_weights"].values())[:-1]
    )
    assert {one["reads"] for one in at["host_reads_a_step"].values()} == {1}
    assert result["sampler"]["images_a_second"] and result["depth_weights"]["depth_weights_over_finetune"]


def test_a_simulated_lake_gives_a_partition_that_reads_little_beside_what_it_takes() -> None:
    small = {"rows": 9000, "classes": 3, "batch": 8, "steps": 2}
    figures = lake.run(parse(BenchmarkConfig, {"benchmark": "lake", "lake": small}))
    assert figures["shards"] == 6 and set(lake.BOUNDS) <= figures.keys()
    assert 1 < figures["read_over_used"] < lake.BOUNDS["read_over_used"]
    assert figures["sides_mb"] > 2 * 3000 * 16384 / 1e6 and figures["partition_seconds"] > 0
