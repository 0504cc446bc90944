"""Errors by who must act: a `TransientError` is nobody's fault and is retried with back-off by the shell.

A `ConfigError` is the operator's, a `monitor.intake.rejects.Rejected` the producer's; anything else is a bug.
"""

from __future__ import annotations

from retrain.terms.errors import ConfigError, TransientError

__all__ = ["ConfigError", "StateLocked", "TransientError"]


class StateLocked(Exception):
    """Another daemon works in this state folder; the text names its process."""
