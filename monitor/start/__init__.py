"""Rows, or a registered model, go in; a configuration with its reasons, or an image for a service, comes out."""
