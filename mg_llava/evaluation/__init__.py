"""Benchmarks: what is asked, how answers are read and scored."""
