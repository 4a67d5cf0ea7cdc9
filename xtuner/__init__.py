"""A framework that assembles vision-language models from Python configs and trains them."""

__version__ = "0.1.0"
