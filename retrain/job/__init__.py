"""Drives one request through the states of a job, each step on record before the next."""
