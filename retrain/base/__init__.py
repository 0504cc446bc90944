"""Logs, files, retries and text, for every other room."""
