"""Who the challenger is measured against, and how that went.

Invariant: a registered champion that cannot be measured never counts as beaten.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import polars as pl

from retrain.config.settings import GatesConfig
from retrain.config.spec import JobSpec
from retrain.data.frame import labels_array
from retrain.data.snapshot import Snapshot
from retrain.judge.evaluate import (
    Evaluation,
    Side,
    answered_by_both,
    as_served,
    constant,
    evaluate,
    quality_metric,
    score,
)
from retrain.judge.gates import GateResult, judge
from retrain.judge.safeguards import Match, safeguards, size_gate
from retrain.judge.too_good import too_good
from retrain.models.model_files import UnusableModel
from retrain.models.quality import METRICS, Comparison, measure
from retrain.scorer import Scorer
from retrain.terms.request import TriggerKind


@dataclass(frozen=True, slots=True)
class Contest:
    champion: Evaluation | None
    challenger: Evaluation
    comparison: Comparison | None
    gates: tuple[GateResult, ...]

    @property
    def renewed(self) -> bool:
        """It passed only because what is promoted knows newer rows (`judge`, `renewing`)."""
        quality, margin = self.gates[0], self.gates[0].limit
        return quality.passed and quality.interval is not None and margin is not None and quality.interval[0] <= margin

    def without_refit(self) -> Contest:
        """The contest when the model that was judged is the one to promote: a renewal has no reason then."""
        if not self.renewed:
            return self
        failed = replace(self.gates[0], passed=False, detail=f"{self.gates[0].detail}; but the refit failed")
        return replace(self, gates=(failed, *self.gates[1:]))

    @property
    def passed(self) -> bool:
        """No gate rejects the challenger; one may ask a person."""
        return not any(g.rejects for g in self.gates)

    def of_size(self, size: int, config: GatesConfig) -> Contest:
        """The contest when a model of this size is the one that is promoted."""
        weighed = size_gate(size, config.max_size)
        return replace(self, gates=tuple(weighed if g.name == weighed.name else g for g in self.gates))

    @property
    def gain(self) -> float | None:
        """What the challenger is better by, in standard errors; None: not known."""
        return None if self.comparison is None else self.comparison.standard_errors


def champion_side(
    spec: JobSpec,
    snapshot: Snapshot,
    holdout: pl.DataFrame,
    version: str | None,
    load: Callable[[str], Scorer],
) -> Side | str:
    """The champion's predictions: by its model, else as served, else (no champion at all) a constant guess. A text
    when there is a champion and neither its model nor its recorded predictions can be used."""
    schema = spec.schema
    if version is None:
        served = as_served(holdout, schema, "no champion is registered")
        return served or constant(snapshot.train(), len(holdout), schema)
    try:
        model = load(version)
        source = f"version {version}"
        return score(model, holdout, schema, source=source, version=version, inputs=model.inputs, size=model.size)
    except UnusableModel as exc:
        why = str(exc)
    served = as_served(holdout, schema, f"version {version} {why}")
    return served or f"version {version} {why}, and too few holdout rows hold its predictions"


def hold_contest(
    spec: JobSpec, champion: Side | str, challenger: Side, holdout: pl.DataFrame, earlier: pl.DataFrame | None = None
) -> Contest:
    """Both evaluations and every gate but the smoke test; that of a challenger which is too good where rows `earlier`
    than the holdout are given, those that it was trained on. Raises ValueError for a metric that does not fit."""
    gates, schema = spec.config.gates, spec.schema
    metric = quality_metric(schema, gates.metric)
    if isinstance(champion, str):
        labels = labels_array(holdout, schema)
        scores = {name: measure(name, labels, challenger.predictions, schema) for name in METRICS[schema.task]}
        alone = Evaluation(challenger.source, None, len(holdout), scores, {}, challenger.latency, challenger.inputs)
        failed = GateResult("quality", False, None, gates.margin, f"the champion cannot be measured: {champion}")
        return Contest(None, alone, None, (failed,))
    champion, challenger, holdout = answered_by_both(champion, challenger, holdout)
    theirs, ours, comparison = evaluate(
        champion,
        challenger,
        holdout,
        schema,
        metric=metric,
        confidence=gates.confidence,
        resamples=gates.bootstrap,
        seed=spec.config.seed,
    )
    match = Match(champion, challenger, holdout, labels_array(holdout, schema), schema, metric)
    asked_for = safeguards(match, gates, spec.config.seed)
    if earlier is not None and gates.too_good == "ask":
        asked_for.append(too_good(match, earlier))
    judged = judge(theirs, ours, comparison, schema, gates, renewing=_renewing(spec))
    return Contest(theirs, ours, comparison, (*judged, *asked_for))


def _renewing(spec: JobSpec) -> bool:
    """A follow-up's challenger need not be better on the holdout: what is promoted is trained on the holdout too."""
    return spec.config.gates.renew and spec.config.refit and spec.request.trigger is TriggerKind.FOLLOW_UP
