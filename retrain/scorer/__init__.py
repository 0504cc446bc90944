"""Models made elsewhere are opened here, and nowhere else: a model's directory and rows go in, answers come out.

Guarantee: whatever a model does when it is opened or asked (runs, hangs, eats memory, takes its process down), it does
so in a process of its own that has no secrets, no registry, no network, no children and a folder of its own, and the
caller gets answers or an `UnusableModel` that says what happened.
"""

from retrain.scorer.scorers import Limits, Scorer, Scorers, Trust

__all__ = ["Limits", "Scorer", "Scorers", "Trust"]
