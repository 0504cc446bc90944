"""Labels meet predictions -> outcomes.

Invariant: pure. Of two predictions with one id the first wins (by ts, then arrival); of several labels the last by
ts wins, the greater one on a tie (as in `retrain.data.labelled_rows`). The result does not depend on the order in which
batches arrive, only on what has arrived.
"""

from __future__ import annotations

import polars as pl


def first_predictions(frame: pl.DataFrame) -> pl.DataFrame:
    """One row per prediction_id: the first delivered."""
    return frame.sort("ts", "source_offset").unique("prediction_id", keep="first", maintain_order=True)


def last_labels(labels: pl.DataFrame) -> pl.DataFrame:
    """One row per prediction_id: the label with the greatest ts."""
    return labels.sort("ts", "label").unique("prediction_id", keep="last", maintain_order=True)


def join(predictions: pl.DataFrame, labels: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Match `labels` (one per id) with `predictions`.

    Returns outcomes (prediction columns + `label`, `label_ts`) and the labels that found no prediction.
    """
    chosen = labels.select("prediction_id", "label", label_ts=pl.col("ts"))
    outcomes = first_predictions(predictions).join(chosen, on="prediction_id", how="inner", maintain_order="left")
    left = labels.join(outcomes.select("prediction_id"), on="prediction_id", how="anti")
    return outcomes, left


def last_outcomes(outcomes: pl.DataFrame) -> pl.DataFrame:
    """One row per prediction_id: corrected labels are later rows of the append-only table."""
    if not outcomes.height:
        return outcomes
    return outcomes.sort("label_ts", "label").unique("prediction_id", keep="last", maintain_order=True).sort("ts")
