"""From torch modules to ONNX graphs: trace, tidy, lower for a target, compare."""
