"""docker-compose.yml: valid, hardened, without a secret, and of one mind with every file that it mounts."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import jsonschema
import pytest
import yaml

from monitor.config.loading import LoadedConfig, load
from monitor.running.daemon import EXIT_WITHIN
from retrain.terms.fields import parse_duration
from serving.settings import load as load_service
from tests.broker import kafka_version

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docker-compose.yml").read_text()
DOCKERFILE = (ROOT / "Dockerfile").read_text()
SCHEMA = json.loads((Path(__file__).parent / "schemas" / "compose-spec.json").read_text())
REFERENCE = re.compile(r"(?<!\$)\$\{([A-Z][A-Z0-9_]*)(?::([?-])([^}]*))?\}")

WITHOUT_HEALTHCHECK = {
    "kafka-topics": "creates topics and ends; others wait for its success",
    "demo": "answers nothing; when it fails it ends",
}
WRITABLE_ROOT = {"kafka": "its start script writes configuration, logs and a class archive below /opt/kafka"}
PUBLISHED = {"grafana", "driftd"}


def interpolated(text: str, env: dict[str, str]) -> str:
    """The text as Compose reads it; KeyError for a required variable that is not set."""

    def value(found: re.Match[str]) -> str:
        name, kind, default = found.groups()
        return (env.get(name) or default) if kind == "-" else env[name]

    return REFERENCE.sub(value, text).replace("$$", "$")


def parsed(text: str = TEXT) -> dict[str, Any]:
    return dict(yaml.safe_load(interpolated(text, {"SECRETS_DIR": "./deploy/compose/secrets"})))


COMPOSE = parsed()
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]


def mounts(service: str) -> dict[str, str]:
    """Target -> source of what is mounted from this repository."""
    found = (volume.split(":") for volume in SERVICES[service].get("volumes", []))
    return {parts[1]: parts[0] for parts in found if parts[0].startswith(".")}


def options(service: str) -> dict[str, str]:
    return dict(a.lstrip("-").partition("=")[::2] for a in SERVICES[service]["command"] if a.startswith("--"))


def repository_file(name: str) -> Any:
    return yaml.safe_load((ROOT / name).read_text())


@pytest.fixture(scope="module")
def secrets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that make-secrets.sh makes."""
    folder = tmp_path_factory.mktemp("deploy") / "secrets"
    make_secrets(folder)
    return folder


