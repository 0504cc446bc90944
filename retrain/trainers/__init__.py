"""Trainers shipped with driftd."""
