"""One file a method, each a function from a step to the gradient that the optimiser gets."""
