"""Rows that nothing should be learned from, each with its own words; and rows that are fine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pytest

from retrain.config.settings import ValidationConfig
from retrain.data.validation import Check, Level, failures, report, validate
from retrain.terms.schema import ModelSchema
from tests.retrain_data import BINARY, MULTICLASS, REGRESSION, outcomes

ROWS = outcomes(3000)


def checked(
    rows: pl.DataFrame = ROWS, live: pl.DataFrame | None = None, schema: ModelSchema = BINARY, **config: Any
) -> tuple[Check, ...]:
    cut = int(len(rows) * 0.75)
    return validate(rows[:cut], rows[cut:], live, schema, ValidationConfig.model_validate(config))


def amiss(*given: Any, **config: Any) -> dict[str, tuple[Level, str]]:
    """What is not fine, by check and feature."""
    found = checked(*given, **config)
    return {f"{c.name} {c.subject}".strip(): (c.level, c.detail) for c in found if c.level is not Level.OK}


@pytest.mark.parametrize("schema", [BINARY, MULTICLASS, REGRESSION])
def test_ordinary_rows_pass_every_check_with_its_numbers(schema: ModelSchema) -> None:
    found = checked(outcomes(3000, schema=schema), ROWS, schema)
    assert failures(found) == []
    assert [c.name for c in found] == ["missing", "range", "duplicates", "labels", "leakage"]
    assert found[0].detail.endswith("and of the newest 3000 predictions")


def test_a_feature_that_is_gone_fails_and_one_that_is_often_gone_need_not() -> None:
    amount = pl.when(pl.int_range(pl.len()) % 20 > 0).then(None).otherwise(pl.col("feature_amount"))
    rows = ROWS.with_columns(feature_amount=amount)
    assert amiss(rows) == {}
    level, detail = amiss(rows, max_missing=0.9)["missing amount"]
    assert (level, detail) == (Level.FAILED, "missing in 95.0% of 3000 rows, 90% is allowed")
    assert "missing amount" in amiss(ROWS.with_columns(feature_amount=pl.lit(None, pl.Float64)))


def test_what_is_missing_when_the_model_is_asked_is_found_in_the_newest_predictions() -> None:
    gone = ROWS.with_columns(feature_amount=pl.lit(None, pl.Float64))
    level, detail = amiss(ROWS, gone)["missing amount"]
    assert level is Level.FAILED
    assert detail == "missing in 100.0% of the newest 3000 predictions: it is not there when it is asked"
    assert "missing amount" in amiss(ROWS, ROWS.drop("feature_amount"))
    often = ROWS.with_columns(
        feature_amount=pl.when(pl.int_range(pl.len()) % 4 > 0).then(None).otherwise(pl.col("feature_amount"))
    )
    assert amiss(ROWS, often)["missing amount"][0] is Level.ODD
    assert amiss(ROWS, gone[:1000]) == {}, "too few to say"


def test_numbers_out_of_their_range_and_infinite_ones_fail() -> None:
    assert amiss(ROWS, ranges={"amount": (-10, 10)}) == {}
    level, detail = amiss(ROWS, ranges={"amount": (0, 10)})["range amount"]
    assert level is Level.FAILED
    assert "% of 3000 values are outside 0 to 10, such as -" in detail
    infinite = pl.when(pl.int_range(pl.len()) % 50 == 0).then(np.inf).otherwise(pl.col("feature_amount"))
    rows = ROWS.with_columns(feature_amount=infinite)
    assert "range amount" in amiss(rows)
    assert amiss(rows, max_out_of_range=0.05) == {}


def test_rows_that_repeat_each_other_fail() -> None:
    rows = pl.concat([ROWS[:100]] * 30)
    assert amiss(rows, leakage="off") == {}, "few categories repeat themselves by nature"
    level, detail = amiss(rows, max_duplicates=0.95)["duplicates"]
    assert (level, detail) == (Level.FAILED, "96.7% of 3000 rows repeat another, 95% is allowed")
    assert "duplicates" not in amiss(rows, max_duplicates=0.97)


def test_classes_without_rows_fail_where_there_are_two_and_are_odd_where_there_are_more() -> None:
    few = pl.when(pl.int_range(pl.len()) < 5).then(pl.lit("fraud")).otherwise(pl.lit("ok"))
    level, detail = amiss(ROWS.with_columns(label=few))["labels"]
    assert (level, detail) == (Level.FAILED, "fewer than 10 training rows: fraud 5")
    assert "labels" not in amiss(ROWS.with_columns(label=few), min_class_rows=5)
    rows = outcomes(3000, schema=MULTICLASS)
    level, detail = amiss(rows.filter(pl.col("label") != "mid"), None, MULTICLASS)["labels"]
    assert (level, detail) == (Level.ODD, "fewer than 10 training rows: mid 0")
    flat = outcomes(3000, schema=REGRESSION).with_columns(label=pl.lit(3.0))
    assert amiss(flat, None, REGRESSION)["labels"][0] is Level.FAILED


def test_a_feature_that_is_the_label_fails_and_one_that_nearly_is_is_said() -> None:
    copy = pl.when(pl.col("label") == "fraud").then(1.0).otherwise(0.0)
    level, detail = amiss(ROWS.with_columns(feature_amount=copy))["leakage amount"]
    assert level is Level.FAILED
    assert detail.endswith(": is it known when the model is asked?")
    assert amiss(ROWS.with_columns(feature_amount=copy), leakage="warn")["leakage amount"][0] is Level.ODD
    assert "leakage amount" not in amiss(ROWS.with_columns(feature_amount=copy), leakage="off")
    noise = pl.Series(np.random.default_rng(0).normal(0, 0.3, len(ROWS)))
    level, detail = amiss(ROWS.with_columns(feature_amount=copy + noise))["leakage amount"]
    assert level is Level.ODD
    assert detail.startswith("tells the label almost by itself, AUC ")


def no_negative_amounts(frame: pd.DataFrame, labels: Any) -> list[str]:
    assert list(frame.columns) == ["amount", "kind", "new"]
    negative = int((frame["amount"] < 0).sum())
    return [f"{negative} amounts are negative"] if negative and len(labels) else []


def raises(frame: pd.DataFrame, labels: Any) -> list[str]:
    raise KeyError("nothing of the kind")


def test_a_team_s_own_check_says_what_is_wrong_and_one_that_raises_has_failed() -> None:
    name = "tests.unit.data.test_validation:no_negative_amounts"
    (wrong,) = failures(checked(functions=[name]))
    assert wrong.startswith(f"function: {name}: ")
    assert wrong.endswith(" amounts are negative")
    positive = ROWS.with_columns(pl.col("feature_amount").abs())
    assert failures(checked(positive, functions=[name])) == []
    assert "raised KeyError" in failures(checked(functions=["tests.unit.data.test_validation:raises"]))[0]
    assert "raised ModuleNotFoundError" in failures(checked(functions=["no_such_module:check"]))[0]


def test_the_report_begins_with_what_failed() -> None:
    text = report(checked(ranges={"amount": (0, 10)}), {"rows": "3000"})
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    assert lines[1].startswith("| failed | range | amount | ")
    assert lines[2].startswith("| ok | ")
    assert "- rows: 3000" in text


def test_checks_come_back_from_json() -> None:
    check = checked(ranges={"amount": (0, 10)})[1]
    assert check.to_json() == {
        "name": "range", "level": "failed", "detail": check.detail, "subject": "amount", "value": check.value,
        "limit": 0.01,
    }  # fmt: skip


def test_docs_example_of_a_function_runs() -> None:
    page = (Path(__file__).parents[3] / "docs" / "validation.md").read_text()
    code = page.split("```python\n")[1].split("```")[0]
    names: dict[str, Any] = {}
    exec(compile(code, "validation.md", "exec"), names)
    frame = pd.DataFrame({"amount": [1.0, -1.0], "currency": ["EUR", "USD"]})
    assert names["amounts_are_plausible"](frame, ["ok", "ok"]) == ["1 amounts are negative"]
