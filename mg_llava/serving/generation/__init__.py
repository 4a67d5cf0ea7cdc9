"""Answers to many requests at once: what an engine is, our own one and its batch, how tokens are chosen, their text."""
