"""Runs edgec bundles with numpy and onnxruntime."""

import os

# The Linux wheels of onnxruntime write a device id and a database below ~/.cache and start a thread unless this
# stands in the environment before the library loads; disable_telemetry_events() does not stop the files.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"

__version__ = "0.1.0"