def make_secrets(folder: Path) -> str:
    command = ["sh", str(ROOT / "deploy" / "compose" / "make-secrets.sh"), str(folder)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


@pytest.fixture(scope="module")
def config(secrets: Path, tmp_path_factory: pytest.TempPathFactory) -> LoadedConfig:
    """deploy/compose/config.toml with the secrets where this test has them; ConfigError if it has a mistake."""
    text = (ROOT / "deploy" / "compose" / "config.toml").read_text()
    path = tmp_path_factory.mktemp("config") / "config.toml"
    path.write_text(text.replace("/run/secrets", str(secrets)))
    return load(path)


# -- the file itself


def test_the_file_fits_the_compose_specification() -> None:
    jsonschema.Draft202012Validator(SCHEMA).validate(COMPOSE)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.Draft202012Validator(SCHEMA).validate(COMPOSE | {"services": {"x": {"imagee": "y"}}})


def test_variables_are_in_the_example_and_required_ones_are_empty_there() -> None:
    lines = [line for line in (ROOT / ".env.example").read_text().splitlines() if line and not line.startswith("#")]
    example = dict(line.split("=", 1) for line in lines)
    used = {(name, kind, text) for name, kind, text in REFERENCE.findall(TEXT)}
    assert {name for name, _, _ in used} == set(example)
    assert {kind for _, kind, _ in used} <= {"?", "-"}, "a variable without :? or :- is silently empty"
    for name, kind, text in used:
        assert example[name] == ("" if kind == "?" else text), name
        assert text, f"{name}: a required variable says what to do, an optional one has a default"


def test_a_required_variable_stops_the_start() -> None:
    with pytest.raises(KeyError):
        interpolated(TEXT, {})


def literal_secrets(document: Any, path: str = "") -> Iterator[str]:
    """Values that look like a secret written down: by their key, or a password in a URL."""
    if isinstance(document, dict):
        for key, value in document.items():
            named = re.search(r"password|secret|token|access_key|credential", str(key), re.I)
            if named and isinstance(value, str) and not value.startswith("/"):
                yield f"{path}.{key}"
            yield from literal_secrets(value, f"{path}.{key}")
    elif isinstance(document, list):
        for at, value in enumerate(document):
            name, given, _ = str(value).partition("=")
            if given and re.search(r"PASSWORD|SECRET|TOKEN|ACCESS_KEY", name) and isinstance(value, str):
                yield f"{path}[{at}]"
            yield from literal_secrets(value, f"{path}[{at}]")
    elif isinstance(document, str) and re.search(r"://[^/@\s:]+:[^/@\s]+@", document):
        yield path


def test_no_secret_is_written_down() -> None:
    assert list(literal_secrets(COMPOSE)) == []
    one = {"services": {"postgres": {"environment": {"POSTGRES_PASSWORD": "x"}}}}
    assert list(literal_secrets(one)) == [".services.postgres.environment.POSTGRES_PASSWORD"]
    assert list(literal_secrets({"environment": ["A_TOKEN=x"]})) == [".environment[0]"]
    assert list(literal_secrets({"command": ["postgresql://u:p@h/d"]})) == [".command[0]"]


# -- secrets


def test_secret_files_are_those_that_the_script_makes(secrets: Path) -> None:
    declared = {Path(secret["file"]).name for secret in COMPOSE["secrets"].values()}
    assert declared == {path.name for path in secrets.iterdir() if path.is_file()}
    assert secrets.stat().st_mode & 0o777 == 0o700, "the folder keeps other users out, as its files are readable"
    for path in secrets.iterdir():
        assert path.is_dir() or len(path.read_text().strip()) >= 20, path.name


def test_making_secrets_again_changes_none(secrets: Path) -> None:
    before = {path.name: path.read_text() for path in secrets.iterdir() if path.is_file()}
    assert "made" not in make_secrets(secrets)
    assert {path.name: path.read_text() for path in secrets.iterdir() if path.is_file()} == before


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_is_given_the_secrets_it_reads_and_no_others(name: str) -> None:
    service = SERVICES[name]
    texts = [json.dumps(service)]
    for source in mounts(name).values():
        if (ROOT / source).is_file():
            texts.append((ROOT / source).read_text())
    read = set(re.findall(r"/run/secrets/([a-z0-9_.]+[a-z0-9_])", "\n".join(texts)))
    if name == "postgres":  # its script goes through the services
        read |= {f"{service}_pg_service.conf" for service in ("driftd", "mlflow")}
    assert read == set(service.get("secrets", [])), name
    assert read <= set(COMPOSE["secrets"])


# -- what is mounted, and where it is read


def test_mounted_files_exist() -> None:
    missing = [
        f"{name}: {source}"
        for name in SERVICES
        for source in mounts(name).values()
        if not source.startswith("./deploy/compose/secrets") and not (ROOT / source).exists()
    ]
    assert missing == []


@pytest.mark.parametrize("name", SERVICES)
def test_mounts_from_the_repository_are_read_only(name: str) -> None:
    bound = [volume for volume in SERVICES[name].get("volumes", []) if volume.startswith(".")]
    assert [volume for volume in bound if not volume.endswith(":ro")] == []


def test_prometheus_reads_what_is_mounted() -> None:
    config_file = options("prometheus")["config.file"]
    assert mounts("prometheus")[config_file] == "./dashboards/prometheus/prometheus.yml"
    for pattern in repository_file("dashboards/prometheus/prometheus.yml")["rule_files"]:
        inside = Path(config_file).parent / pattern
        folder = ROOT / mounts("prometheus")[str(inside.parent)]
        assert list(folder.glob(inside.name)), f"{pattern} matches no file of {folder}"


def test_alertmanager_reads_what_is_mounted() -> None:
    source = mounts("alertmanager")[options("alertmanager")["config.file"]]
    assert source == "./dashboards/alertmanager/alertmanager.yml"
    named = set(re.findall(r"_file: *(\S+)", (ROOT / source).read_text()))
    assert {str(Path(path).parent) for path in named} <= set(mounts("alertmanager")), named


def test_grafana_reads_what_is_mounted() -> None:
    mounted = mounts("grafana")
    provisioning = ROOT / mounted["/etc/grafana/provisioning"]  # the image's GF_PATHS_PROVISIONING
    providers = [p for f in provisioning.glob("dashboards/*.y*ml") for p in yaml.safe_load(f.read_text())["providers"]]
    assert [p["options"]["path"] for p in providers] == ["/var/lib/grafana/dashboards"]
    assert list((ROOT / mounted["/var/lib/grafana/dashboards"]).rglob("*.json"))


def test_driftd_reads_what_is_mounted() -> None:
    path = re.search(r"DRIFTD_CONFIG=(\S+)", DOCKERFILE)
    assert path is not None
    for service in ("driftd", "demo"):
        assert mounts(service)[path[1]] == "./deploy/compose/config.toml"


# -- names and ports


def address(service: str) -> str:
    """host:port at which the others find it, from the service's own settings."""
    port = {
        "prometheus": "9090",  # the images' defaults, not set here
        "alertmanager": "9093",
        "mlflow": options("mlflow")["port"],
        "object-store": str(re.search(r"--port :(\d+)", (ROOT / "deploy/compose/object-store.sh").read_text())[1]),  # type: ignore[index]
        "kafka": str(SERVICES["kafka"]["environment"]["KAFKA_ADVERTISED_LISTENERS"]).rpartition(":")[2],
    }[service]
    return f"{service}:{port}"


def test_driftd_finds_kafka_and_its_topics(config: LoadedConfig) -> None:
    kafka = config.config.source.kafka
    assert kafka is not None
    assert kafka.bootstrap == (address("kafka"),)
    assert SERVICES["kafka"]["environment"]["KAFKA_ADVERTISED_LISTENERS"] == f"PLAINTEXT://{address('kafka')}"
    script = SERVICES["kafka-topics"]["command"][0]
    created = re.search(r"for topic in (.+); do", script)
    assert created is not None
    events = config.config.events
    assert events is not None
    assert set(created[1].split()) == {*kafka.predictions, *kafka.labels, events.topic}
    assert f"--bootstrap-server {address('kafka')}" in script


def test_the_scoring_service_is_of_one_mind_with_driftd(config: LoadedConfig) -> None:
    (path,) = [source for target, source in mounts("scoring").items() if target in SERVICES["scoring"]["entrypoint"]]
    service, driftd = load_service(ROOT / path), config.config
    kafka, events = driftd.source.kafka, driftd.events
    assert service.kafka is not None
    assert kafka is not None
    assert events is not None
    assert (service.kafka.bootstrap, service.kafka.topic) == (kafka.bootstrap, kafka.predictions[0])
    assert service.kafka.news == events.topic
    assert (service.schema, service.tracking_uri) == (config.schemas["fraud"], driftd.tracking_uri)
    assert SERVICES["scoring"]["profiles"] == SERVICES["demo"]["profiles"]
    targets = {volume.split(":")[1]: volume.split(":")[0] for volume in SERVICES["scoring"]["volumes"]}
    assert targets[str(Path(service.outbox).parent)] in COMPOSE["volumes"], "events outlive the container"


def test_driftd_finds_mlflow_and_mlflow_accepts_its_name(config: LoadedConfig) -> None:
    assert config.config.mlflow.tracking_uri == f"http://{address('mlflow')}"
    assert address("mlflow") in options("mlflow")["allowed-hosts"].split(",")


def test_mlflow_finds_the_object_store_and_its_bucket() -> None:
    assert SERVICES["mlflow"]["environment"]["MLFLOW_S3_ENDPOINT_URL"] == f"http://{address('object-store')}"
    bucket = urlsplit(options("mlflow")["artifacts-destination"]).netloc
    assert f"mkdir -p /data/{bucket}" in DOCKERFILE
    assert "object-data:/data" in SERVICES["object-store"]["volumes"]


def test_databases_are_found_by_the_names_in_the_service_files(secrets: Path, config: LoadedConfig) -> None:
    script = (ROOT / "deploy" / "compose" / "postgres-init.sh").read_text()
    urls = {"driftd": config.config.control_url, "mlflow": options("mlflow")["backend-store-uri"]}
    for name, url in urls.items():
        text = (secrets / f"{name}_pg_service.conf").read_text()
        fields = dict(line.split("=", 1) for line in text.splitlines()[1:])
        assert text.startswith(f"[{name}]\n")
        assert (fields["host"], fields["dbname"], fields["user"]) == ("postgres", name, name)
        assert url == f"postgresql+psycopg:///?service={name}"
        assert SERVICES[name]["environment"]["PGSERVICEFILE"] == f"/run/secrets/{name}_pg_service.conf"
        assert name in re.search(r"for service in (.+); do", script)[1].split()  # type: ignore[index]


def test_prometheus_finds_driftd_and_alertmanager(config: LoadedConfig) -> None:
    prometheus = repository_file("dashboards/prometheus/prometheus.yml")
    jobs = {job["job_name"]: job["static_configs"][0]["targets"] for job in prometheus["scrape_configs"]}
    assert jobs["driftd"] == [f"driftd:{config.config.http.port}"]
    assert prometheus["alerting"]["alertmanagers"][0]["static_configs"][0]["targets"] == [address("alertmanager")]


def test_grafana_finds_prometheus() -> None:
    folder = ROOT / mounts("grafana")["/etc/grafana/provisioning"] / "datasources"
    sources = [s for f in folder.glob("*.y*ml") for s in yaml.safe_load(f.read_text())["datasources"]]
    assert [s["url"] for s in sources if s["type"] == "prometheus"] == [f"http://{address('prometheus')}"]


def test_services_that_talk_share_a_network() -> None:
    assert {name for name, service in SERVICES.items() if "backend" not in service["networks"]} == set()
    assert COMPOSE["networks"]["backend"]["internal"] is True


def test_only_grafana_and_the_status_page_are_published_and_only_on_localhost(config: LoadedConfig) -> None:
    published = {name: service["ports"] for name, service in SERVICES.items() if service.get("ports")}
    assert set(published) == PUBLISHED
    for name, ports in published.items():
        for port in ports:
            assert re.fullmatch(r"127\.0\.0\.1:\d+:\d+", port), f"{name}: {port}"
    assert published["driftd"][0].endswith(f":{config.config.http.port}")
    assert config.config.http.host == "0.0.0.0"
    assert all(service.get("network_mode") is None for service in SERVICES.values())


# -- driftd's own settings


def test_state_and_lake_are_on_volumes_of_their_own(config: LoadedConfig) -> None:
    targets = {volume.split(":")[1]: volume.split(":")[0] for volume in SERVICES["driftd"]["volumes"]}
    assert targets[config.config.daemon.state] in COMPOSE["volumes"]
    assert targets[config.config.lake_uri] in COMPOSE["volumes"]
    for folder in (config.config.daemon.state, config.config.lake_uri):
        made = re.search(r"install -d -o driftd .*", DOCKERFILE)
        assert made is not None
        assert folder in made[0].split(), "a new volume takes its owner from the image's folder"


def test_a_stop_is_given_the_time_it_takes() -> None:
    assert parse_duration(SERVICES["driftd"]["stop_grace_period"]).total_seconds() > EXIT_WITHIN
    assert SERVICES["driftd"]["hostname"] == "driftd", "the lease's holder is named after the host"


# -- every service


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_is_hardened(name: str) -> None:
    service = SERVICES[name]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["cap_drop"] == ["ALL"]
    assert not {"cap_add", "privileged", "pid", "ipc", "devices"} & set(service)
    assert "docker.sock" not in json.dumps(service)
    assert str(service["user"]).partition(":")[0] not in ("", "0", "root")
    assert service.get("read_only", False) is (name not in WRITABLE_ROOT), WRITABLE_ROOT.get(name)
    limits = service["deploy"]["resources"]["limits"]
    assert set(limits) == {"cpus", "memory", "pids"}


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_is_restarted_and_its_health_is_known(name: str) -> None:
    service = SERVICES[name]
    assert service["restart"] == ("on-failure" if name in WITHOUT_HEALTHCHECK else "unless-stopped")
    check = service.get("healthcheck", {})
    if name in WITHOUT_HEALTHCHECK:
        assert not check.get("test"), f"has one by now: take {name} out of the list"
    else:
        assert check["test"][0] in ("CMD", "CMD-SHELL")
        assert {"interval", "timeout", "retries", "start_period"} <= set(check)


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_waits_for_what_it_needs(name: str) -> None:
    for other, how in SERVICES[name].get("depends_on", {}).items():
        wanted = "service_completed_successfully" if other == "kafka-topics" else "service_healthy"
        assert how["condition"] == wanted, f"{name} -> {other}"


def test_driftd_starts_after_all_it_talks_to() -> None:
    assert set(SERVICES["driftd"]["depends_on"]) == {"kafka-topics", "postgres", "mlflow"}
    assert set(SERVICES["mlflow"]["depends_on"]) == {"postgres", "object-store"}
    assert SERVICES["demo"]["profiles"] == ["demo"]


@pytest.mark.parametrize("name", SERVICES)
def test_images_are_pinned_by_full_versions(name: str) -> None:
    assert re.search(r":v?\d+\.\d+(\.\d+)?(-[a-z]+)?$", SERVICES[name]["image"]), SERVICES[name]["image"]


def test_kafka_is_the_version_that_is_tested_against() -> None:
    assert {SERVICES[s]["image"] for s in ("kafka", "kafka-topics")} == {f"apache/kafka:{kafka_version()}"}


@pytest.mark.parametrize("name", [name for name, service in SERVICES.items() if "build" in service])
def test_users_are_those_of_the_built_image(name: str) -> None:
    target = SERVICES[name]["build"]["target"]
    stage = DOCKERFILE.split(f" AS {target}\n")[1].split("\nFROM ")[0]
    user = re.findall(r"^USER (\S+)", stage, re.M)[-1]
    assert SERVICES[name]["user"] == user
    for entry in SERVICES[name].get("tmpfs", []):
        assert f"uid={user.partition(':')[0]}," in entry, entry
