"""Which configuration was in force: noted when it is another one, with what changed, without secrets."""

from __future__ import annotations

from pathlib import Path

from monitor.config.configured import note_configuration
from monitor.config.sections import Config
from retrain.control import audit
from retrain.control.database import create_tables, open_engine
from tests.builders import HOUR, NOW

MODEL = {"task": "regression", "features": {"a": "number"}}


def test_another_configuration_is_noted_with_what_changed(tmp_path: Path) -> None:
    engine = open_engine(f"sqlite:///{tmp_path / 'control.db'}")
    create_tables(engine)
    first = Config.model_validate({"models": {"fraud": MODEL}, "http": {"token": {"env": "SECRET_TOKEN"}}})
    second = Config.model_validate(
        {
            "models": {"fraud": {**MODEL, "retrain": {"pace": 9}, "metrics": ["mae"]}},
            "http": {"token": {"env": "OTHER_TOKEN"}},
        }
    )
    for config in (first, first, second, first):
        note_configuration(engine, config, NOW + HOUR)
    noted = list(audit.entries(engine))
    assert [e.subject for e in noted] == [first.digest(), second.digest(), first.digest()]
    assert noted[0].body["config"]["models"]["fraud"]["retrain"]["pace"] == 6
    assert noted[1].detail == (
        "http.token.env: 'SECRET_TOKEN' -> 'OTHER_TOKEN'; models.fraud.metrics: [] -> absent; "
        "models.fraud.metrics[0]: absent -> 'mae'; models.fraud.retrain.pace: 6 -> 9"
    )
