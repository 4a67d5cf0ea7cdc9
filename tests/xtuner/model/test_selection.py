"""Parts, places and regular expressions that name weights."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xtuner.errors import XTunerError
from xtuner.model.selection import choose, matching

WEIGHTS = {
    "tower": ["clip.embeddings.weight", *(f"clip.encoder.layers.{n}.mlp.weight" for n in range(5)), "norm.bias"],
    "head": ["layers.0.weight", "layers.1.weight"],
}
NAMES = [f"{part}.{name}" for part, names in WEIGHTS.items() for name in names]


def layers(*numbers: int) -> list[str]:
    return [f"tower.clip.encoder.layers.{n}.mlp.weight" for n in numbers]


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("tower.layers.3-", layers(3, 4)),
        ("tower.layers.-1", layers(0, 1)),
        ("tower.layers.1-3", layers(1, 2, 3)),
        ("tower.layers.2", layers(2)),
        ("tower.clip.encoder.layers.2.mlp", layers(2)),
        ("tower.encoder.mlp", []),
        ("tower.layers.2.weight", []),
        ("tower.norm", ["tower.norm.bias"]),
        ("head", [f"head.{name}" for name in WEIGHTS["head"]]),
        ("layers.3-", []),
        (r"layers\.(0|4)\.", [*layers(0, 4), "head.layers.0.weight"]),
        (r"^head\..*1", ["head.layers.1.weight"]),
    ],
)
def test_what_a_pattern_means(pattern: str, expected: list[str]) -> None:
    assert matching(pattern, NAMES) == expected


@given(st.integers(0, 6), st.integers(0, 6))
def test_ranges_hold_both_ends(first: int, last: int) -> None:
    expected = [n for n in range(5) if first <= n <= last]
    assert matching(f"tower.layers.{first}-{last}", NAMES) == layers(*expected)


class TestChoose:
    def choose(self, *selectors: str) -> dict[str, frozenset[str] | None]:
        return choose(selectors, ("tower", "head", "tail"), WEIGHTS, "Toy")

    def test_whole_parts_and_some_weights(self) -> None:
        assert self.choose("head", "tail") == {"head": None}
        found = self.choose("tower.layers.4-", "head")
        assert found == {"tower": frozenset({"clip.encoder.layers.4.mlp.weight"}), "head": None}

    def test_patterns_that_add_up_to_a_part(self) -> None:
        assert self.choose("head.layers.0", "head.layers.1-") == {"head": None}

    @pytest.mark.parametrize(
        ("selector", "message"),
        [
            ("tower.layers.9-", "matches no weight: names run from 'tower.clip.embeddings.weight' to 'tower.norm"),
            (".*", "'.*' in trainable matches every weight of the model: name the parts to train, of tower, head"),
            ("heat", "'heat' in trainable is not a part of Toy.* Did you mean 'head'"),
            ("heat.layers.0", "'heat.layers.0' in trainable is not a part of Toy.* Did you mean 'head'"),
            ("tail.layers.0", "this model has no tail"),
            ("tower.(", "the regular expression 'tower.\\(' cannot be read"),
            ("xyz.*", "'xyz.*' in trainable matches no weight"),
        ],
    )
    def test_refuses(self, selector: str, message: str) -> None:
        with pytest.raises(XTunerError, match=message):
            self.choose(selector)
