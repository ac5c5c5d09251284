"""Model sources, and what is known of the models: `load_model`, `save_build`, `load_build`."""

from edgec.models.build import load_build, save_build
from edgec.models.families import FAMILIES, TASKS
from edgec.models.load import load_model

__all__ = ["FAMILIES", "TASKS", "load_build", "load_model", "save_build"]
