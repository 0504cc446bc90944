"""Window x Reference -> Measurements.

Invariant: the only package that imports Evidently, and only inside worker processes: importing
`monitor.measure`, `monitor.measure.methods` or `monitor.measure.scores` stays light.
"""
