"""Measured windows go in; transitions and requests to retrain come out, on record before they have an effect."""
