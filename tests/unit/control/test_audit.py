"""The audit log: one chain, whoever appends; what was changed, removed or cut off is found."""

from __future__ import annotations

import hashlib
import json
import math
import threading
from datetime import timedelta, timezone
from pathlib import Path

import pytest
from sqlalchemy import Engine, text
from sqlalchemy.exc import DBAPIError

from retrain.control import audit
from retrain.control.audit import AuditKind, Entry, Verified
from retrain.control.database import create_tables, open_engine, writing
from retrain.terms.errors import TransientError
from tests.builders import HOUR, NOW
from tests.postgres import PostgresServer

KIND = AuditKind.ALIAS_MOVED


def entry(subject: str = "champion", model: str = "fraud", hours: int = 0) -> Entry:
    body = {"version": "2", "share": 0.1 + 0.2, "größe": [1, None, {"b": True, "a": '"x"\n'}]}
    return Entry(NOW + hours * HOUR, KIND, model, "ada", subject, "bessere Größe", body)


def append(engine: Engine, *entries: Entry) -> None:
    for each in entries:
        with writing(engine) as connection:
            audit.append(connection, each)


def test_entries_come_back_as_they_were_appended(engine: Engine) -> None:
    append(engine, entry("a"), entry("b", hours=1))
    first, second = audit.entries(engine)
    assert (first.number, first.previous, second.number, second.previous) == (1, audit.BEGINNING, 2, first.digest)
    assert (first.at, first.kind, first.actor, first.subject, first.body) == (NOW, KIND, "ada", "a", entry().body)
    assert audit.verify(engine, {}) == Verified(2, second.digest)


def test_empty_log_is_whole(engine: Engine) -> None:
    assert audit.verify(engine, {}) == Verified(0, audit.BEGINNING)


