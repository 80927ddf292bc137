"""Testing kit: named shapes, oracles and tolerances, timing, rooflines, and the eager baseline."""
