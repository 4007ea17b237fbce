"""The step benchmark on a small model: the modes agree, the figures are all there. The simulated lake."""

from pipeline.benchmarks import lake
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


def test_a_simulated_lake_gives_a_partition_that_reads_little_beside_what_it_takes() -> None:
    small = {"rows": 9000, "classes": 3, "batch": 8, "steps": 2}
    figures = lake.run(parse(BenchmarkConfig, {"benchmark": "lake", "lake": small}))
    assert figures["shards"] == 6 and set(lake.BOUNDS) <= figures.keys()
    assert 1 < figures["read_over_used"] < lake.BOUNDS["read_over_used"]
    assert figures["sides_mb"] > 2 * 3000 * 16384 / 1e6 and figures["partition_seconds"] > 0
