"""Weights on disk: files, shards, DeepSpeed folders, and the marks of what a run kept frozen."""
