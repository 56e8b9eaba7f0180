"""Share of positive relevance in a region."""

import numpy as np
import pytest

from relevance_assets.evidence.localisation import share_of_positive

BRAIN = np.array([True, True, True, True, False])
REGION = np.array([True, False, False, True, True])


def test_only_positive_relevance_in_the_brain_counts():
    assert share_of_positive(np.array([3.0, 1.0, -8.0, -2.0, 50.0]), REGION, BRAIN) == (0.75, 0.5)


def test_even_map_is_chance():
    value, chance = share_of_positive(np.full(5, 0.3), REGION, BRAIN)
    assert value == pytest.approx(chance)


def test_undefined_is_none():
    assert share_of_positive(-np.ones(5), REGION, BRAIN) == (None, 0.5)
    assert share_of_positive(np.ones(5), REGION, np.zeros(5, bool)) == (None, None)


def test_errors():
    with pytest.raises(ValueError, match="differ in shape"):
        share_of_positive(np.ones(4), REGION, BRAIN)
    with pytest.raises(ValueError, match="NaN"):
        share_of_positive(np.full(5, np.nan), REGION, BRAIN)
