"""int8 sentence embeddings on a CPU: edgec's bundle beside the tools of the field, interleaved on one machine."""
