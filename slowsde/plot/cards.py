"""Results as cards for notebooks, in HTML: a title, a table, sentences and a small figure. And rows of text tables."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Callable, Iterable, Sequence
from typing import Any

SIZE = (4.2, 2.8)  # inches of a figure beside a table
DPI = 110


def card(
    title: str,
    header: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    notes: Iterable[str] = (),
    draw: Callable[[Any], Any] | None = None,
) -> str:
    """HTML of a result; texts are escaped, and `draw(ax)` draws the figure (None for none)."""
    parts = [f"<strong>{html.escape(title)}</strong>", _table(header, rows), *map(_sentence, notes)]
    texts = "<div>" + "\n".join(filter(None, parts)) + "</div>"
    picture = "" if draw is None else _picture(draw, title)
    return f'<div style="display:flex;flex-wrap:wrap;gap:1.5em;align-items:flex-start">{texts}{picture}</div>'


def in_columns(cells: Sequence[str], widths: Sequence[int]) -> str:
    """A row of a table of text: a name, and cells that end where their columns do."""
    return f"{cells[0]:<28}" + "".join(f"{cell:>{width}}" for cell, width in zip(cells[1:], widths, strict=True))


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    body = "".join(f"<tr>{_cells('td', row)}</tr>" for row in rows)
    return f"<table><thead><tr>{_cells('th', header)}</tr></thead><tbody>{body}</tbody></table>" if body else ""


def _cells(tag: str, texts: Sequence[str]) -> str:
    sides = ("left", *("right",) * (len(texts) - 1))  # names, then numbers
    styles = (f"text-align:{side};padding:0.1em 0.6em" for side in sides)
    cells = zip(styles, map(html.escape, texts), strict=True)
    return "".join(f'<{tag} style="{style}">{text}</{tag}>' for style, text in cells)


def _sentence(text: str) -> str:
    return f'<div style="max-width:36em">{html.escape(text)}</div>'


def _picture(draw: Callable[[Any], Any], title: str) -> str:
    # Not by pyplot, which would keep the figure and show it a second time.
    from matplotlib.figure import Figure

    figure, data = Figure(figsize=SIZE, layout="constrained"), io.BytesIO()
    draw(figure.add_subplot())
    figure.savefig(data, format="png", dpi=DPI)
    code, width = base64.b64encode(data.getvalue()).decode(), round(96 * SIZE[0])
    return f'<img width="{width}" alt="{html.escape(title)}" src="data:image/png;base64,{code}">'
