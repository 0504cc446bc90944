"""Where people put secrets: refused in a configuration, gone from what is recorded and printed, never echoed."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import Engine, text

from monitor.base.errors import ConfigError
from monitor.cli import main
from monitor.config.configured import note_configuration
from monitor.config.loading import from_dict
from retrain.base.redaction import REDACTED, names_secret, redact, redacted, secrets_in
from retrain.control import audit
from retrain.control.audit import AuditKind, Entry
from retrain.control.database import create_tables, open_engine, writing
from retrain.terms.errors import Refused
from tests.builders import NOW

S = "Hunter2-s3cr3tValue"
"""The secret that must be found nowhere."""
JWT = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NSJ9.sig_Nature"
AZURE = "A" * 86 + "=="
ORCHESTRATOR = {
    "submit": {"method": "POST", "url": "https://o.example/run"},
    "status": {"url": "https://o.example/run/$run"},
    "state": "state",
    "succeeded": ["ok"],
    "failed": ["bad"],
}
RETRAIN = "models.fraud.retrain"
PLACES: list[tuple[str, Any]] = [
    *((f"lake.options.{name}", S) for name in (
        "aws_secret_access_key", "secret_access_key", "aws_session_token", "session_token", "token", "password",
        "AWS_SECRET_ACCESS_KEY", "azure_storage_account_key", "account_key", "access_key", "azure_storage_sas_token",
        "azure_storage_sas_key", "sas_key", "azure_client_secret", "client_secret", "bearer_token", "storage_key",
        "google_service_account_key", "service_account_key", "azure_storage_access_key", "master_key",
        "secretAccessKey",
    )),
    ("lake.options.endpoint", f"https://me:{S}@minio.example"),
    ("lake.options.connection", f"DefaultEndpointsProtocol=https;AccountName=a;AccountKey={S};EndpointSuffix=x"),
    ("lake.options.header", f"Authorization: Bearer {S}"),
    ("lake.options.proxy_url", f"http://user:{S}@proxy.example:3128"),
    ("lake.uri", f"s3://key:{S}@bucket/lake"),
    ("lake.uri", f"https://account.blob.core.windows.net/c?sv=2024&sig={S}"),
    *(("lake.options.secret_access_key", text) for text in (
        f"a${S}", f"{{{S}", f"<{S}", f"none-{S}", f"true-{S}", f"file:{S}-x", f"pa$${S}",
    )),
    *((f"lake.options.{name}", S) for name in ("secretkey", "accesskey", "aws_sse_customer_key_base64", "api_keys")),
    ("lake.uri", f"DefaultEndpointsProtocol=https;AccountKey={S}"),
    ("lake.options.password", [S]),
    ("mlflow.tracking_uri", f"postgresql://u:pa$${S}@db/x"),
    ("mlflow.tracking_uri", f"https://me:pa/{S}@h/x"),
    ("mlflow.tracking_uri", f"mssql+pyodbc:///?odbc_connect=DRIVER%3Dx%3BPWD%3D{S}"),
    ("mlflow.tracking_uri", f"https://me:{S}@mlflow.example"),
    ("mlflow.tracking_uri", f"https://{S}@mlflow.example"),
    ("mlflow.tracking_uri", f"https://mlflow.example/?api_key={S}"),
    ("mlflow.tracking_uri", f"postgresql://u:{S}@db/mlflow"),
    ("daemon.control_url", f"postgresql+psycopg://u:{S}@db/driftd"),
    ("daemon.control_url", f"postgresql+psycopg://u@db/driftd?password={S}"),
    ("daemon.control_url", f"postgresql+psycopg://u@db/driftd?sslmode=require&sslpassword={S}"),
    ("daemon.control_url", f"postgresql+psycopg:///?options=x&PASSWORD={S}"),
    ("webhooks", [{"name": "a", "url": f"https://hooks.slack.com/services/T0/B0/{S}"}]),
    ("webhooks", [{"name": "a", "url": f"https://discord.com/api/webhooks/1/{S}"}]),
    ("webhooks", [{"name": "a", "url": f"https://x.webhook.office.com/webhookb2/{S}"}]),
    ("webhooks", [{"name": "a", "url": f"https://prod-1.westeurope.logic.azure.com/workflows/x?sig={S}"}]),
    ("webhooks", [{"name": "a", "url": f"https://chat.googleapis.com/v1/spaces/a/messages?key=k&token={S}"}]),
    ("webhooks", [{"name": "a", "url": f"https://api.telegram.org/bot1:{S}/sendMessage"}]),
    ("webhooks", [{"name": "a", "url": "https://chat.example/hooks/x1y2z3a4b5c6d7e8f9g0"}]),
    ("webhooks", [{"name": "a", "url": "https://chat.example/in/x1y2z3a4b5c6d7e8f9g0h1"}]),
    ("webhooks", [{"name": "a", "url": f"https://{S}@h.example/x"}]),
    ("webhooks", [{"name": "a", "url": f"https://h.example/x?token={S}"}]),
    ("webhooks", [{"name": "a", "url": "https://h.example/x", "template": json.dumps({"api_key": S, "t": "$text"})}]),
    ("webhooks", [{"name": "a", "url": "https://h.example/x", "secret": S}]),
    ("openlineage", {"url": f"http://marquez:5000/api?api_key={S}"}),
    ("openlineage", {"url": f"http://u:{S}@marquez:5000/api"}),
    ("openlineage", {"url": "http://marquez:5000/api", "api_key": S}),
    ("grafana", {"url": f"https://u:{S}@grafana.example", "token": {"env": "PATH"}}),
    ("grafana", {"url": "https://grafana.example", "token": S}),
    ("http.token", S),
    ("http.token", {"env": S}),
    ("http.token", {"file": S}),
    ("source.kafka", {"bootstrap": ["k:9092"], "password": S}),
    ("source.kafka", {"bootstrap": [f"u:{S}@k:9092?password={S}"]}),
    ("engine.ray", {"address": "http://head:8265", "runtime_env": {"env_vars": {"API_TOKEN": S}}}),
    ("engine.ray", {"address": "http://head:8265", "runtime_env": {"env_vars": {"DSN": f"mysql://u:{S}@db/x"}}}),
    ("engine.ray", {"address": "http://head:8265", "runtime_env": {"pip": [f"--find-links=https://u:{S}@wheels.example"]}}),
    ("engine.ray", {"address": f"http://u:{S}@head:8265"}),
    (f"{RETRAIN}.command", ["train", f"--password={S}"]),
    (f"{RETRAIN}.command", ["train", "--api-key", S]),
    (f"{RETRAIN}.command", ["docker", "run", f"--env=API_TOKEN={S}", "image"]),
    (f"{RETRAIN}.command", ["docker", "run", "-e", f"DB_PASSWORD={S}", "image"]),
    (f"{RETRAIN}.command", ["curl", "-u", f"me:{S}", "x"]),
    (f"{RETRAIN}.command", ["curl", "-H", f"X-Api-Key: {S}", "x"]),
    (f"{RETRAIN}.command", ["sh", "-c", f"TOKEN={S} train"]),
    *((f"{RETRAIN}.command", command) for command in (
        ["sh", "-c", f"train --password {S}"], ["sh", "-c", f"train --api-key '{S}'"],
        ["sh", "-c", f"curl -u me:{S} x"],
        ["mysql", f"-p{S}"], ["sshpass", "-p", S, "ssh"], ["train", "--pass", S], ["train", f"--db_pass={S}"],
        ["curl", f"-ume:{S}"], ["curl", f"--user=me:{S}"], ["curl", "--proxy-user", f"me:{S}"], ["x", f"DB_PASS={S}"],
        ["x", f"FERNET_KEY={S}"], ["x", f"OPENAI_KEY={S}"], ["x", f"password: {S}"], ["x", f"password =  {S}"],
    )),
    (f"{RETRAIN}.command", f"train --password {S}"),
    (f"{RETRAIN}.environment", f"API_TOKEN {S}"),
    (f"{RETRAIN}.parameters", {"api_key": [S]}),
    (f"{RETRAIN}.parameters", {"api_key": {"value": S}}),
    (f"{RETRAIN}.gates", {"functions": [f"m:f?token={S}"]}),
    (f"{RETRAIN}.environment", [f"API_TOKEN={S}"]),
    (f"{RETRAIN}.parameters", {"api_key": S}),
    (f"{RETRAIN}.parameters", {"dsn": f"postgresql://u:{S}@db/x"}),
    (f"{RETRAIN}.parameters", {"jwt": JWT}),
    (f"{RETRAIN}.parameters", {"storage": AZURE}),
    (f"{RETRAIN}.card", {"owner": f"ask ann, password={S}"}),
    *((f"{RETRAIN}.orchestrator", {**ORCHESTRATOR, "submit": {**ORCHESTRATOR["submit"], **more}}) for more in (  # type: ignore[dict-item]
        {"headers": {"Authorization": f"Bearer {S}"}},
        {"headers": {"X-Auth": f"Basic {S}"}},
        {"headers": {"X-Custom": f"token={S}"}},
        {"url": f"https://o.example/run?token={S}"},
        {"url": f"https://u:{S}@o.example/run"},
        {"body": json.dumps({"conf": {"db_password": S}})},
        {"body": json.dumps({"env": [f"API_TOKEN={S}"]})},
        {"body": json.dumps({"env": [{"name": "API_TOKEN", "value": S}]})},
        {"body": json.dumps({"conf": json.dumps({"password": S})})},
        {"headers": {"X-Api-Key": f"Pa$${S}"}},
        {"headers": {"Authorization": f"Bearer abc${S}"}},
        {"url": f"https://u:pa$${S}@o.example/run"},
        {"url": f"https://u:pa/{S}@o.example/run"},
    )),
]  # fmt: skip


def document(place: str = "", value: Any = None) -> dict[str, Any]:
    found: dict[str, Any] = {
        "http": {"port": 0},
        "models": {"fraud": {"task": "binary", "classes": ["a", "b"], "features": {"x": "number"}}},
    }
    *path, last = place.split(".")
    at = found
    for part in path:
        at = at.setdefault(part, {})
    if last:
        at[last] = value
    return copy.deepcopy(found)


@pytest.mark.parametrize(("place", "value"), PLACES, ids=str)
def test_a_literal_secret_is_refused_by_its_place_and_not_echoed(place: str, value: Any, tmp_path: Path) -> None:
    secret = (
        S if S in json.dumps(value) else next(t for t in (JWT, AZURE, "x1y2z3a4b5c6d7e8f9g0") if t in json.dumps(value))
    )
    given = document(place, value)
    with pytest.raises(ConfigError) as told:
        from_dict(given)
    assert secret not in str(told.value)
    assert place.split(".")[-1].split("[")[0] in str(told.value) or place.split(".")[0] in str(told.value)
    path = tmp_path / "config.toml"
    path.write_text(tomli_w.dumps(given))
    for command in (["check"], ["run"]):
        done = CliRunner().invoke(main, ["--config", str(path), *command])
        assert done.exit_code == 2
        assert secret not in done.output


@pytest.mark.parametrize(("place", "value"), PLACES, ids=str)
def test_one_that_got_in_is_neither_recorded_nor_printed(place: str, value: Any) -> None:
    """As if the configuration had not been looked at: what 0.1.0 took, and what stands in texts."""
    if (
        place in ("http.token", "source.kafka")
        or value == f"API_TOKEN {S}"
        or "hooks/x1" in str(value)
        or "/in/x1" in str(value)
    ):
        return  # no configuration could hold it, or it has no shape of its own
    secret = next(t for t in (S, JWT, AZURE) if t in json.dumps(value))
    told = redacted(document(place, value))
    assert secret not in json.dumps(told)
    assert list(secrets_in(document(place, value)))
    assert redacted(told) == told
    assert not list(secrets_in(told))


@pytest.mark.parametrize(
    "fine",
    [
        "s3://bucket/lake", "abfss://container@account.dfs.core.windows.net/lake", "https://mlflow.example:5000/path?x=1",
        "postgresql+psycopg:///?service=driftd", "postgresql+psycopg://driftd@db/driftd?sslmode=require",
        "ssh://git@github.com/a/b", "http://h:8080/users/@me", "sqlite:////var/lib/driftd/control.db", "env:AWS_SECRET",
        "Bearer $TOKEN", "$API_KEY", "https://o.example/run?token=$TOKEN", "--password=$PASSWORD", "token=***",
        '{"api_key": "$KEY", "conf": {"rows": 5}}', "the token: expired", "monkey=5", "tokenizer=wordpiece",
        "balanced_accuracy 0.16, 1 in 43 windows by chance", "a" * 64, "d41d8cd98f00b204e9800998ecf8427e",
        "deadbeef-1234-5678-9abc-def012345678", "", "key=value", "file:///etc/passwd", "secret_name=driftd",
        "password_file=/run/x", "max_tokens=100", "2026-03-01T12:00:00Z",
        "country=de", "rule `drop`: above = 0.1", "https://github.com/driftd/driftd/blob/main/docs/runbook.md#work-that-fails",
    ],
)  # fmt: skip
def test_what_is_no_secret_stays_as_it_is(fine: str) -> None:
    assert redact(fine) == fine
    assert redacted({"detail": fine, "url": [fine]}) == {"detail": fine, "url": [fine]}


def test_names_that_mean_a_secret_and_names_that_speak_of_one() -> None:
    secret = (
        "aws_secret_access_key sessionToken X-Api-Key account_key sslpassword PGPASSWORD clientSecret sas pwd cookie"
    )
    other = "aws_access_key_id token_url password_file tokenizer max_tokens key primary_key keyboard secret_name"
    assert [n for n in secret.split() if not names_secret(n)] == []
    assert [n for n in other.split() if names_secret(n)] == []
    assert names_secret("sig", in_query=True)
    assert not names_secret("sig")


FINE = [
    *(("models.fraud.features", dict.fromkeys(names, "number")) for names in (
        ["authorization_amount", "is_authorization", "device_token", "has_password", "password_age", "cookie_age"],
        ["account_key", "client_key", "license_key", "subscription_key", "secrets", "service_account_age", "token"],
    )),
    ("models.fraud.classes", ["bearer certificate1234", "Basic Materials2024", "token=abcdef1"]),
    ("models.fraud.segments", ["auth_token"]),
    (f"{RETRAIN}.card", {"purpose": "a basic classifier for claims", "limits": "Basic assumptions only"}),
    (f"{RETRAIN}.parameters", {"max_tokens": 5000, "pad_token": "[PAD]", "token_pattern": "\\w+", "tokenizer": "bert"}),
    (f"{RETRAIN}.parameters", {"kind": "basic embedding", "filter": "authorization = approved"}),
    *((f"{RETRAIN}.command", command) for command in (
        ["docker", "run", "-u", "1000:1000", "-e", "PWD=/work", "image"], ["docker", "run", "--user", "nobody:nogroup"],
        ["docker", "login", "--password-stdin", "reg.example"], ["psql", "--no-password", "db"],
        ["train", "--password", "--rows"], ["train", "--service-account", "driftd-sa"], ["train", "primary-key: id"],
        ["train", "--tokenizer", "bert"],
    )),
    *(("webhooks", [{"name": "a", "url": url}]) for url in (
        "http://driftd-notification-gateway:8080/x", "http://driftd-webhook-receiver.monitoring.svc:8080/",
        "https://webhook-receiver-prod1.internal/x", "https://hooks.internal/model-promotion-events-v2",
    )),
    ("lake.uri", "s3://bucket/token=abc/lake"),
    ("lake.options.google_application_credentials", "/etc/gcp/key.json"),
    ("daemon.control_url", "postgresql+psycopg://driftd@db/driftd?require_auth=scram-sha-256"),
    *((f"{RETRAIN}.orchestrator", {**ORCHESTRATOR, "submit": {**ORCHESTRATOR["submit"], **more}}) for more in (  # type: ignore[dict-item]
        {"body": json.dumps({"serviceAccount": "driftd-sa@proj.iam.gserviceaccount.com", "job": "basic retraining"})},
        {"url": "https://o.example/jobs?code=model-a"},
        {"headers": {"Authorization": "Bearer $TOKEN", "X-Api-Key": "$KEY", "Idempotency-Key": "$key"}},
    )),
]  # fmt: skip


@pytest.mark.parametrize(("place", "value"), FINE, ids=str)
def test_what_is_no_secret_is_neither_refused_nor_damaged(place: str, value: Any, tmp_path: Path) -> None:
    given = document(place, value)
    if "orchestrator" in place:
        given["mlflow"] = {"tracking_uri": "http://mlflow:5000"}
    assert redacted(given) == given
    assert not [p for p in _problems(given) if "secret" in p or "password" in p.split(": ", 1)[-1]]


def _problems(given: dict[str, Any]) -> list[str]:
    try:
        from_dict(given)
    except ConfigError as exc:
        return exc.problems
    return []


def test_a_model_may_be_called_like_a_token() -> None:
    told = {"model": "sk-churn-Prediction-model-2024", "registered_model": "sk-churn-Prediction-model-2024"}
    assert redacted(told) == told
    assert redact("sk-learn-contrib-extensions") == "sk-learn-contrib-extensions"


@pytest.mark.parametrize(
    "said",
    [
        "basic statistics failed for 3 windows", "pre-authorization: declined", "authorization: declined by issuer",
        "foreign-key: customer_id", "headers.Idempotency-Key: write it", "see https://jira.example/browse?key=ABC-123",
        "WHERE token = users.token", "cookie policy", "PWD=/home/app", "sha512-" + "A" * 86 + "==",
    ],
)  # fmt: skip
def test_what_people_say_stays_as_it_is(said: str) -> None:
    assert redact(said) == said


@pytest.mark.parametrize(
    "told",
    [
        f"if token == '{S}'", f"password == {S}", f"password={S},{S}", f"password={S};{S}", f"postgres://u:p@{S}@host/db",
        f"{{'password': '{S}'}}", f"{{'password': b'{S}'}}", f'{{\\"password\\": \\"{S}\\"}}', f"Cookie: sid={S}; b=c",
        f"Authorization: token {S}", f'Authorization: Digest username="u", response="{S}"',
        f"train --password {S} --rows 5", f"password: {S}", f"DB_PASS={S}",
    ],
)  # fmt: skip
def test_what_programs_say_holds_no_secret(told: str) -> None:
    assert S not in redact(told)


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    "piece",
    [
        *("a-", "x://a:", "https://", '\\"', "\\a", '"a":"\\', "a=", "token=", "password: ", "--a ", "Bearer "),
        *("eyJa.", "%3D?a="),
    ],
)  # fmt: skip
def test_no_text_takes_long(piece: str) -> None:
    for text_given in (
        piece * (100_000 // len(piece)),
        '"a":"' + piece * 20_000,
        piece * 20_000 + ":",
        "x-" + piece * 20_000,
    ):
        redact(text_given)


PIECES = st.sampled_from(
    ["dapi" + "a" * 32, "basic ", "password", "token", "x1y2z3a4b5c6", "https://", "$A", *"=: \"'\\@u&?;,{}"]
)


@given(st.one_of(st.text(max_size=200), st.lists(PIECES, max_size=12).map("".join)))
def test_redacting_twice_is_redacting_once(given: str) -> None:
    assert redact(redact(given)) == redact(given)


def test_the_shipped_configuration_and_the_examples_hold_none() -> None:
    import tomllib

    root = Path(__file__).parents[3]
    for path in [root / "config.toml", *(root / "tests" / "configs" / "good").glob("*.toml")]:
        assert list(secrets_in(tomllib.loads(path.read_text()))) == [], path


FORMER = {
    "sqlite": [
        "DROP TRIGGER audit_log_redacts_only",
        "DROP TABLE audit_redactions",
        "CREATE TRIGGER audit_log_no_update BEFORE UPDATE ON audit_log "
        "BEGIN SELECT RAISE(ABORT, 'the audit log is append-only'); END",
    ],
    "postgresql": [
        "DROP TRIGGER audit_log_redacts_only ON audit_log",
        "DROP FUNCTION audit_log_redacts_only",
        "DROP TRIGGER audit_log_stays ON audit_log",
        "DROP TABLE audit_redactions",
        "CREATE TRIGGER audit_log_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON audit_log "
        "FOR EACH STATEMENT EXECUTE FUNCTION audit_log_refuse()",
    ],
}
"""What makes the guards of a new log those of 0.1.0."""


class TestAudit:
    def test_what_is_appended_holds_no_secret(self, tmp_path: Path) -> None:
        engine = open_engine(f"sqlite:///{tmp_path / 'control.db'}")
        create_tables(engine)
        body = {"config": document("lake.options.account_key", S), "labels": {"token": S}}
        audit.note(engine, Entry(NOW, AuditKind.PAUSED, "m", f"ann token={S}", "s", f"password={S} was leaked", body))
        (found,) = audit.entries(engine)
        assert S not in json.dumps(found.to_json())
        assert found.detail == f"password={REDACTED} was leaked"
        assert audit.verify(engine, {}).problem == ""
        assert S.encode() not in (tmp_path / "control.db").read_bytes() + (tmp_path / "control.db-wal").read_bytes()

    def test_an_entry_is_redacted_and_the_chain_stays_whole(self, engine: Engine) -> None:
        for n, unseen in enumerate(("plain", "my cat's name is Zaphod", "plain")):
            audit.note(engine, Entry(NOW, AuditKind.PAUSED, "m", "ann", f"s{n}", unseen, {"why": unseen}))
        digests = {e.number: e.digest for e in audit.entries(engine)}
        audit.redact(engine, 2, "bob", "a password", NOW)
        first, second, third, fourth = audit.entries(engine)
        assert (second.detail, second.body, second.actor, second.subject) == (REDACTED, {}, "ann", "s1")
        assert {e.number: e.digest for e in (first, second, third)} == digests
        assert (fourth.kind, fourth.actor, fourth.detail) == ("redacted", "bob", "a password")
        left = replace(second, digest="").digest_after(first.digest)
        assert (fourth.subject, fourth.body) == ("entry 2", {"number": 2, "digest": digests[2], "left": left})
        assert audit.verify(engine, {2: digests[2][:16]}).problem == ""
        for number, why in ((2, "holds nothing"), (4, "holds nothing"), (9, "has no entry 9")):
            with pytest.raises(Refused, match=why):
                audit.redact(engine, number, "bob", "", NOW)

    def test_what_is_left_of_it_and_what_came_before_are_covered_still(self, tmp_path: Path) -> None:
        """Whoever owns the database rewrites what came before; an anchor of later tells."""
        engine = open_engine(f"sqlite:///{tmp_path / 'control.db'}")
        create_tables(engine)
        for n in range(3):
            audit.note(engine, Entry(NOW, AuditKind.PAUSED, "m", "ann", f"s{n}", "d", {}))
        audit.redact(engine, 2, "bob", "", NOW)
        first, *_, newest = audit.entries(engine)
        forged = replace(first, actor="eve", digest="")
        forged = replace(forged, digest=forged.digest_after("0" * 64))
        with engine.begin() as connection:
            connection.exec_driver_sql("DROP TRIGGER audit_log_redacts_only")
            change = text("UPDATE audit_log SET actor = 'eve', digest = :digest WHERE number = 1")
            connection.execute(change, {"digest": forged.digest})
            connection.execute(text("UPDATE audit_log SET previous = :p WHERE number = 2"), {"p": forged.digest})
        assert audit.verify(engine, {4: newest.digest}).problem.startswith("entry 2 ")

    def test_nothing_of_it_stays_in_the_file(self, tmp_path: Path) -> None:
        engine = open_engine(f"sqlite:///{tmp_path / 'control.db'}")
        create_tables(engine)
        audit.note(engine, Entry(NOW, AuditKind.PAUSED, "m", "ann", "s", "Zaphod", {"why": "Zaphod"}))
        assert b"Zaphod" in b"".join(p.read_bytes() for p in tmp_path.glob("control.db*"))
        audit.redact(engine, 1, "bob", "", NOW)
        assert b"Zaphod" not in b"".join(p.read_bytes() for p in tmp_path.glob("control.db*"))
        engine.dispose()

    @pytest.mark.parametrize(
        "change",
        [
            "UPDATE audit_log SET detail = 'else' WHERE number = 1",
            "UPDATE audit_log SET detail = '(redacted)', body = '{}', actor = 'eve' WHERE number = 1",
            "UPDATE audit_log SET detail = '(redacted)', body = '{}', digest = 'x' WHERE number = 1",
            "UPDATE audit_log SET detail = '(redacted)', body = '{}' WHERE number = 2",
            "DELETE FROM audit_log WHERE number = 1",
        ],
    )
    def test_nothing_else_becomes_changeable_by_it(self, engine: Engine, change: str) -> None:
        for n in range(3):
            audit.note(engine, Entry(NOW, AuditKind.PAUSED, "m", "ann", f"s{n}", "d", {}))
        with writing(engine) as connection:
            connection.execute(text("INSERT INTO audit_redactions VALUES (1)"))
        with pytest.raises(Exception, match="append-only"), engine.begin() as connection:
            connection.execute(text(change))
        assert audit.verify(engine, {}).problem == ""

    def test_a_redaction_that_nobody_has_put_on_record_is_found(self, engine: Engine) -> None:
        audit.note(engine, Entry(NOW, AuditKind.PAUSED, "m", "ann", "s", "d", {}))
        with engine.begin() as connection:
            connection.execute(text("INSERT INTO audit_redactions VALUES (1)"))
            connection.execute(text("UPDATE audit_log SET detail = '(redacted)', body = '{}' WHERE number = 1"))
        assert audit.verify(engine, {}).problem.startswith("entry 1 ")

    def test_a_log_of_the_first_release_can_be_redacted_too(self, engine: Engine) -> None:
        audit.note(engine, Entry(NOW, AuditKind.PAUSED, "m", "ann", "s", "d", {}))
        with writing(engine) as connection:
            for statement in FORMER[engine.dialect.name]:
                connection.exec_driver_sql(statement)
        for _ in range(2):
            create_tables(engine)
        audit.redact(engine, 1, "bob", "", NOW)
        assert audit.verify(engine, {}).problem == ""
        for statement in ("UPDATE audit_log SET detail = 'else'", "DELETE FROM audit_log"):
            with pytest.raises(Exception, match="append-only"), engine.begin() as connection:
                connection.execute(text(statement))

    def test_after_a_configuration_was_redacted_the_next_is_noted(self, tmp_path: Path) -> None:
        engine = open_engine(f"sqlite:///{tmp_path / 'control.db'}")
        create_tables(engine)
        note_configuration(engine, from_dict(document()).config, NOW)
        audit.redact(engine, 1, "bob", "", NOW)
        note_configuration(engine, from_dict(document("http.port", 1234)).config, NOW)
        *_, newest = audit.entries(engine)
        assert newest.body["config"]["http"]["port"] == 1234
        assert newest.detail == "the entry of the one before was redacted"
        assert audit.verify(engine, {}).problem == ""

    def test_the_command_redacts(self, tmp_path: Path) -> None:
        (tmp_path / "state").mkdir()
        path = tmp_path / "config.toml"
        path.write_text(tomli_w.dumps(document("daemon.state", str(tmp_path / "state"))))

        def run(*arguments: str) -> tuple[int, str]:
            done = CliRunner().invoke(main, ["--config", str(path), *arguments])
            return done.exit_code, done.output

        assert run("pause", "fraud", "--reason", f"api_key={S} is not to be told, Zaphod is")[0] == 0
        told = run("audit", "export")[1]
        assert S not in told
        assert "Zaphod" in told
        assert run("audit", "redact", "1", "--reason", "a name")[0] == 0
        assert "Zaphod" not in run("audit", "export")[1]
        assert run("audit", "verify")[0] == 0
        page = (Path(__file__).parents[3] / "docs" / "audit.md").read_text()
        script = page.split("```python\n")[1].split("```")[0]
        exported = run("audit", "export")[1]
        for log, is_whole in ((exported, True), (exported.replace('"fraud"', '"frauds"', 1), False)):
            done = subprocess.run(
                [sys.executable, "-c", script], input=log, capture_output=True, text=True, check=False
            )
            assert (done.returncode == 0) is is_whole, done.stderr
        assert run("audit", "redact", "7") == (1, "driftd: the audit log has no entry 7\n")
