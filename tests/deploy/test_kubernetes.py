"""deploy/kubernetes: builds, fits the schemas, and agrees with the configuration, the dashboards and the code."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import subprocess
from pathlib import Path
from types import ModuleType
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

from monitor.config.loading import LoadedConfig, load
from monitor.running.daemon import EXIT_WITHIN
from tests.conftest import require

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "deploy" / "kubernetes"
OVERLAY = FOLDER / "overlays" / "example"
SCHEMAS = Path(__file__).parent / "schemas"
OPERATOR = "monitoring.coreos.com/v1"
MOUNTED_SECRETS = "/run/secrets/driftd"
Manifest = dict[str, Any]


def generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("deploy_generate", ROOT / "deploy" / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def build(folder: Path) -> list[Manifest]:
    """What `kubectl apply --kustomize` would send."""
    tool = shutil.which("kustomize")
    require("the Kubernetes manifests", [] if tool else ["kustomize"])
    done = subprocess.run([str(tool), "build", str(folder)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr
    return [dict(document) for document in yaml.safe_load_all(done.stdout)]


@pytest.fixture(scope="module")
def manifests() -> list[Manifest]:
    return build(OVERLAY)


def the(manifests: list[Manifest], kind: str, name: str = "driftd") -> Manifest:
    return next(m for m in manifests if m["kind"] == kind and m["metadata"]["name"] == name)


def pod(manifests: list[Manifest]) -> Manifest:
    return dict(the(manifests, "StatefulSet")["spec"]["template"])


def container(manifests: list[Manifest]) -> Manifest:
    return dict(pod(manifests)["spec"]["containers"][0])


def selects(selector: Manifest, labels: Manifest) -> bool:
    return bool(selector) and selector.items() <= labels.items()


def loaded(path: Path, tmp_path: Path) -> LoadedConfig:
    """A configuration with every secret it names."""
    text = path.read_text()
    for name in re.findall(rf"{MOUNTED_SECRETS}/(\w+)", text):
        (tmp_path / name).write_text("a-secret")
    (tmp_path / "config.toml").write_text(text.replace(MOUNTED_SECRETS, str(tmp_path)))
    return load(tmp_path / "config.toml")


# -- schemas


def check_schema(manifest: Manifest) -> None:
    if manifest["apiVersion"] == OPERATOR:
        schema = json.loads((SCHEMAS / f"{manifest['kind']}.json").read_text())
        jsonschema.Draft202012Validator(schema).validate(manifest)
    else:
        kubernetes_validate.validate(manifest, kubernetes_validate.latest_version(), strict=True)


@pytest.mark.parametrize("folder", ["base", "monitoring", "overlays/example"])
def test_manifests_fit_their_schemas(folder: str) -> None:
    for manifest in build(FOLDER / folder):
        check_schema(manifest)


def test_a_wrong_manifest_is_refused(manifests: list[Manifest]) -> None:
    service, rule = the(manifests, "Service"), the(manifests, "PrometheusRule")
    with pytest.raises(kubernetes_validate.ValidationError):
        check_schema(service | {"spec": service["spec"] | {"portz": []}})
    with pytest.raises(jsonschema.ValidationError):
        check_schema(rule | {"spec": {"groups": [{"name": "x", "rules": [{"alert": "x"}]}]}})


# -- what is made from dashboards/


def test_generated_files_are_current() -> None:
    generate = generator()
    assert generate.stale(generate.wanted()) == [], "run deploy/generate.py"


def test_a_file_that_is_not_current_is_noticed(tmp_path: Path) -> None:
    generate = generator()
    files = generate.wanted()
    generate.write(files, tmp_path)
    assert generate.stale(files, tmp_path) == []
    (tmp_path / "prometheusrule.yaml").write_text("changed")
    (tmp_path / "dashboards" / "old.json").write_text("{}")
    assert generate.stale(files, tmp_path) == ["prometheusrule.yaml is not current", "dashboards/old.json is left over"]


def test_the_rule_object_has_every_group(manifests: list[Manifest]) -> None:
    files = sorted((ROOT / "dashboards" / "prometheus" / "rules").glob("*.yml"))
    wanted = [group for file in files for group in yaml.safe_load(file.read_text()).get("groups", [])]
    assert the(manifests, "PrometheusRule")["spec"]["groups"] == wanted
    assert wanted


def test_every_dashboard_is_in_a_configmap_that_the_sidecar_finds(manifests: list[Manifest]) -> None:
    boards = {p.name: p.read_text() for p in (ROOT / "dashboards" / "grafana" / "dashboards").rglob("*.json")}
    found = {}
    for manifest in manifests:
        if manifest["kind"] == "ConfigMap" and manifest["metadata"]["labels"].get("grafana_dashboard") == "1":
            found |= manifest["data"]
            assert len(json.dumps(manifest)) < 1024 * 1024, "an object has at most 1 MiB"
    assert found == boards
    assert boards


def test_prometheus_names_the_job_as_the_rules_expect(manifests: list[Manifest]) -> None:
    jobs = yaml.safe_load((ROOT / "dashboards" / "prometheus" / "prometheus.yml").read_text())["scrape_configs"]
    monitor = the(manifests, "ServiceMonitor")["spec"]
    scraped = [
        m
        for m in manifests
        if m["kind"] == "Service" and selects(monitor["selector"]["matchLabels"], m["metadata"]["labels"])
    ]
    assert [m["metadata"]["name"] for m in scraped] == ["driftd-replicas"], "each replica is scraped once"
    assert scraped[0]["metadata"]["labels"][monitor["jobLabel"]] == "driftd"
    assert "driftd" in [job["job_name"] for job in jobs]
    assert monitor["endpoints"][0]["port"] in [port["name"] for port in scraped[0]["spec"]["ports"]]


# -- configuration


@pytest.mark.parametrize("folder", ["base", "overlays/example"])
def test_replicas_share_what_they_must_and_nothing_else(folder: str, tmp_path: Path) -> None:
    manifests = build(FOLDER / folder)
    config = loaded(FOLDER / folder / "config.toml", tmp_path).config
    places = {mount["name"]: mount["mountPath"] for mount in container(manifests)["volumeMounts"]}
    claims = [c["metadata"]["name"] for c in the(manifests, "StatefulSet")["spec"]["volumeClaimTemplates"]]
    assert places[claims[0]] == config.daemon.state, "each replica's own"
    assert config.lake_uri.startswith("s3://")
    assert config.control_url.startswith("postgresql")
    assert config.http.host == "0.0.0.0"
    env = {e["name"]: e["value"] for e in container(manifests)["env"]}
    assert env["PGSERVICEFILE"].startswith(places["secrets"] + "/")
    assert places["secrets"] == MOUNTED_SECRETS
    maps = [m["metadata"]["name"] for m in manifests if m["kind"] == "ConfigMap" and "config.toml" in m["data"]]
    volumes = {v["name"]: v for v in pod(manifests)["spec"]["volumes"]}
    assert [volumes["config"]["configMap"]["name"]] == maps
    assert re.search(r"DRIFTD_CONFIG=(\S+)", (ROOT / "Dockerfile").read_text())[1] == f"{places['config']}/config.toml"  # type: ignore[index]


def test_the_example_names_every_secret(tmp_path: Path) -> None:
    text = (OVERLAY / "kustomization.yaml").read_text()
    listed = set(re.findall(r"--from-file=([\w.]+)", text))
    read = set(re.findall(rf"{MOUNTED_SECRETS}/([\w.]+)", (OVERLAY / "config.toml").read_text()))
    assert listed == read | {"pg_service.conf"}


def test_the_network_policy_lets_through_what_is_configured(manifests: list[Manifest], tmp_path: Path) -> None:
    config = loaded(OVERLAY / "config.toml", tmp_path).config
    spec = the(manifests, "NetworkPolicy")["spec"]
    assert selects(spec["podSelector"]["matchLabels"], pod(manifests)["metadata"]["labels"])
    assert set(spec["policyTypes"]) == {"Ingress", "Egress"}
    out = {port["port"] for rule in spec["egress"] for port in rule["ports"]}
    assert config.source.kafka is not None
    wanted = {int(address.rpartition(":")[2]) for address in config.source.kafka.bootstrap}
    wanted.add(int(str(config.mlflow.tracking_uri).rpartition(":")[2]))
    assert out == wanted | {53, 443, 5432}
    into = {port["port"] for rule in spec["ingress"] for port in rule["ports"]}
    assert into == {"http"}
    assert all(rule.get("from") for rule in spec["ingress"]), "from anywhere"


# -- the pods


def test_pods_are_restricted(manifests: list[Manifest]) -> None:
    """The Pod Security Standard `restricted`, which the namespace enforces, and a read-only root."""
    spec, main = pod(manifests)["spec"], container(manifests)
    stage = (ROOT / "Dockerfile").read_text().split(" AS driftd\n")[1]
    uid = int(re.findall(r"^USER (\d+)", stage, re.M)[-1])
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["runAsUser"] == spec["securityContext"]["fsGroup"] == uid
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert main["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
        "readOnlyRootFilesystem": True,
    }
    assert spec["automountServiceAccountToken"] is False
    assert not {"hostNetwork", "hostPID", "hostIPC"} & set(spec)
    assert not any("hostPath" in volume for volume in spec["volumes"])
    assert {m["kind"] for m in manifests}.isdisjoint({"Role", "RoleBinding", "ClusterRole", "ClusterRoleBinding"})
    labels = the(manifests, "Namespace")["metadata"]["labels"]
    assert labels["pod-security.kubernetes.io/enforce"] == "restricted"


def test_probes_ask_what_the_daemon_answers(manifests: list[Manifest], tmp_path: Path) -> None:
    main = container(manifests)
    routes = (ROOT / "monitor" / "web" / "app.py").read_text()
    asked = {kind: main[f"{kind}Probe"]["httpGet"] for kind in ("startup", "liveness", "readiness")}
    assert {kind: get["path"] for kind, get in asked.items()} == {
        "startup": "/healthz",
        "liveness": "/healthz",
        "readiness": "/readyz",
    }
    assert all(f'"{get["path"]}"' in routes for get in asked.values())
    ports = {port["name"]: port["containerPort"] for port in main["ports"]}
    assert {get["port"] for get in asked.values()} <= set(ports)
    assert ports["http"] == loaded(OVERLAY / "config.toml", tmp_path).config.http.port
    assert pod(manifests)["spec"]["terminationGracePeriodSeconds"] > EXIT_WITHIN


def test_pods_have_requests_and_limits(manifests: list[Manifest]) -> None:
    for kind in ("requests", "limits"):
        assert {"cpu", "memory", "ephemeral-storage"} == set(container(manifests)["resources"][kind])


def test_everything_selects_the_pods(manifests: list[Manifest]) -> None:
    labels = pod(manifests)["metadata"]["labels"]
    for name in ("driftd", "driftd-replicas"):
        assert selects(the(manifests, "Service", name)["spec"]["selector"], labels)
    assert selects(the(manifests, "PodDisruptionBudget")["spec"]["selector"]["matchLabels"], labels)
    stateful = the(manifests, "StatefulSet")["spec"]
    assert selects(stateful["selector"]["matchLabels"], labels)
    assert stateful["serviceName"] == "driftd-replicas"
    assert the(manifests, "Service", "driftd-replicas")["spec"]["clusterIP"] == "None"


def test_one_replica_may_be_away_and_one_stays(manifests: list[Manifest]) -> None:
    assert the(manifests, "PodDisruptionBudget")["spec"]["maxUnavailable"] == 1
    assert the(manifests, "StatefulSet")["spec"]["replicas"] == 3
    assert the(build(FOLDER / "base"), "StatefulSet")["spec"]["replicas"] >= 2


def test_the_image_is_the_overlays(manifests: list[Manifest]) -> None:
    assert container(manifests)["image"] == "registry.example.org/ml/driftd:0.1.0"
    assert container(build(FOLDER / "base"))["image"] == "driftd:0.1.0"
