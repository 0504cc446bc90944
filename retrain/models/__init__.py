"""Model directories and the registry: what may be opened, what it answers, what is registered. Nothing is unpickled."""
