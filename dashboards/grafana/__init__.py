"""Grafana dashboards of driftd, written in Python: `python -m dashboards.grafana.build` writes their JSON."""
