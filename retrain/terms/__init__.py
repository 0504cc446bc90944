"""The vocabulary that both packages share: pure values, no library but pydantic."""
