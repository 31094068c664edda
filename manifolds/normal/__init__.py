"""The normal space at a point of Γ in a metric S, from a Hessian or from the Jacobian of constraints r = 0.

Jacobians as products; eigenpairs of H' = S^½ H S^½ where a formula needs them (Lyapunov weights, Itô terms, spectra);
solves with the kernel J S Jᵀ where it does not (projections, returns). Knows matrices and metrics, no loss.
"""
