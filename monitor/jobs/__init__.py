"""The way to retraining and back: recorded requests become jobs; jobs become status, activity and metrics."""
