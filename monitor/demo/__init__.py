"""The demo: a stand-in scoring service and a storyteller around a real daemon on embedded defaults.

Invariant: nothing here is known to the daemon; it sees a folder (or a broker) and a registry, as in production.
"""
