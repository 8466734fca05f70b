"""The look that all pictures share: ink, colours and matplotlib's settings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from steepest.errors import UsageError

# Okabe and Ito (2008): distinct for every common kind of colour vision; the yellow is left out, being faint on white.
COLOURS = {
    "blue": "#0072B2",
    "vermilion": "#D55E00",
    "green": "#009E73",
    "purple": "#CC79A7",
    "sky blue": "#56B4E9",
    "orange": "#E69F00",
    "grey": "#333333",
}
"""In the order in which curves take them."""

INK, FAINT_INK = "#222222", "#6B6B6B"

STYLE: dict[Any, Any] = {
    "font.size": 10.5,
    "text.color": INK,
    "axes.edgecolor": "#9A9A9A",
    "axes.labelcolor": INK,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#E6E6E6",
    "grid.linewidth": 0.8,
    "xtick.color": "#9A9A9A",
    "ytick.color": "#9A9A9A",
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "legend.facecolor": "white",
    "legend.edgecolor": "none",
    "legend.framealpha": 0.85,
    "lines.solid_capstyle": "round",
    "savefig.dpi": 160,
}
"""For ``matplotlib.rc_context``."""

FORMATS = (".png", ".pdf", ".svg")


def check_picture(out: Path) -> None:
    """Refuse an ending that cannot be drawn, before anything is read or computed; without an ending it is a .png."""
    if out.suffix and out.suffix.lower() not in FORMATS:
        raise UsageError(f"cannot draw to {out}: the ending must be {', '.join(FORMATS[:-1])} or {FORMATS[-1]}.")
