"""How a model is retrained: settings as configured, and the spec and recipe that a job keeps of them."""
