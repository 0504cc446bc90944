"""A scoring service that follows the champion: it answers, writes prediction events, splits traffic for a canary.

Invariant: it knows the registry and the events' contract, and nothing of the daemon; `retrain` and `monitor` know
nothing of it. What it needs of `retrain` are leaf modules: schema, frame, registry, model files.
"""
