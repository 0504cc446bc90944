"""Rows without labels and a reference go in; what their metrics would be comes out."""
