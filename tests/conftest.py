"""The environment that the tests share."""

import edgec_runtime  # noqa: F401 - before onnxruntime: it sets what onnxruntime reads when it loads
