"""One file a method, each a function from a step's gradients to the vector (P,) that the optimiser gets."""
