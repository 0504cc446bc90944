"""Errors by who must act: a `TransientError` is nobody's fault and is retried with back-off by the shell.

`monitor.config.ConfigError` is the operator's, `monitor.events.Rejected` the producer's; anything else is a bug.
"""

from __future__ import annotations

from retrain.errors import TransientError

__all__ = ["StateLocked", "TransientError"]


class StateLocked(Exception):
    """Another daemon works in this state folder; the text names its process."""
