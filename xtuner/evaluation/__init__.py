"""Benchmarks of a config, judges, and the comparison of two runs; knows no model family."""
