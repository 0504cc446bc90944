"""Telling the outside what happened: webhooks, a Kafka topic, a lineage server.

Invariant: `sender` reads the audit log and knows nothing of where things go; each outlet knows one way out.
"""
