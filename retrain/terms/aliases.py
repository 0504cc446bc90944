"""The names that a registered model is found by: what services load, and what layers that split traffic read."""

from __future__ import annotations

CHAMPION, CHALLENGER, PREVIOUS = "champion", "challenger", "previous"
"""Aliases."""
TRAFFIC_TAG = "driftd.traffic"
"""Tag: `{"champion": "6", "challenger": "7", "share": 0.05}`; absent: everything goes to the champion."""
