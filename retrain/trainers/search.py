"""Search for hyperparameters by successive halving, inside a trainer's time limit.

Invariant: the ordinary settings win unless others are better on later rows, in time; what was found is on record
(`search.json` in the trainer's folder), so that the same job can be rebuilt though time decided.

Successive halving: Jamieson & Talwalkar 2016, as scikit-learn's HalvingRandomSearchCV. Candidates are fitted on few
rows, the best third on three times as many, and so on; always on earlier rows, judged on later ones.
"""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from retrain.isolation import die_with_parent
from retrain.train.trainer import SEARCH

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

    import pandas as pd

    from retrain.train.trainer import TrainContext

FOLDS = 3
FACTOR = 3
FIXED_COST = 0.1
"""Share of a fit's time that fewer rows do not save."""
DOUBT = 0.01
"""A score nearer to 0 counts as this: one surprise must not decide."""


def search(
    model: Any,
    space: Mapping[str, Any],
    frame: pd.DataFrame,
    labels: pd.Series,
    context: TrainContext,
    candidates: int = 20,
    share: float = 0.5,
) -> Any:
    """`model` fitted on all rows, with the best settings of `space` (by parameter: a list or a scipy distribution) or
    with its own."""
    from sklearn.base import clone

    found = find(model, space, frame, labels, context, candidates, share)
    return clone(model).set_params(**found).fit(frame, labels)


def find(
    model: Any,
    space: Mapping[str, Any],
    frame: pd.DataFrame,
    labels: pd.Series,
    context: TrainContext,
    candidates: int = 20,
    share: float = 0.5,
) -> dict[str, Any]:
    """Settings that are better than the model's own, {} when none are or `share` of the time left is over. The search
    happens in a process of its own: a candidate that takes too long or too much memory ends the search alone."""
    if context.found is not None:
        return dict(context.found)
    started = time.monotonic()
    budget = share * context.seconds_left
    processes = multiprocessing.get_context("spawn")
    ours, theirs = processes.Pipe(duplex=False)
    job = (theirs, model, dict(space), frame, labels, context.seed, candidates, budget)
    process = processes.Process(target=_search, args=job, daemon=True)
    process.start()
    theirs.close()
    try:
        came = ours.poll(None if math.isinf(budget) else budget)
        told: dict[str, Any] = ours.recv() if came else {"ended": f"not done after {budget:.0f} s"}
    except EOFError:
        process.join()
        told = {"ended": f"its process ended with {process.exitcode}"}
    finally:
        process.kill()
        process.join()
    if told.get("parameters") and told["fit_seconds"] > (1 - share) * context.seconds_left:
        told |= {"parameters": {}, "ended": f"the best settings take {told['fit_seconds']:.0f} s to fit: too long"}
    told = {"parameters": {}, "seconds": round(time.monotonic() - started, 1), **told}
    text = json.dumps(told, indent=2)
    (context.work_dir / SEARCH).write_text(text)
    print(f"search for hyperparameters: {text}", flush=True)  # noqa: T201 - into the trainer's log
    return dict(told["parameters"])


def _search(
    answer: Connection,
    model: Any,
    space: dict[str, Any],
    frame: pd.DataFrame,
    labels: pd.Series,
    seed: int,
    candidates: int,
    budget: float,
) -> None:
    """The process of its own: sends one dict, with the text `ended` and, if there is something better, `parameters`."""
    die_with_parent()
    try:
        answer.send(_halving(model, space, frame, labels, seed, candidates, budget))
    except Exception as exc:  # noqa: BLE001 - the user's estimator; its ordinary settings are the result then
        answer.send({"ended": f"raised {type(exc).__name__}: {exc}"[:300]})


