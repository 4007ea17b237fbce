"""What a model still knows: sampling, metrics, attacks, the stopping rule and the gate."""
