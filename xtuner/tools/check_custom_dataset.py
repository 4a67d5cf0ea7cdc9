"""XTuner's name for ``xtuner check-dataset``."""

from xtuner.tools.check_dataset import add_arguments, run

__all__ = ["add_arguments", "run"]
