"""Passages that a decoupled model has read once: making a store of them, finding some for a question, answering."""
