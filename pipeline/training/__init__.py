"""The loop on the workers: inputs, steps, periodic evaluation, checkpoints, launching, pretraining."""
