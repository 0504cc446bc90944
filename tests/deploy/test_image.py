"""The Dockerfile, and what it installs: a wheel that works without the repository, on the locked dependencies."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.deploy.test_compose import make_secrets

ROOT = Path(__file__).parents[2]
DOCKERFILE = (ROOT / "Dockerfile").read_text()
UV = Path(sys.executable).parent / "uv"
PACKAGES = ("monitor", "retrain", "serving")
LOCKS = ("requirements.lock", "deploy/image/postgres.lock")


def stages() -> dict[str, str]:
    """Name -> text of each stage."""
    found = re.split(r"^FROM ", DOCKERFILE, flags=re.M)[1:]
    return {str(re.search(r" AS ([\w-]+)", text)[1]): text for text in found}  # type: ignore[index]


def requirements(path: str) -> dict[str, str]:
    return dict(re.findall(r"^([a-z0-9][a-z0-9._-]*)==(\S+)", (ROOT / path).read_text(), re.M))


# -- the Dockerfile


def test_base_images_are_pinned_by_full_versions() -> None:
    bases = {text.split()[0] for text in stages().values()} - set(stages())
    assert bases == {"python:${PYTHON_TAG}", "versity/versitygw:${VERSITYGW_TAG}"}
    assert re.search(r"^ARG PYTHON_TAG=3\.11\.\d+-slim-\w+$", DOCKERFILE, re.M)
    assert re.search(r"^ARG VERSITYGW_TAG=v\d+\.\d+\.\d+$", DOCKERFILE, re.M)


@pytest.mark.parametrize("name", ["driftd", "mlflow", "object-store"])
def test_an_image_runs_without_root(name: str) -> None:
    users = re.findall(r"^USER (\S+)", stages()[name], re.M)
    assert re.fullmatch(r"1\d{4}:1\d{4}", users[-1])


def test_the_image_says_how_it_is_and_how_it_stops() -> None:
    stage = stages()["driftd"]
    assert "/healthz" in re.search(r"^HEALTHCHECK(.|\n)*?\n(?!    )", stage, re.M)[0]  # type: ignore[index]
    assert "STOPSIGNAL SIGTERM" in stages()["runtime"]
    assert 'ENTRYPOINT ["tini", "--", "driftd"]' in stage
    for label in ("title", "description", "version", "revision", "licenses"):
        assert f"org.opencontainers.image.{label}=" in stage
    version = re.search(r'^version = "(.+)"', (ROOT / "pyproject.toml").read_text(), re.M)
    assert version is not None
    assert f"ARG VERSION={version[1]}\n" in stage
    assert f"driftd:{version[1]}\n" in (ROOT / "docker-compose.yml").read_text()
    assert list(stages())[-1] == "driftd", "what is built without --target"


def test_everything_is_installed_from_hashes_and_no_installer_is_left() -> None:
    installs = re.findall(r"pip install .*(?:\\\n.*)*", DOCKERFILE)
    assert len(installs) == 4
    for command in installs:
        assert "--require-hashes" in command or "/wheels/" in command, command
        assert "--no-deps" in command, command
    assert DOCKERFILE.count("--without-pip") == 2
    assert "pip uninstall -y -q pip" in stages()["runtime"]
    assert not re.search(r"gcc|build-essential|curl|wget", DOCKERFILE)


def test_what_is_copied_exists_and_reaches_the_build() -> None:
    ignore = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and line[0] != "#"]
    allowed = {line[1:] for line in ignore if line.startswith("!")}
    assert ignore[0] == "*"
    for sources in re.findall(r"^COPY (?!--from)(.+) \S+$", DOCKERFILE, re.M):
        for source in sources.split():
            assert (ROOT / source).exists(), source
            assert {source, *map(str, Path(source).parents)} & (allowed - {"deploy"}), source
    assert not [path for path in allowed if "env" in path or "secret" in path]


# -- the locks of the images


def test_the_mlflow_image_has_the_clients_version() -> None:
    assert requirements("deploy/image/mlflow.lock")["mlflow"] == requirements("requirements.lock")["mlflow"]
    assert {"psycopg", "boto3"} <= set(requirements("deploy/image/mlflow.lock"))


def test_the_locks_of_an_image_agree() -> None:
    first, second = (requirements(lock) for lock in LOCKS)
    assert {
        name: (first[name], second[name]) for name in first.keys() & second.keys() if first[name] != second[name]
    } == {}
    assert "psycopg" in second


def test_the_locks_name_no_registry() -> None:
    locks = [*ROOT.glob("*.lock"), *ROOT.glob("deploy/image/*.lock"), *ROOT.glob("serving/container/*.lock")]
    assert len(locks) > 5
    for lock in locks:
        assert "://" not in lock.read_text(), lock.name


# -- the wheel


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy: setuptools leaves a folder `build` behind, whose old files would get into the next wheel."""
    folder = tmp_path_factory.mktemp("wheel")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    for name in PACKAGES:
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    command = [str(UV), "build", "--quiet", "--wheel", "--no-build-isolation", "--python", sys.executable]
    subprocess.run([*command, "--out-dir", str(folder / "out"), str(folder)], check=True)
    return next((folder / "out").glob("*.whl"))


def test_the_wheel_has_every_file_of_the_packages(wheel: Path) -> None:
    files = {
        str(path.relative_to(ROOT))
        for name in PACKAGES
        for path in (ROOT / name).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    packed = set(zipfile.ZipFile(wheel).namelist())
    assert files - packed == set(), "package-data in pyproject.toml leaves these out"
    assert {name for name in packed if not name.startswith(PACKAGES)} == {n for n in packed if ".dist-info/" in n}


def test_the_wheel_works_without_the_repository(wheel: Path, tmp_path: Path) -> None:
    """What the Dockerfile does, in a fresh environment without pip; some seconds when the packages are cached."""
    home = tmp_path / "installed"
    install = [str(UV), "pip", "install", "--quiet", "--python", str(home / "bin" / "python"), "--no-deps"]
    locks = [argument for lock in LOCKS for argument in ("--requirements", str(ROOT / lock))]
    subprocess.run([str(UV), "venv", "--quiet", "--python", sys.executable, str(home)], check=True)
    subprocess.run([*install, "--no-build", "--require-hashes", *locks], check=True)
    subprocess.run([*install, str(wheel)], check=True)
    make_secrets(tmp_path / "secrets")
    config = (
        (ROOT / "deploy" / "compose" / "config.toml").read_text().replace("/run/secrets", str(tmp_path / "secrets"))
    )
    (tmp_path / "config.toml").write_text(config)

    def run(*command: str) -> str:
        environment = {"PATH": str(home / "bin"), "HOME": str(tmp_path), "DRIFTD_CONFIG": str(tmp_path / "config.toml")}
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    driftd = str(home / "bin" / "driftd")
    assert "retrains them" in run(driftd, "--help")
    assert "good" in run(driftd, "check")
    python = str(home / "bin" / "python")
    where = run(
        python, "-c", "import monitor.running.build, retrain.job.driver, psycopg; print(monitor.running.build.__file__)"
    )
    assert where.startswith(str(home))
