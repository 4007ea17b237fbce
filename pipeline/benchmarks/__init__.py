"""What a step, the data plane, workers and trials cost, as ratios beside a baseline."""
