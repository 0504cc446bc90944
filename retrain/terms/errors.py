"""Errors that cross module borders in the acting half, by who must act.

Invariant: `TransientError` is raised only by adapters (registry, lake, control database) and is retried in one
place, `retrain.base.retry`; everything else here is a refusal that retrying cannot change.
"""

from __future__ import annotations


class ConfigError(Exception):
    """The operator must change the configuration. `problems` holds one line per mistake."""

    def __init__(self, problems: list[str]):
        super().__init__("\n".join(problems))
        self.problems = problems


class TransientError(Exception):
    """Nobody need act: something outside is away for a while. The text says what, and what it answered."""


class LostRace(Exception):
    """The job was not in the state it was read in: somebody else moved it first."""


class LeaseLost(Exception):
    """Another process drives this job now; this one must stop touching it."""


class RowsGone(Exception):
    """The lake no longer holds the rows of a version: its files were vacuumed, or its log was cleaned up."""


class JobFailed(Exception):
    """The job cannot go on; the text says why, for people. No bug."""


class UnknownJob(Exception):
    """No job of that id."""


class Refused(Exception):
    """An operator asked for something the recorded state does not allow; the text says why."""
