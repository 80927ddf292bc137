"""Testing kit: named shapes, oracles and tolerances, timing, rooflines, and the eager baseline.

It lies above `ops` and below `aot`, `profiling` and `benchmark`; the engine does not need it.
"""
