"""Maps to Γ and along it: the limit map Φ_S of the gradient flow, the cheap return, and Γ as a curve.

They know losses and metrics by their interfaces alone, and say how they went: converged or not, how far, at which rank.
"""
