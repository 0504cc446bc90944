"""The one HTTP port: metrics, health, status API and page.

Invariant: reading needs no rights and changes nothing; what changes state needs the bearer token.
"""
