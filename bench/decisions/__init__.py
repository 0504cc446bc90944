"""driftd's defaults against what people use instead: docs/decisions-quality.md."""
