"""Answers to many requests at once: the engine, its batch, how tokens are chosen, and their text."""
