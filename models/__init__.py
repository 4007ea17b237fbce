"""Pure torch: networks, diffusion, samplers, judges, feature networks; never Ray, MLflow or storage."""
