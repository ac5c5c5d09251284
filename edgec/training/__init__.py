"""Training: one thin layer over transformers.Trainer, in which objectives plug in."""
