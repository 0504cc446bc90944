"""Levels and thresholds hold what they promise, checked against plain simulation."""

from __future__ import annotations

import numpy as np
import pytest

from monitor.rules.significance import ALLOWANCE, SHARED, evidence_threshold, rejected, surprise, sustained_level


@pytest.mark.parametrize(
    ("p_values", "level", "expected"),
    [
        ([0.01, 0.02, 0.03, 0.9], 0.05, [True, True, True, False]),  # 0.03 <= 3/4 of the level
        ([0.04, 0.04, 0.04, 0.9], 0.05, [False, False, False, False]),
        ([0.04, 0.04, 0.04, 0.04], 0.05, [True] * 4),
        ([0.9], 0.05, [False]),
        ([0.0], 0.05, [True]),
        ([], 0.05, []),
    ],
)
def test_family_stands_out_as_benjamini_and_hochberg_say(
    p_values: list[float], level: float, expected: list[bool]
) -> None:
    assert rejected(p_values, level) == expected


def test_two_hundred_features_do_not_mean_two_hundred_chances() -> None:
    rng = np.random.default_rng(0)
    windows = [any(rejected(list(rng.random(200)), 0.01)) for _ in range(3000)]
    assert 0.004 < np.mean(windows) < 0.018


@pytest.mark.parametrize(("breaches", "windows"), [(1, 1), (2, 3), (3, 4), (2, 2)])
def test_sustained_breaches_are_as_rare_as_wanted_though_windows_share_a_reference(breaches: int, windows: int) -> None:
    level = sustained_level(100, breaches, windows)
    rng = np.random.default_rng(1)
    runs = 60_000
    common, own = rng.normal(size=(runs, 1)), rng.normal(size=(runs, windows))
    z = np.sqrt(SHARED) * common + np.sqrt(1 - SHARED) * own
    bars = np.vectorize(surprise)(z) <= level
    assert np.mean(bars.sum(axis=1) >= breaches) == pytest.approx(0.01, rel=0.2)


def test_more_windows_that_must_agree_allow_each_more() -> None:
    assert sustained_level(1000, 1, 1) < sustained_level(1000, 2, 3) < sustained_level(1000, 3, 4)


@pytest.mark.parametrize("per_windows", [100.0, 500.0])
def test_evidence_fires_by_chance_about_as_seldom_as_wanted(per_windows: float) -> None:
    threshold = evidence_threshold(per_windows)
    rng = np.random.default_rng(2)
    lengths = []
    for _ in range(400):
        total, windows = 0.0, 0
        while total < threshold:
            total = max(0.0, total + rng.normal() - ALLOWANCE)
            windows += 1
        lengths.append(windows)
    assert np.mean(lengths) == pytest.approx(per_windows, rel=0.25)
