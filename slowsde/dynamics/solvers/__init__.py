"""Diffrax solvers whose every step ends on Γ, by the Gauss–Newton return in the current metric S(v), one a file.

To it belong what they step by: the pair (ζ, v) as a state, Brownian increments by step number, landing on saved times.
"""
