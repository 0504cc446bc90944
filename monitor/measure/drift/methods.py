"""The drift methods on offer: Evidently's registered statistical tests for numbers and categories.

Invariant: pure and light (config validation imports it); agrees with Evidently's registry, which a test
proves.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from retrain.terms.schema import FeatureKind


class Statistic(StrEnum):
    P_VALUE = "p_value"  # drift when below the threshold
    DISTANCE = "distance"  # drift when above the threshold


@dataclass(frozen=True, slots=True)
class DriftMethod:
    """A method by its name in Evidently, and the threshold that decides drift."""

    name: str
    threshold: float


@dataclass(frozen=True, slots=True)
class MethodSpec:
    """What a method takes and gives.

    `as_is`: the test looks at row order or at the labels themselves, so it is handed the column unsorted,
    uncoded. `max_rows`: its cost grows faster than the rows; both sides are cut to a seeded sample of this
    size. `equal_rows`: it refuses sides of different length; the longer one is cut to a seeded sample.
    `max_labels`: it refuses a side with more different labels than this, also when the cut would hide them.
    """

    name: str
    kinds: frozenset[FeatureKind]
    statistic: Statistic
    threshold: float
    as_is: bool = False
    max_rows: int | None = None
    equal_rows: bool = False
    max_labels: int | None = None


_NUMBER = frozenset({FeatureKind.NUMBER})
_LABELS = frozenset({FeatureKind.CATEGORY, FeatureKind.BOOL})
_ANY = _NUMBER | _LABELS
_P, _D = Statistic.P_VALUE, Statistic.DISTANCE

METHODS: Mapping[str, MethodSpec] = {
    spec.name: spec
    for spec in (
        MethodSpec("wasserstein", _NUMBER, _D, 0.1),
        MethodSpec("jensenshannon", _ANY, _D, 0.1),
        MethodSpec("psi", _ANY, _D, 0.1),
        MethodSpec("hellinger", _ANY, _D, 0.1),
        MethodSpec("kl_div", _ANY, _D, 0.1),
        MethodSpec("ed", _NUMBER, _D, 0.1),
        MethodSpec("ks", _NUMBER, _P, 0.05),
        MethodSpec("cramer_von_mises", _NUMBER, _P, 0.1),
        MethodSpec("anderson", _NUMBER, _P, 0.1),
        MethodSpec("es", _NUMBER, _P, 0.05),
        MethodSpec("mannw", _NUMBER, _P, 0.05),
        MethodSpec("t_test", _NUMBER, _P, 0.05),
        MethodSpec("empirical_mmd", _NUMBER, _P, 0.1, as_is=True, max_rows=500),
        MethodSpec("chisquare", _LABELS, _P, 0.05),
        MethodSpec("z", _LABELS, _P, 0.05, as_is=True),
        MethodSpec("g_test", _LABELS, _P, 0.1, equal_rows=True),
        MethodSpec("fisher_exact", _LABELS, _P, 0.1, equal_rows=True, max_labels=2),
        MethodSpec("TVD", _LABELS, _P, 0.1, as_is=True, max_rows=1000),
    )
}

_DEFAULTS: Mapping[FeatureKind, str] = {
    FeatureKind.NUMBER: "wasserstein",
    FeatureKind.CATEGORY: "jensenshannon",
    FeatureKind.BOOL: "jensenshannon",
}


def methods_for(kind: FeatureKind) -> tuple[str, ...]:
    """Names of the methods that take this kind of feature."""
    return tuple(name for name, spec in METHODS.items() if kind in spec.kinds)


def default_method(kind: FeatureKind) -> DriftMethod:
    """The same for every number of rows: Evidently's own default changes at 1,000 reference rows."""
    return drift_method(_DEFAULTS[kind])


def drift_method(name: str, threshold: float | None = None) -> DriftMethod:
    """A method with its own default threshold unless one is given. Raises KeyError on an unknown name."""
    return DriftMethod(name, METHODS[name].threshold if threshold is None else threshold)
