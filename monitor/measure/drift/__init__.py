"""Columns of a window and its reference go in; how far apart they are, and whether it matters, comes out."""
