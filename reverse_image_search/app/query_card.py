"""The card above the results: the query, how far its neighbors agree, how long it took."""

from __future__ import annotations

import html

import numpy as np
import streamlit as st

from reverse_image_search.app.query import Query
from reverse_image_search.gallery import data_uri

_STYLE = """<style>
.card { display: flex; flex-wrap: wrap; gap: 1rem; }
.card figure { margin: 0; width: clamp(7rem, 30vw, 9rem); }
.card img { display: block; width: 100%; aspect-ratio: 1; object-fit: contain;
            border-radius: .5rem; }
.card.photos img { aspect-ratio: auto; max-height: 14rem; }
.card img[src^="data:image/png"] { image-rendering: pixelated; }
.card figcaption, .card .faint { font-size: .8rem; opacity: .8; }
.card .facts { flex: 1; min-width: 12rem; }
.card p { margin: 0 0 .3rem; }
.card .name { font-weight: 600; overflow-wrap: anywhere; }
.card .bars { display: flex; align-items: end; gap: 2px; height: 2.2rem; max-width: 18rem; }
.card .bars i { flex: 1; background: currentColor; opacity: .45; min-height: 1px; }
.card .ends { display: flex; justify-content: space-between; max-width: 18rem; }
</style>"""


def query_card(
    query: Query,
    agreement: tuple[str, int, int] | None,
    chart: str,
    timing: str,
    is_photo: bool = False,
) -> None:
    """Show `query`, the results' most frequent label and its count, and an HTML `chart` of scores.

    A photo is shown at its own aspect ratio.
    """
    figures = "".join(
        f'<figure><img src="{data_uri(file)}" alt="{html.escape(f"{caption}: {query.name}")}">'
        f"<figcaption>{html.escape(caption)}</figcaption></figure>"
        for caption, file in query.shown.items()
    )
    agreeing = agreement and (
        f'<p data-testid="agreement"><b>{agreement[1]} of {agreement[2]}</b> are '
        f"{html.escape(agreement[0])}</p>"
    )
    look = "card photos" if is_photo else "card"
    st.html(
        f'{_STYLE}<div class="{look}" data-testid="query-card">{figures}<div class="facts">'
        f'<p class="name">{html.escape(query.name)}</p>{agreeing or ""}{chart}'
        f'<p class="faint" data-testid="timing">{html.escape(timing)}</p></div></div>'
    )


def histogram(scores: np.ndarray) -> str:
    """Bars that show how scores (K,) spread between the lowest and the highest, as HTML."""
    if not len(scores):
        return ""
    low, high = float(scores.min()), float(scores.max())
    counts, _ = np.histogram(scores, 12, (low, high if high > low else low + 1))
    bars = "".join(f'<i style="height:{100 * n / counts.max():.0f}%"></i>' for n in counts)
    label = f"Histogram of the scores, from {low:.4f} to {high:.4f}"
    return (
        f'<div class="bars" role="img" aria-label="{label}">{bars}</div>'
        f'<p class="ends faint"><span>{low:.4f}</span><span>scores</span>'
        f"<span>{high:.4f}</span></p>"
    )
