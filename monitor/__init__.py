"""driftd, observing: events -> lake -> windows -> measurements -> verdicts -> transitions -> retrain requests."""