def _halving(
    model: Any, space: dict[str, Any], frame: pd.DataFrame, labels: pd.Series, seed: int, candidates: int, budget: float
) -> dict[str, Any]:
    from sklearn.base import clone
    from sklearn.experimental import enable_halving_search_cv  # noqa: F401 - scikit-learn's switch
    from sklearn.model_selection import HalvingRandomSearchCV, TimeSeriesSplit

    started, folds = time.monotonic(), TimeSeriesSplit(FOLDS)
    with _workers() as workers:
        ordinary, seconds, _ = _judge(model, frame, labels, folds)
        left = budget - (time.monotonic() - started)
        count = _affordable(candidates, seconds, left, workers)
        if count < 2:
            return {"ended": f"no time for a search: {seconds:.1f} s a fit, {left:.0f} s left", "candidates": 0}
        halving = HalvingRandomSearchCV(
            model, space, n_candidates=count, factor=FACTOR, min_resources="exhaust", cv=folds, scoring=_score,
            refit=False, random_state=seed, n_jobs=None,
        )  # fmt: skip
        halving.fit(frame, labels)
        best = {name: _plain(name, value) for name, value in halving.best_params_.items()}
        found, _, fit_seconds = _judge(clone(model).set_params(**best), frame, labels, folds)
    told = {"candidates": count, "workers": workers, "scores": {"ordinary": ordinary, "best": found}, "best": best}
    if not found > ordinary:
        return {**told, "ended": "nothing better than the ordinary settings"}
    return {**told, "ended": "found better settings", "parameters": best, "fit_seconds": fit_seconds}


def _judge(model: Any, frame: pd.DataFrame, labels: pd.Series, folds: Any) -> tuple[float, float, float]:
    """(score, seconds per fold, seconds that a fit on all rows takes): folds hold half of the rows on average."""
    from sklearn.model_selection import cross_validate

    results = cross_validate(model, frame, labels, cv=folds, scoring=_score, error_score="raise")
    fit, judged = float(results["fit_time"].mean()), float(results["score_time"].mean())
    return float(results["test_score"].mean()), fit + judged, 2 * fit


def _score(model: Any, frame: pd.DataFrame, labels: pd.Series) -> float:
    return -loss(model, frame, labels)


def loss(model: Any, frame: pd.DataFrame, labels: pd.Series) -> float:
    """Mean absolute error of numbers, log loss of scores, share of wrong classes of a model without scores."""
    import numpy as np
    from sklearn.base import is_classifier

    if not is_classifier(model):
        return float(np.abs(model.predict(frame) - labels.to_numpy()).mean())
    if not hasattr(model, "predict_proba"):
        return float((model.predict(frame) != labels.to_numpy()).mean())
    column = {c: n for n, c in enumerate(model.classes_)}
    scores = model.predict_proba(frame)
    given = [scores[row, column[label]] if label in column else 0.0 for row, label in enumerate(labels)]
    return float(-np.log(np.clip(given, DOUBT, 1.0)).mean())


def _affordable(candidates: int, seconds: float, left: float, workers: int) -> int:
    """As many candidates as can be tried in the time that is left, a third of it kept in reserve."""
    while candidates >= 2:
        rounds = 1 + math.floor(math.log(candidates, FACTOR) + 1e-9)
        needed = 0.0
        for n in range(rounds):
            share = FIXED_COST + (1 - FIXED_COST) * FACTOR ** (n + 1 - rounds)
            needed += math.ceil(candidates / FACTOR**n) * FOLDS * seconds * share / workers
        if needed + FOLDS * seconds <= left * 2 / 3:
            return candidates
        candidates -= 1
    return 0


def _plain(name: str, value: Any) -> Any:
    """As JSON has it, or the job could not be rebuilt."""
    value = value.item() if hasattr(value, "item") else value
    if value is not None and not isinstance(value, str | int | float | bool):
        raise TypeError(f"values of {name} must be numbers, texts, true or false, not {type(value).__name__}")
    return value


@contextmanager
def _workers() -> Iterator[int]:
    """How many candidates are fitted at once: one here (boosting uses all processors), on Ray one a free processor."""
    if not (address := os.environ.get("RAY_ADDRESS")):
        yield 1
        return
    import joblib
    import ray
    from ray.util.joblib import register_ray

    ray.init(address, log_to_driver=False)
    register_ray()
    try:
        free = max(1, int(ray.available_resources().get("CPU", 0)))
        with joblib.parallel_config(backend="ray", n_jobs=free):
            yield free
    finally:
        ray.shutdown()
