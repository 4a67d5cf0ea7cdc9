"""Answers that another language model judges: what it is asked and what its verdict counts."""
