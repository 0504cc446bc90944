"""Rows and a recipe go in; a model's directory comes out, or one sentence that says why there is none."""
