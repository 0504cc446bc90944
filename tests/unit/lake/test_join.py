"""Labels meet predictions, whatever the order they come in."""

from __future__ import annotations

import polars as pl
from hypothesis import given, settings
from hypothesis import strategies as st

from monitor.lake.join import first_predictions, join, last_labels, last_outcomes
from tests.builders import MINUTE, NOW, label_rows, prediction_rows


def test_first_of_two_predictions_with_one_id_wins() -> None:
    later = prediction_rows(["a"], NOW + MINUTE, version="later")
    earlier = prediction_rows(["a"], NOW, start=7, version="earlier")
    assert first_predictions(pl.concat([later, earlier]))["model_version"].to_list() == ["earlier"]
    again = prediction_rows(["a"], NOW, start=8, version="again")
    assert first_predictions(pl.concat([again, earlier]))["model_version"].to_list() == ["earlier"]


labels = st.lists(st.tuples(st.sampled_from("ab"), st.sampled_from("xyz"), st.integers(0, 3)), min_size=1, max_size=8)


@settings(deadline=None)
@given(labels, st.randoms())
def test_last_label_does_not_depend_on_order(given_labels: list[tuple[str, str, int]], random) -> None:  # type: ignore[no-untyped-def]
    rows = [(i, text, NOW + minute * MINUTE) for i, text, minute in given_labels]
    shuffled = random.sample(rows, len(rows))
    one, other = (last_labels(label_rows(r)).sort("prediction_id").select("prediction_id", "label", "ts")
                  for r in (rows, shuffled))  # fmt: skip
    assert one.equals(other)
    for i, text, ts in one.iter_rows():
        assert (ts, text) == max((t, x) for j, x, t in rows if j == i)


def test_join_gives_outcomes_and_the_labels_left_over() -> None:
    predictions = prediction_rows(["a", "b", "a"])
    outcomes, left = join(predictions, label_rows([("a", "1", NOW + MINUTE), ("c", "0", NOW)]))
    assert outcomes.select("prediction_id", "ts", "label", "label_ts").rows() == [("a", NOW, "1", NOW + MINUTE)]
    assert left["prediction_id"].to_list() == ["c"]


def test_corrected_outcome_replaces_the_earlier_one() -> None:
    predictions = prediction_rows(["a"])
    outcomes = [join(predictions, label_rows([("a", text, NOW + n * MINUTE)]))[0] for n, text in enumerate("010")]
    for order in ([0, 1, 2], [2, 1, 0], [1, 2, 0]):
        assert last_outcomes(pl.concat([outcomes[i] for i in order]))["label_ts"].to_list() == [NOW + 2 * MINUTE]


def test_no_outcomes_at_all_is_no_outcome() -> None:
    assert last_outcomes(pl.DataFrame()).height == 0
