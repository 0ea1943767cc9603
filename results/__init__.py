"""Results of runs: reading them, tables, the papers' numbers, ablations, the comparison of methods, figures."""
