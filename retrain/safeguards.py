"""Where a team's own gates import `Answer` and `Match` from (docs/gates.md)."""

from retrain.judge.safeguards import Answer, Match

__all__ = ["Answer", "Match"]
