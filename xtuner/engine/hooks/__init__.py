"""Hooks that log, save and guard a run."""
