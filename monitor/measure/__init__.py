"""Window x Reference -> Measurements.

Invariant: the only package that imports Evidently, and only inside worker processes: importing
`monitor.measure`, `monitor.measure.drift.methods` or `monitor.measure.performance.scores` stays light.
"""
