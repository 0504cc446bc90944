"""bench/decisions: adapters detect and forget, tables say what the results hold, quiet rows are seeded."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from bench.decisions import policies, streams, tables
from bench.decisions.detectors import DETECTORS, Columns, ErrorDetector, Preset, Seen
from bench.decisions.policies import ANY, DRIFTD, EVERY, NEVER, SHARE, SLIDING, UNGATED
from bench.decisions.streams import RECORDED, Quiet, quiet_rows
from bench.doc import BEGIN, END, rewrite
from retrain.terms.schema import Feature, FeatureKind, ModelSchema, Task

SCHEMA = ModelSchema(
    "m", Task.BINARY, (Feature("a", FeatureKind.NUMBER), Feature("b", FeatureKind.CATEGORY)), ("0", "1"), "1"
)


def seen(errors: np.ndarray, number: int = 0, **sides: pl.DataFrame) -> Seen:
    return Seen(number, "1", sides.get("rows", pl.DataFrame()), sides.get("reference"), errors)


def wrong(share: float, rows: int, seed: int) -> np.ndarray:
    return (np.random.default_rng(seed).random(rows) < share).astype(float)


@pytest.fixture
def river() -> None:
    pytest.importorskip("river", reason="river is installed by `make bench-decisions`")


# -- detectors


@pytest.mark.usefixtures("river")
@pytest.mark.parametrize("name", DETECTORS)
def test_a_detector_asks_after_a_step_and_starts_anew_after_a_training(name: str) -> None:
    detector = ErrorDetector(name)
    assert not detector.asks(seen(wrong(0.05, 60, 1)))
    assert detector.asks(seen(np.ones(2000)))
    detector.reset()
    assert not detector.asks(seen(np.ones(20))), "what came before the training is forgotten"


@pytest.mark.usefixtures("river")
def test_a_detector_sees_nothing_in_a_window_without_labels() -> None:
    assert not ErrorDetector("ADWIN").asks(seen(np.array([])))


def test_an_unknown_detector_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="no detector 'EDDM'; there are ADWIN, DDM, KSWIN, PageHinkley"):
        ErrorDetector("EDDM")


# -- Evidently's preset


def table(shift: float, category: str = "x", rows: int = 300) -> pl.DataFrame:
    rng = np.random.default_rng(5)
    return pl.DataFrame({"feature_a": rng.normal(shift, 1, rows), "feature_b": [category, "y", "z"] * (rows // 3)})


def test_the_two_rules_of_the_preset_differ_in_how_many_columns_they_need() -> None:
    columns = Columns(SCHEMA)
    half, most, any_ = (Preset(columns, share, first="0") for share in (0.5, 0.6, None))
    one = seen(np.array([]), rows=table(3.0), reference=table(0.0))  # window 0: held against Evidently's own report
    assert [p.asks(one) for p in (half, most, any_)] == [True, False, True]
    assert columns.checked == 3
    none = seen(np.array([]), rows=table(0.0), reference=table(0.0))
    assert [p.asks(none) for p in (half, most, any_)] == [False, False, False]


def test_a_column_without_values_is_no_drifted_column() -> None:
    rows = table(0.0).with_columns(feature_a=pl.lit(None, pl.Float64))
    assert not Preset(Columns(SCHEMA), None, first="0").asks(seen(np.array([]), rows=rows, reference=table(0.0)))


def test_a_version_without_reference_is_held_against_nothing() -> None:
    assert not Preset(Columns(SCHEMA), None, first="0").asks(seen(np.array([]), rows=table(3.0)))


# -- streams and policies


def test_quiet_rows_are_the_same_for_a_seed_and_no_others() -> None:
    stream = Quiet(4, 50, 3)
    first = quiet_rows(stream, 0)
    assert first.equals(quiet_rows(stream, 0))
    assert not first.equals(quiet_rows(stream, 1))
    assert first.shape == (2000 + 150, 5)
    assert first["label"].n_unique() == 2


def test_a_quiet_stream_has_the_windows_that_were_asked_for(tmp_path: Path) -> None:
    stream = Quiet(3, 40, 7)
    setting, history = streams.opened_quiet(stream, 0, tmp_path)
    windows = list(history.windows(setting.plan.windows.size))
    assert (len(windows), history.training_rows, history.rows) == (7, stream.training_rows, 280)


def test_on_quiet_rows_what_others_ask_for_is_counted_and_not_trained(tmp_path: Path) -> None:
    stage = policies.staged(*streams.opened_quiet(Quiet(3, 60, 6), 0, tmp_path))
    of = policies._policies(stage, lambda _what, _done: None, lambda: 0, act=False)
    found = {name: play() for name, play in of if name not in DETECTORS}  # they need river
    assert list(found) == [DRIFTD, SHARE, ANY]
    assert all(state == "noted" for _, state in found[ANY]["jobs"])
    assert len(found[ANY]["jobs"]) == sum(at <= 5.5 for at in found[ANY]["alarms"][ANY])
    assert found[ANY]["trainings"] == 0


def test_errors_come_in_the_order_of_their_labels() -> None:
    begin = datetime(2026, 1, 1, tzinfo=UTC)
    rows = pl.DataFrame(
        {
            "model_version": ["1"] * 4,
            "prediction": ["a", "b", "a", "b"],
            "label": ["a", "a", None, "a"],
            "label_ts": [begin + timedelta(hours=h) if h else None for h in (9, 2, None, 1)],
        }
    )
    errors = policies._errors(rows, Task.BINARY)
    came, waiting = policies._come([errors], begin + timedelta(hours=3))
    assert came["error"].to_list() == [1.0, 1.0]
    assert came["label_ts"].is_sorted()
    assert waiting[0]["error"].to_list() == [0.0]


# -- tables


def policy(performance: float, alarms: dict[str, list[float]], trainings: int = 0) -> dict:
    return {
        "trainings": trainings,
        "promoted": trainings,
        "performance": performance,
        "alarms": alarms,
        "jobs": [[1.0, "promoted"]] * trainings,
        "windows": [performance] * 20,
        "seconds": 1.0,
        "evidently_checked": 2,
        "measured_at": "then",
        "code": "c0de",
    }


@pytest.fixture
def results() -> dict:
    found = {
        "metric": "accuracy",
        "better": "higher",
        "windows": 20,
        "changes": [8.0, 12.0],
    }
    mine = {
        EVERY: policy(0.9, {}, 19),
        SLIDING: policy(0.7, {}, 19),
        NEVER: policy(0.5, {}),
        DRIFTD: policy(0.8, {"performance_drop": [3.0, 9.5], "features_drift": []}, 2),
        "ADWIN": policy(0.7, {"ADWIN": [12.25]}, 1),
    }
    quiet = {
        "metric": "accuracy",
        "better": "higher",
        "windows": 1000,
        "changes": [],
    }
    return {
        "SEA": {**found, "policies": mine},
        streams.QUIET[0].name: {**quiet, "policies": {DRIFTD: mine[DRIFTD]}},
    }


def test_the_table_names_the_way_the_alarms_and_the_delays(results: dict) -> None:
    driftd, adwin, never, sliding, every = tables.recorded_table(results)
    assert driftd == (
        "SEA (accuracy, more is better)", "driftd", "20", "2", "2", "0.800", "150%", "75%",
        "performance_drop 100.0; features_drift 0.0",
        "performance_drop 1.5, none; features_drift none, none",
        "performance_drop 1; features_drift 0",
    )  # fmt: skip
    assert adwin[1:] == ("ADWIN", "20", "1", "1", "0.700", "100%", "50%", "50.0", "none, 0.2", "0")
    assert never[-5:] == ("0%", "0%", "-", "-", "-")
    assert sliding[-5:] == ("100%", "50%", "-", "-", "-")
    assert every[-5:] == ("200%", "100%", "-", "-", "-")


def test_the_quiet_table_counts_alarms_and_retrains_per_thousand_windows(results: dict) -> None:
    [row] = tables.quiet_table(results)
    assert row[2:] == ("1000", "performance_drop 2.0; features_drift 0.0", "2.0")


def test_curves_are_in_tenths_of_the_stream(results: dict) -> None:
    rows = tables.curve(results["SEA"])
    assert len(rows) == 10
    assert rows[0] == ("1-2", "0.800", "0.700", "0.500", "0.700", "0.900")


def test_only_the_tables_of_the_doc_are_rewritten(results: dict, tmp_path: Path) -> None:
    doc = tmp_path / "doc.md"
    doc.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    kept = {"machine": {"python": "3.11", "libraries": {"river": "1"}}, "streams": results}
    rewrite(doc, tables.markdown(kept))
    text = doc.read_text()
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "old" not in text
    assert "### SEA: accuracy, more is better" in text
    rewrite(doc, tables.markdown(kept))
    assert doc.read_text() == text
    doc.write_text("no markers\n")
    with pytest.raises(ValueError, match="which are not there"):
        rewrite(doc, "new")


def test_results_of_different_code_are_not_shown_as_one(results: dict) -> None:
    kept = {"machine": {"python": "3.11", "libraries": {}}, "streams": results}
    assert "Code of driftd: c0de." in tables.markdown(kept)
    for policy in ("ADWIN", DRIFTD):  # driftd has a row on the quiet stream too
        results["SEA"]["policies"][policy] = {**results["SEA"]["policies"][policy], "code": "0ther"}
    said = "0ther: ADWIN, driftd (SEA); c0de: never, every window, sliding span, every window, driftd (quiet, "
    assert said in tables.markdown(kept)


def test_every_change_lies_in_its_stream_and_names_are_unique() -> None:
    assert len(streams.STREAMS) == len(RECORDED) + len(streams.QUIET)
    assert all(list(s.changes) == sorted(s.changes) for s in RECORDED)
    assert UNGATED in policies.POLICIES
