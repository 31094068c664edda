"""What is made of runs: comparisons, verdicts on trust, orders of convergence, extrapolated means.

A study knows trajectories, and may ask for runs; no run knows a study. Its results print and draw themselves.
"""
