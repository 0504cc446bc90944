"""The loop: a loaded configuration goes in; a daemon polls, ticks and supervises until it is told to stop."""
