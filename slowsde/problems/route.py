"""How the geometry of a problem is computed: by dense Hessians, by a stored Jacobian, or by products alone."""

from dataclasses import dataclass
from typing import Any

from ..support.arguments import choice, number, positive_integer

ROUTES = ("auto", "dense", "kernel", "matrix_free")
MEMORY = 2**31
# At 10⁷ entries (p = 20 000, n = 500) the kernel route takes 129 ms for a drift, products 41 ms.
STORED = 2**20  # entries of a Jacobian up to which the kernel route is the faster one, see docs/benchmarks.md


@dataclass(frozen=True)
class Route:
    """A route by name, with a bound of the memory that Jacobians may take; wherever a `route` is asked for, its name
    will do.

    Args:
        name: "dense", p×p Hessians, any loss, p up to about 2000; "kernel", the Jacobian of the m residuals of a least-
            squares problem or a classification, stored, and its m×m kernel; "matrix_free", products with that Jacobian
            and kernel, of whose rows only a few are held at a time; "auto" for the fastest of these that fits.
        memory: bytes that a stored Jacobian with its copies, or a block of its rows, may take.
        block: samples that sums over samples take at a time; None for all that fit `memory`, on a CPU for one unless
            all fit its cache. Route and block of a run are in its `stats`.

    Raises ValueError for another name, and for a bound or block that is not positive.

    Example:
        >>> slow = simulate(problem, adam(c=10.0), params0, 1.0, route=Route("matrix_free", memory=8 * 10**9))
    """

    name: str = "auto"
    memory: int = MEMORY
    block: int | None = None

    def __post_init__(self) -> None:
        choice("route", self.name, ROUTES)
        number("memory", self.memory, "bytes.", above=0)
        if self.block is not None:
            positive_integer("block", self.block)

    def of_residuals(self, residuals: int, parameters: int) -> str:
        """The name, that of the route chosen for so many residuals and parameters if it is "auto"."""
        if self.name != "auto":
            return self.name
        entries = residuals * parameters
        # J S Jᵀ is then no smaller than H', and singular.
        if residuals >= parameters:
            return "dense"
        # Eight bytes an entry, and four copies, as in `LeastSquaresLoss`.
        return "kernel" if entries <= STORED and 4 * 8 * entries <= self.memory else "matrix_free"


def as_route(route: Any) -> Route:
    """`route`, a `Route` or a name; ValueError for anything else."""
    return route if isinstance(route, Route) else Route(route)
