"""An empty control database."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from monitor.decide.ledger import Ledger
from retrain.control.store import Store, open_store


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = open_store(f"sqlite:///{tmp_path / 'control.db'}")
    yield store
    store.engine.dispose()


@pytest.fixture
def ledger(store: Store) -> Ledger:
    ledger = Ledger(store.engine)
    ledger.create()
    return ledger