def test_digest_can_be_recomputed_from_the_exported_json_alone(engine: Engine) -> None:
    append(engine, *(entry(str(n)) for n in range(3)))
    previous = audit.BEGINNING
    for line in [json.dumps(e.to_json()) for e in audit.entries(engine)]:
        found = json.loads(line)
        digest, before = found.pop("digest"), found.pop("previous")
        covered = json.dumps(found, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        assert (before, digest) == (previous, hashlib.sha256(f"{previous} {covered}".encode()).hexdigest())
        previous = digest


def test_zone_of_the_clock_does_not_matter(engine: Engine) -> None:
    east = timezone(timedelta(hours=5, minutes=30))
    append(engine, Entry(NOW.astimezone(east), KIND, "fraud", "ada", "a", ""))
    assert audit.verify(engine, {}).problem == ""


def test_numbers_that_json_does_not_have_become_words(engine: Engine) -> None:
    append(engine, Entry(NOW, KIND, "fraud", "ada", "a", "", {"ratio": math.inf, "values": [math.nan]}))
    assert next(audit.entries(engine)).body == {"ratio": "inf", "values": ["nan"]}
    assert audit.verify(engine, {}).problem == ""


def test_entry_is_gone_with_the_transaction_it_is_part_of(engine: Engine) -> None:
    append(engine, entry("kept"))
    with pytest.raises(RuntimeError), writing(engine) as connection:
        audit.append(connection, entry("undone"))
        raise RuntimeError
    append(engine, entry("next"))
    assert [(e.number, e.subject) for e in audit.entries(engine)] == [(1, "kept"), (2, "next")]
    assert audit.verify(engine, {}).problem == ""


def test_many_writers_make_one_chain(engine: Engine) -> None:
    def work(name: str) -> None:
        append(engine, *(entry(f"{name}{n}") for n in range(10)))

    threads = [threading.Thread(target=work, args=[name]) for name in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert audit.verify(engine, {}).problem == ""
    assert audit.verify(engine, {}).number == 40
    subjects = [e.subject for e in audit.entries(engine)]
    assert all([s for s in subjects if s[0] == name] == [f"{name}{n}" for n in range(10)] for name in "abcd")


def test_pages_are_read_on(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    append(engine, *(entry(str(n), "fraud" if n % 2 else "churn") for n in range(7)))
    monkeypatch.setattr(audit, "_PAGE", 2)
    assert [e.number for e in audit.entries(engine)] == [1, 2, 3, 4, 5, 6, 7]
    assert [e.number for e in audit.entries(engine, model="fraud")] == [2, 4, 6]


def test_entries_of_a_model_and_a_time_with_those_about_all(engine: Engine) -> None:
    append(engine, entry("a"), entry("b", "churn", 1), entry("c", "", 2), entry("d", hours=3))
    found = audit.entries(engine, model="fraud", since=NOW + HOUR, until=NOW + 3 * HOUR)
    assert [e.subject for e in found] == ["c"]


def test_newest_of_a_kind(engine: Engine) -> None:
    append(engine, entry("a"), entry("b"))
    found = audit.newest(engine, KIND)
    assert found is not None
    assert found.subject == "b"
    assert audit.newest(engine, AuditKind.CONFIGURED) is None


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE audit_log SET actor = 'nobody'",
        "DELETE FROM audit_log",
        "DELETE FROM audit_head",
        "UPDATE audit_head SET number = 0",
    ],
)
def test_database_refuses_to_change_what_was_written(engine: Engine, statement: str) -> None:
    append(engine, entry("a"))
    with pytest.raises(DBAPIError, match="append-only"), engine.begin() as connection:
        connection.execute(text(statement))
    assert audit.verify(engine, {}).number == 1


@pytest.mark.parametrize(
    ("statements", "problem"),
    [
        (["UPDATE audit_log SET detail = 'else' WHERE number = 2"], "entry 2 (2026-03-02 12:00 UTC) was changed"),
        (["UPDATE audit_log SET actor = 'eve', digest = 'd' WHERE number = 2"], "entry 2 (2026-03-02 12:00 UTC) was"),
        (["DELETE FROM audit_log WHERE number = 2"], "entries 2 to 2 are missing"),
        (["DELETE FROM audit_log WHERE number = 3"], "entries 3 to 3 are missing at the end"),
        (["DELETE FROM audit_log"], "entries 1 to 3 are missing at the end"),
        (["UPDATE audit_log SET previous = 'x' WHERE number = 3"], "entry 3 does not follow entry 2"),
        (["UPDATE audit_log SET body = 'x' WHERE number = 3"], "the body of entry 3 is no JSON"),
        (['UPDATE audit_log SET body = \'{"a":1,"a":2}\' WHERE number = 3'], "the body of entry 3 is not as it was"),
        (["DELETE FROM audit_head"], "its head is missing"),
    ],
)
def test_what_was_changed_behind_the_databases_back_is_found(
    tmp_path: Path, statements: list[str], problem: str
) -> None:
    engine = open_engine(f"sqlite:///{tmp_path / 'control.db'}")
    create_tables(engine)
    append(engine, entry("a"), entry("b"), entry("c"))
    with writing(engine) as connection:
        for trigger in ("log_redacts_only", "log_no_delete", "log_no_replace", "head_no_delete", "head_forward"):
            connection.execute(text(f"DROP TRIGGER audit_{trigger}"))
        for statement in statements:
            connection.exec_driver_sql(statement)
    assert audit.verify(engine, {}).problem.startswith(problem)


def test_history_that_was_written_anew_is_found_by_a_digest_kept_elsewhere(engine: Engine, tmp_path: Path) -> None:
    append(engine, entry("a"), entry("b"))
    noted = {e.number: e.digest[:16] for e in audit.entries(engine)}
    assert audit.verify(engine, noted).problem == ""
    other = open_engine(f"sqlite:///{tmp_path / 'other.db'}")
    create_tables(other)
    append(other, entry("a"), entry("forged"))
    assert audit.verify(other, {}).problem == ""
    assert audit.verify(other, noted).problem == "entry 2 is not the one that was noted: history was rewritten"
    assert audit.verify(other, {5: "ab"}).problem == "entry 5 was noted and is not there: the end was cut off"
    assert audit.verify(engine, {1: ""}).problem, "an empty digest would be the beginning of any"


def test_sqlite_refuses_to_replace_an_entry(tmp_path: Path) -> None:
    engine = open_engine(f"sqlite:///{tmp_path / 'control.db'}")
    create_tables(engine)
    append(engine, entry("a"))
    columns = "number, at, model, kind, subject, detail, body, previous, digest, actor"
    copied = columns.replace("actor", "'eve'")
    with pytest.raises(DBAPIError, match="append-only"), engine.begin() as connection:
        connection.execute(text(f"INSERT OR REPLACE INTO audit_log ({columns}) SELECT {copied} FROM audit_log"))


def test_log_that_does_not_fit_its_head_is_no_record_known_before(tmp_path: Path) -> None:
    engine = open_engine(f"sqlite:///{tmp_path / 'control.db'}")
    create_tables(engine)
    append(engine, entry("a"))
    with writing(engine) as connection:
        for trigger in ("log_no_replace", "head_forward"):
            connection.execute(text(f"DROP TRIGGER audit_{trigger}"))
        connection.execute(text("UPDATE audit_head SET number = 0"))
    with pytest.raises(RuntimeError, match="an entry 1 that its head does not know"):
        append(engine, entry("b"))


def test_postgresql_does_not_wait_for_ever_for_a_writer_that_hangs(postgres: PostgresServer) -> None:
    engine = open_engine(postgres.create_database())
    create_tables(engine)
    with engine.connect() as connection:
        waits = {
            name: connection.scalar(text(f"SHOW {name}"))
            for name in ("lock_timeout", "idle_in_transaction_session_timeout")
        }
    assert waits == {"lock_timeout": "15s", "idle_in_transaction_session_timeout": "30s"}
    with engine.begin() as hangs:
        audit.lock(hangs)
        with pytest.raises(TransientError, match="lock timeout"), writing(engine) as connection:
            connection.execute(text("SET lock_timeout = '200ms'"))
            audit.append(connection, entry("a"))
    append(engine, entry("b"))
    engine.dispose()
