"""Bytes of a source go in; typed rows reach the lake exactly once, what is no event becomes a dead letter."""
