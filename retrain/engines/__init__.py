"""Where trainings run when not here: one protocol, and those who keep it."""
