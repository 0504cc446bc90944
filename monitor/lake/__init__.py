"""Delta tables: appended to exactly once, read by what is new, labels matched with their predictions."""
