"""What Prometheus and Grafana show of driftd."""
