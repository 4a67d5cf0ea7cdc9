"""Cutting an order of samples into micro-batches by their tokens, and sharing those out over steps and ranks."""

from __future__ import annotations

import numpy as np

from xtuner.errors import XTunerError


def check_fits(lengths: np.ndarray, max_tokens: int) -> None:
    """Refuses samples with more than `max_tokens` tokens.

    Raises:
        XTunerError: with their number and the longest.
    """
    over = int((lengths > max_tokens).sum())
    if over:
        raise XTunerError(
            f"max_tokens_per_batch={max_tokens:,}, but {over:,} of {len(lengths):,} samples have more tokens. The "
            f"longest has {int(lengths.max()):,}: raise max_tokens_per_batch to at least that, or lower max_length."
        )


def cut_by_tokens(lengths: np.ndarray, max_tokens: int) -> np.ndarray:
    """Cuts samples that stand in order into rows of at most `max_tokens` tokens.

    Returns:
        (rows, 2) int64 start and end of each row; every row is as long as the next sample lets it be.
    """
    ends: list[int] = []
    total = 0
    for place, length in enumerate(lengths.tolist()):
        total += length
        if total > max_tokens:
            ends.append(place)
            total = length
    bounds = np.array([0, *ends, len(lengths)], np.int64)
    return np.stack([bounds[:-1], bounds[1:]], axis=1)


def arrange_rows(
    rows: np.ndarray,
    costs: np.ndarray,
    grad_accum: int,
    world_size: int,
    generator: np.random.Generator,
    at_a_time: int | None = None,
) -> np.ndarray:
    """Shares rows out so that all ranks compute rows of about the same cost at a time, and none waits for another.

    Args:
        rows: (R, 2) start and end of each in `costs`.
        costs: of the samples, in order.
        grad_accum: rows of one rank per step.
        world_size: number of ranks.
        generator: of the order of what is computed at a time.
        at_a_time: rows of similar cost that stay together; a divisor of a step's rows. None = one for each rank.

    Returns:
        (steps, grad_accum, world_size, 2); filled up to whole steps with the first rows.
    """
    sums = np.concatenate([[0], np.cumsum(costs)])
    of_rows = sums[rows[:, 1]] - sums[rows[:, 0]]
    per_step = grad_accum * world_size
    filled = np.resize(np.arange(len(rows)), -(-len(rows) // per_step) * per_step)
    together = filled[np.argsort(of_rows[filled], kind="stable")].reshape(-1, at_a_time or world_size)
    return rows[generator.permutation(together)].reshape(-1, grad_accum, world_size, 2)
