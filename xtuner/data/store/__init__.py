"""Prepared data on disk: made once, memory-mapped, checked against what it was made from."""
