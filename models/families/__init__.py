"""Class-conditional transformers as published, a file each: network, sizes, process, state dict, sampler."""
