"""Whatever text comes, its names are bounded, say nothing to a file system, and are nobody else's."""

from __future__ import annotations

import itertools
from pathlib import PurePosixPath, PureWindowsPath

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from retrain.terms.names import LONGEST, path_name, shown_name

ODD = (
    "", ".", "..", "...", "/", "a/b", "a_b", "a\\b", "a:b", "A", "a", "é", "\u0661", "²", "1", "01", " 1", "1 ",
    "\x00", "a\x00", "\n", "\u202e1", "\u200b", "con", "x" * 300, "x" * 301, "1" * 100, "..~" + "0" * 20,
    "~" + "a" * 20, "\ud800", "a\ud800", "%2e", "-rf", "*",
)  # fmt: skip


@settings(max_examples=300)
@given(st.text(max_size=300))
@example("..")
def test_a_name_is_bounded_and_harmless_and_its_own(text: str) -> None:
    path, shown = path_name(text), shown_name(text)
    assert 0 < len(path) <= LONGEST
    assert 0 < len(shown) <= LONGEST
    assert shown.isprintable()
    assert path.isascii()
    assert PurePosixPath(path).parts == PureWindowsPath(path).parts == (path,)
    assert path not in (".", "..")
    assert path == path.lower()
    assert path_name(path) == path or path != text
    assert path_name(text) == path


def test_odd_texts_have_names_of_their_own() -> None:
    for name in (path_name, shown_name):
        names = [name(text) for text in ODD]
        assert len(set(names)) == len(ODD), [pair for pair in itertools.combinations(names, 2) if pair[0] == pair[1]]


def test_a_text_that_looks_like_a_made_name_is_not_taken_for_it() -> None:
    for name in (path_name, shown_name):
        made = name("a\x00b")
        assert name(made) != made


@pytest.mark.parametrize("text", ["1", "7", "unknown", "build-7", "2026.11.30", "v1_2"])
def test_ordinary_versions_stay_as_they_are(text: str) -> None:
    assert path_name(text) == shown_name(text) == text


def test_people_may_use_any_printable_text() -> None:
    assert shown_name("Build 7 (ü)") == "Build 7 (ü)"
    assert path_name("Build 7 (ü)").startswith("build-7~")
