"""Causes that count only together: rules, new labels and a schedule, so many of them at once.

Invariant: pure; a combination of rules speaks of one version, and of what all its members have in common.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from monitor.rules.rules import Combination
from monitor.rules.triggers import Cause
from retrain.terms.request import TriggerKind


def combined(combination: Combination, rules: Sequence[Cause], others: Sequence[Cause]) -> Iterator[Cause]:
    """One cause for each version on which enough holds now. `rules`: of this combination's rules that fire; `others`:
    its new labels and its schedule, where they hold: true of every version."""
    by_version = {c.version: [r for r in rules if r.version == c.version] for c in rules} or {None: []}
    for version in sorted(by_version, key=str):
        if len(causes := [*by_version[version], *others]) >= combination.at_least:
            yield _together(combination, by_version[version], causes)


def _together(combination: Combination, rules: Sequence[Cause], causes: Sequence[Cause]) -> Cause:
    """What they have in common: things are amiss since the last of the rules began to fire."""
    reason = f"combination {combination.name}: " + "; ".join(c.reason for c in causes)
    also = [c.trigger.value for c in causes if c.trigger is not TriggerKind.RULE]
    evidence = {"rule": combination.name, "also": also} if also else {"rule": combination.name}
    if not rules:
        occasion = "/".join([combination.name, *(c.occasion for c in causes)])
        return replace(causes[0], occasion=occasion, reason=reason, evidence=evidence)
    newest = max(rules, key=lambda c: str(c.evidence["window_end"]))
    sinces = [str(c.evidence["since"]) for c in rules if c.evidence["since"]]
    values = {str(c.evidence["rule"]): c.evidence["value"] for c in rules}
    return replace(
        newest,
        occasion=f"{newest.version}/{combination.name}/{newest.evidence['window_end']}",
        reason=reason,
        evidence={**newest.evidence, **evidence, "value": None, "rules": values, "since": max(sinces, default=None)},
        since=max((c.since for c in rules if c.since), default=None),
        windows_amiss=min(c.windows_amiss for c in rules),
    )
