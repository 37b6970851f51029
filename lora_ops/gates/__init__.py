"""Gates: counts of bad samples judged by two formulas. The package itself loads none of its modules."""
