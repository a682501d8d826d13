"""What does a result look like? One file per figure; each is a function from results to a plotly figure."""

from mcr_lens.plots.complexity import plot_complexity
from mcr_lens.plots.conditions import plot_comparison
from mcr_lens.plots.dimensions import plot_massive_dimensions
from mcr_lens.plots.doses import plot_dose_response
from mcr_lens.plots.emergence import plot_emergence
from mcr_lens.plots.heads import plot_heads
from mcr_lens.plots.profile import plot_profile
from mcr_lens.plots.readouts import plot_readouts
from mcr_lens.plots.shares import plot_attention_shares
from mcr_lens.plots.sink_curves import plot_sink_curves
from mcr_lens.plots.tightness import plot_bounds
from mcr_lens.plots.tokens import plot_pattern, plot_token_norms

__all__ = [
    "plot_attention_shares",
    "plot_bounds",
    "plot_comparison",
    "plot_complexity",
    "plot_dose_response",
    "plot_emergence",
    "plot_heads",
    "plot_massive_dimensions",
    "plot_pattern",
    "plot_profile",
    "plot_readouts",
    "plot_sink_curves",
    "plot_token_norms",
]
