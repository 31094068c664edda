"""Adaptive gradient methods as pairs (V, S), one family a file, and the second moments that Optax keeps.

An optimizer knows how gradients make a state and a state a metric, and its settings. It knows no problem, and nothing
of what it will be run on or compared with.
"""
