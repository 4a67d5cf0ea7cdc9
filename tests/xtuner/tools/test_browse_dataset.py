"""The bins of the histograms; the page itself is tested with the data set of the model."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from xtuner.tools.browse_dataset import _whole_number_bins


@given(st.lists(st.integers(0, 100_000), min_size=1, max_size=50))
def test_every_bin_holds_equally_many_whole_numbers(values: list[int]) -> None:
    edges = _whole_number_bins(np.array(values))
    assert len(edges) - 1 <= 60 and np.histogram(values, edges)[0].sum() == len(values)
    widths = set(np.diff(edges))
    assert len(widths) == 1 and widths.pop().is_integer() and (edges[0] - 0.5).is_integer()
