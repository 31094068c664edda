"""Figures of finished results: `plot_x(result, *, ax=None, **kw) -> Axes`. No global setting is touched.

Results draw themselves through these functions, so that this floor lies below theirs: it knows what it draws by its
attributes alone (`results`), and of the rest of the package nothing. Matplotlib is loaded by the first figure.
"""

from .comparisons import plot_comparison, plot_gap
from .orders import plot_convergence
from .phase_portrait import plot_phase_portrait
from .predictions import plot_prediction
from .style import CLOCKS, COLOURS, LABELS, MARKERS, TIME
from .trajectories import plot_metric, plot_sharpness, plot_test_error
from .verdicts import plot_validity, shade_untrusted

__all__ = [
    "CLOCKS",
    "COLOURS",
    "LABELS",
    "MARKERS",
    "TIME",
    "plot_comparison",
    "plot_convergence",
    "plot_gap",
    "plot_metric",
    "plot_phase_portrait",
    "plot_prediction",
    "plot_sharpness",
    "plot_test_error",
    "plot_validity",
    "shade_untrusted",
]
