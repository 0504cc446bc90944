# `pint --config dashboards/prometheus/pint.hcl --offline lint dashboards/prometheus/rules`
checks {
  disabled = [
    # Recorded series and alerts are in files of their own, so in groups of their own: an alert may read a value that is
    # one evaluation old, thirty seconds at most. Every alert that would mind waits longer by its `for`.
    "rule/dependency",
  ]
}

rule {
  match {
    kind = "alerting"
  }

  annotation "summary" {
    severity = "bug"
    required = true
  }
  annotation "description" {
    severity = "bug"
    required = true
  }
  annotation "runbook_url" {
    severity = "bug"
    required = true
    value    = "https://github.com/driftd/driftd/blob/main/docs/runbook.md#.+"
  }
  label "severity" {
    severity = "bug"
    required = true
    value    = "(critical|warning|info|.+labels.severity.+)"
  }
  label "area" {
    severity = "bug"
    required = true
    value    = "(performance|data|retrain|service)"
  }
}

rule {
  match {
    kind = "recording"
  }

  aggregate ".+" {
    severity = "bug"
    keep     = ["job"]
  }
}
