"""Projector, drift and diffusion on Γ by rational formulas alone: no roots, no eigenvectors.

With N (m, p) the gradients of m functions f that define Γ, H = Nᵀ A N, K = N S Nᵀ and E = S Nᵀ,

    Π = I − E K⁻¹ N,        diffusion = Π S B,        Itô = −½ E K⁻¹ (⟨∇²f_j, Π S Σ S Πᵀ⟩)_j,
    tangential = −½ Π S T[C],   T[C] = ∇⟨∇²L, C⟩ with C held fixed,   or −(α/4) Π S T[S] where Σ = αH.

C is the solution of S H C + C H S = S Σ S without its part along Γ. It has the form E X Eᵀ + E Y + (E Y)ᵀ with
Y = (K A K)⁻¹ N S Σ S Πᵀ, X = K⁻¹ Z K⁻¹ and an m×m Lyapunov equation, K A Z + Z A K = N S Σ S Nᵀ.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import sympy

from .compact import Definitions, Names, is_long
from .formula import Formula
from .manifold import Manifold


@dataclass(frozen=True)
class Coefficients:
    """On Γ: Π (p, p), the covector ½T[C] (p, 1), the two parts of the drift (p, 1), the diffusion (p, r) or (p, 0)."""

    projector: Any
    force: Any
    tangential: Any
    ito: Any
    diffusion: Any

    def map(self, function: Callable[[Any], Any]) -> "Coefficients":
        """With `function` of every matrix."""
        return Coefficients(*(function(getattr(self, f.name)) for f in fields(self)))


def coefficients_of(formula: Formula, manifold: Manifold, S: Any) -> tuple[Coefficients, Definitions]:
    """The coefficients in the metric S (p, p), unsimplified, without decay and schedule; names for what is long."""
    N, B = manifold.normals, manifold.put(formula.factor)
    E, K = S * N.T, N * S * N.T
    names = Names(is_long(K, weighted=formula.scale is None))
    K = names.matrix("K", K, symmetric=True)
    inverse = inverted(K, names)
    projector = sympy.eye(len(formula.symbols)) - E * inverse * N
    along = projector * (S * B) if formula.diffuses else sympy.zeros(B.rows, 0)
    if formula.scale is not None:
        force = formula.scale / 2 * contracted(formula, manifold, S)
    else:
        short = names.matrix("P", along)
        C = fluctuations(E, inverse, K, manifold.curvature, N * (S * B), short, names)
        force = contracted(formula, manifold, C)
    force = names.matrix("T", force / 2)
    # Π S τ = S (τ − Nᵀ μ), with multipliers μ that hold the force against Γ.
    multipliers = names.matrix("mu", inverse * (N * (S * force)))
    tangential = -S * (force - N.T * multipliers)
    bends = [spread_of(manifold.put(sympy.hessian(f, formula.symbols)), along) for f in manifold.equations]
    bend = names.matrix("b", sympy.Matrix(bends) / 2)
    ito = -E * names.matrix("kappa", inverse * bend)
    return Coefficients(projector, force, tangential, ito, along), names.definitions


def spread_of(hessian: Any, along: Any) -> Any:
    """⟨∇²f, Π S Σ S Πᵀ⟩, column by column."""
    return (along.T * hessian * along).trace()


def contracted(formula: Formula, manifold: Manifold, C: Any) -> Any:
    """T[C] = ∇⟨H, C⟩, C held fixed (p, 1)."""
    p = len(formula.symbols)
    held = sympy.Matrix(p, p, lambda i, j: sympy.Dummy(f"C{min(i, j)}{max(i, j)}"))
    held = sympy.Matrix(p, p, lambda i, j: held[min(i, j), max(i, j)])
    quadratic = sum(manifold.hessian[i, j] * held[i, j] for i in range(p) for j in range(p) if C[i, j] != 0)
    values = {held[i, j]: C[i, j] for i in range(p) for j in range(i, p)}
    # Onto Γ before C is put in, which is on Γ already and may be long.
    return sympy.Matrix([manifold.put(sympy.diff(quadratic, s)).xreplace(values) for s in formula.symbols])


def fluctuations(E: Any, inverse: Any, K: Any, A: Any, normal: Any, along: Any, names: Names) -> Any:
    """C, the covariance of the fluctuations about Γ over η; `normal` = N S B, `along` = Π S B."""
    Z = names.matrix("Z", lyapunov(K * A, normal * normal.T), symmetric=True)
    X = names.matrix("X", inverse * Z * inverse, symmetric=True)
    Y = names.matrix("Y", inverse * inverted(A) * inverse * normal * along.T)
    half = E * X * E.T / 2 + E * Y
    return names.matrix("C", half + half.T, symmetric=True)


def lyapunov(M: Any, Q: Any) -> Any:
    """Z with M Z + Z Mᵀ = Q, Q symmetric."""
    m = M.shape[0]
    if M.is_diagonal():
        return sympy.Matrix(m, m, lambda i, j: Q[i, j] / (M[i, i] + M[j, j]))
    if m == 2:
        # For 2×2 there is a formula: (det M · Q + adj M · Q · adj Mᵀ)/(2 tr M det M).
        return (M.det() * Q + M.adjugate() * Q * M.adjugate().T) / (2 * M.trace() * M.det())
    pairs = [(i, j) for i in range(m) for j in range(i, m)]
    unknown = {pair: sympy.Dummy() for pair in pairs}
    Z = sympy.Matrix(m, m, lambda i, j: unknown[min(i, j), max(i, j)])
    residual = M * Z + Z * M.T - Q
    solved = sympy.solve([residual[pair] for pair in pairs], list(unknown.values()), dict=True)[0]
    return Z.xreplace(solved)


def inverted(K: Any, names: Names | None = None) -> Any:
    """K⁻¹ = adj(K)/det(K), with the determinant as one factor (D, if names are wanted)."""
    if K.is_diagonal():
        return sympy.diag(*(1 / K[i, i] for i in range(K.shape[0])))
    determinant = K.det(method="berkowitz")
    return K.adjugate() / (names.entry("D", determinant) if names and names.long else sympy.factor(determinant))
