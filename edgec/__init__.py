"""edgec: compress a transformer, export it to int8 ONNX, verify it and measure it on the device."""

__version__ = "0.1.0"
