"""Rank correlation: coefficients and exact p of known cases, and which published numbers count."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pandas as pd
import pytest
from scipy.stats import kendalltau, spearmanr

from reports import correlation
from reports.correlation import rank_correlation

NAMES = "abcdefgh"


def named(values: list[float]) -> dict[str, float]:
    return dict(zip(NAMES, values, strict=False))


@pytest.mark.parametrize("theirs", [[1, 2, 3, 5, 4], [5, 4, 1, 2, 3], [1, 2, 2, 4, 3], [1, 2, 3, 4, 5]])
def test_coefficients_are_scipys_and_p_counts_all_orders(theirs: list[float]) -> None:
    ours = [60.0, 61.5, 70.0, 72.0, 80.0]
    found = rank_correlation(named(ours), named(theirs))
    assert found is not None
    assert found.spearman == pytest.approx(spearmanr(ours, theirs).statistic)
    assert found.kendall == pytest.approx(kendalltau(ours, theirs).statistic)
    orders = [list(order) for order in permutations(ours)]
    for value, p, statistic in (
        (found.spearman, found.spearman_p, spearmanr),
        (found.kendall, found.kendall_p, kendalltau),
    ):
        every = np.array([statistic(order, theirs).statistic for order in orders])
        assert p == pytest.approx((np.abs(every) >= abs(value) - 1e-9).mean())
    assert found.exact


def test_only_what_both_lists_name_counts_and_two_are_too_few() -> None:
    found = rank_correlation({"x": 1.0, "a": 1.0, "b": 2.0, "c": 3.0}, {"c": 30.0, "b": 20.0, "a": 10.0, "y": 5.0})
    assert found is not None
    assert found.methods == ("a", "b", "c")
    assert found.spearman_p == pytest.approx(2 / 6)
    assert rank_correlation({"a": 1.0, "b": 2.0}, {"a": 1.0, "b": 2.0}) is None
    assert rank_correlation(named([1.0, 1.0, 1.0]), named([1.0, 2.0, 3.0])) is None


def test_more_than_eight_methods_are_compared_with_random_orders_and_say_so() -> None:
    nine = {str(number): float(number) for number in range(9)}
    found = rank_correlation(nine, nine)
    assert found is not None
    assert not found.exact
    assert "random orders" in correlation.sentence(found)


def test_a_published_number_counts_for_the_headline_variant_and_if_it_was_read_at_its_authors() -> None:
    known = correlation.published(["cluster_contrast", "hhcl", "spcl", "ice", "jcl"])
    assert known == {"hhcl": 84.2, "spcl": 73.1}, "of another pooling, quoted, none"


def test_the_leaderboard_tells_the_correlation_of_each_backbone() -> None:
    levels = {"warm_start": 40.0, "spcl": 50.0, "cap": 60.0, "hhcl": 70.0, "jcl": 75.0}
    variant = {"warm_start": "default", "jcl": "post_nonlocal"}
    rows = [(name, variant.get(name, "released"), value) for name, value in levels.items()]
    rows.append(("hhcl", "paper", 10.0))
    part = pd.DataFrame(rows, columns=["method", "variant", "mAP_mean"]).assign(backbone="resnet18_half")
    text = correlation.beside_papers(pd.concat([part, part[:2].assign(backbone="vit_tiny6_ics")]))
    assert (
        "over the 3 methods whose number was read at its authors (spcl, cap, hhcl): Spearman +1.00 (exact p 0.333)"
        in text
    )
    assert "Kendall +1.00 (exact p 0.333)" in text
    assert "vit_tiny6_ics: fewer than 3 methods" in text
