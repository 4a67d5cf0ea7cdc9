"""Saving and resuming: a folder per checkpoint, complete or not there, checked before it is read."""
