"""TOML goes in; a frozen configuration and the plans of its models come out, or every mistake at once."""
