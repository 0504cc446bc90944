"""That the table of worlds says what it claims; they are played by `make worlds`."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from tests.worlds.playing import PAGE, lines_of
from tests.worlds.table import WORLDS, World


def _pairs(world: World) -> Iterator[tuple[tuple[str, str], ...]]:
    return itertools.combinations(world.circumstances.items(), 2)


def test_every_two_circumstances_meet_in_a_world() -> None:
    values = {key: {world.circumstances[key] for world in WORLDS} for key in WORLDS[0].circumstances}
    met = {pair for world in WORLDS for pair in _pairs(world)}
    for one, two in itertools.combinations(values, 2):
        for a, b in itertools.product(values[one], values[two]):
            assert ((one, a), (two, b)) in met
    assert len({world.name for world in WORLDS}) == len(WORLDS)


def test_the_page_has_a_line_for_each_world_and_its_reason() -> None:
    for line, world in zip(lines_of(PAGE.read_text()), WORLDS, strict=True):
        assert line.startswith("| " + " | ".join(world.circumstances.values()))
        assert (f"not yet: {world.not_yet}" in line) if world.not_yet else line.endswith("| as it must |")
