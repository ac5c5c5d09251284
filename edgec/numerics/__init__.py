"""Numbers in few bits, in numpy: weights, activations, and what calibration keeps of them. No torch, no graphs."""
