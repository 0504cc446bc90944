"""Some of the worlds, and that the table of all says what it claims; the others are played by `make worlds`."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import mlflow
import pytest

from tests.worlds.life import expectations, live
from tests.worlds.playing import PAGE, lines_of
from tests.worlds.table import WORLDS, World

IN_SUITE = [world for world in WORLDS if world.in_suite]


@pytest.fixture
def _mlflow_is_elsewhere() -> Iterator[None]:
    """A team uses MLflow as it does: by settings of the whole process."""
    before = mlflow.get_tracking_uri()
    yield
    mlflow.set_tracking_uri(before)


@pytest.mark.timeout(1500)
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
@pytest.mark.usefixtures("_mlflow_is_elsewhere")
@pytest.mark.parametrize("world", IN_SUITE, ids=lambda world: world.name)
def test_a_world_comes_out_as_it_must(tmp_path: Path, world: World) -> None:
    seen = live(world, tmp_path / "world")
    assert not expectations(world, seen), "\n".join(seen.told)


def _pairs(world: World) -> Iterator[tuple[tuple[str, str], ...]]:
    return itertools.combinations(world.circumstances.items(), 2)


def test_every_two_circumstances_meet_in_a_world() -> None:
    values = {key: {world.circumstances[key] for world in WORLDS} for key in WORLDS[0].circumstances}
    met = {pair for world in WORLDS for pair in _pairs(world)}
    for one, two in itertools.combinations(values, 2):
        for a, b in itertools.product(values[one], values[two]):
            assert ((one, a), (two, b)) in met
    assert len({world.name for world in WORLDS}) == len(WORLDS)
    assert len(IN_SUITE) == 6


def test_the_page_has_a_line_for_each_world_and_its_reason() -> None:
    for line, world in zip(lines_of(PAGE.read_text()), WORLDS, strict=True):
        assert line.startswith("| " + " | ".join(world.circumstances.values()))
        assert (f"not yet: {world.not_yet}" in line) if world.not_yet else line.endswith("| as it must |")
