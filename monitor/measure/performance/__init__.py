"""Labelled rows go in; metrics with their intervals come out, overall and by segment."""
