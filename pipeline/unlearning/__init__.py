"""The mathematics of forgetting: tensors in, gradients out; it knows no storage, no logging and no
configuration."""
