"""Trouble of the control database is told from bugs: it passes, and is waited for."""

from __future__ import annotations

import time

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from retrain.control.database import open_engine, writing
from retrain.terms.errors import TransientError
from tests.postgres import PostgresServer


def test_a_process_that_was_frozen_in_a_transaction_finds_trouble_and_no_bug(postgres: PostgresServer) -> None:
    engine = open_engine(postgres.create_database())
    with pytest.raises(TransientError), writing(engine) as connection:
        connection.execute(text("SET idle_in_transaction_session_timeout = '100ms'"))
        time.sleep(0.5)
        connection.execute(text("SELECT 1"))
    with writing(engine) as connection:
        assert connection.scalar(text("SELECT 1")) == 1
    engine.dispose()


def test_a_standby_is_trouble_and_a_missing_table_is_a_bug(postgres: PostgresServer) -> None:
    engine = open_engine(postgres.create_database())
    with pytest.raises(TransientError, match="read-only"), writing(engine) as connection:
        connection.execute(text("SET TRANSACTION READ ONLY"))
        connection.execute(text("CREATE TABLE t (a int)"))
    with pytest.raises(DBAPIError, match="does not exist"), writing(engine) as connection:
        connection.execute(text("SELECT * FROM nothing"))
    engine.dispose()
