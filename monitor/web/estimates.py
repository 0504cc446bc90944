"""How the newest estimate turned out once its labels came: in numbers and in words.

Invariant: pure. An estimate is made without labels, under the assumption that inputs mean what they meant in the
reference; an error beyond its interval speaks against that.
"""

from __future__ import annotations

from typing import Any

import polars as pl

from monitor.rules.measurement import Measure
from monitor.web.series import iso


def estimation(frame: pl.DataFrame, metric: str) -> dict[str, Any] | None:
    """The newest estimation error of `metric`; None before there is one.

    `value` is in the metric's units, positive where the performance turned out worse; `lower` and `upper` bound its
    95 % interval. `outside`: the interval does not hold zero. `final` is false while labels still come.
    """
    if not frame.height:
        return None
    wanted = (pl.col("measure") == Measure.ESTIMATION_ERROR.value, pl.col("metric") == metric, pl.col("segment") == "")
    found = frame.filter(*wanted, pl.col("value").is_not_null())
    if not found.height:
        return None
    newest = found.row(-1, named=True)
    value, lower, upper = newest["value"], newest["lower"], newest["upper"]
    outside = lower is not None and not lower <= 0 <= upper
    return {
        "metric": metric,
        "version": newest["model_version"],
        "window_end": iso(newest["window_end"]),
        "value": value,
        "lower": lower,
        "upper": upper,
        "outside": outside,
        "final": newest["final"],
        "text": in_words(value, outside=outside),
    }


def in_words(value: float, *, outside: bool) -> str:
    """`turned out 0.04 worse than estimated: outside the estimate's interval, what inputs mean may have changed`."""
    by = f"{abs(value):.2g}"
    if float(by) == 0:
        turned_out = "turned out as estimated"
    else:
        turned_out = f"turned out {by} {'worse' if value > 0 else 'better'} than estimated"
    if outside:
        return f"{turned_out}: outside the estimate's interval, what inputs mean may have changed"
    return f"{turned_out}: within the estimate's interval"
