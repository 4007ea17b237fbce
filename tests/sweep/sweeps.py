"""The quickstart's sweep at its smallest."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TINY = [  # the quickstart's sweep at its smallest: what is measured means nothing, that it is measured does
    "set.optim.max_steps=2",
    "set.optim.batch_size=8",
    "set.evaluate.every=1",
    "set.evaluate.samples=20",
    "set.evaluate.retain_samples=1",
    "set.evaluate.final_samples=100",
    "set.evaluate.final_retain_samples=1",
    "set.evaluate.sampler_steps=2",
    "set.evaluate.final_sampler_steps=2",
    "set.evaluate.patience_steps=1",
    "set.evaluate.retention_floor=null",
    "set.gate.max_forget_fraction=1",
    "set.gate.min_retain_accuracy=0",
    "set.gate.min_class_accuracy=0",
    "set.gate.min_judge_accuracy=null",
    "set.gate.min_patience_steps=0",
    "verify.samples=100",
    "verify.retain_samples=1",
]
