"""What scores mean in this gallery: where those of known pairs of images lie, and the query's."""

from __future__ import annotations

import html

import numpy as np

from reverse_image_search.gallery import SCORE_QUANTILES

_KINDS = {
    "random_pairs": "random pairs",
    "same_label": "pairs with the same label",
    "perturbed_copies": "altered copies of an image",
}
_STYLE = """<style>
.scale { max-width: 34rem; font-size: .8rem; line-height: 1.35; margin-bottom: .5rem;
         padding-right: .7rem; /* for half of the last number */ }
.scale .row { display: flex; align-items: center; gap: .6rem; }
.scale .what { flex: 0 0 9.6rem; text-align: right; line-height: 1.15; }
.scale .track { position: relative; flex: 1; height: 1.15rem; }
.scale i { position: absolute; background: currentColor; }
.scale .most { top: .5rem; height: .15rem; opacity: .45; }
.scale .half { top: .3rem; height: .55rem; opacity: .45; border-radius: .15rem; }
.scale .tick { top: .1rem; width: 2px; height: .95rem; opacity: .8; }
.scale .mean { top: .2rem; width: 2px; height: .75rem; }
.scale .lowest { top: 0; width: 0; height: 100%; background: none; border-left: 2px dashed; }
.scale .axis { height: 1.1rem; border-top: 1px solid; opacity: .75; }
.scale .axis span { position: absolute; transform: translateX(-50%); }
.scale p { margin: .3rem 0 0; font-size: inherit; }
@media (max-width: 30rem) { .scale .what { flex-basis: 6rem; } }
</style>"""


def score_scale(scale: dict[str, list[float]], scores: np.ndarray, lowest: float | None) -> str:
    """A chart, as HTML: `scale`, a query's `scores` (K,), best first, and the `lowest` wanted."""
    low = min(*(values[0] for values in scale.values()), *scores, 0.99)
    step = 0.2 if low >= 0 else 0.5
    low = step * np.floor(low / step)

    def left(score: float) -> str:
        return f"left:{100 * (score - low) / (1 - low):.2f}%"

    line = (
        "" if lowest is None or lowest < low else f'<i class="lowest" style="{left(lowest)}"></i>'
    )
    ticks = "".join(f'<i class="tick" style="{left(score)}"></i>' for score in scores.tolist())
    rows = [_row("this query", ticks + line)]
    for kind, title in _KINDS.items():
        if kind in scale:
            _, p5, p25, p50, p75, p95, _ = scale[kind]
            marks = (
                f'<i class="most" style="{left(p5)};width:{100 * (p95 - p5) / (1 - low):.2f}%"></i>'
                f'<i class="half" style="{left(p25)};width:{100 * (p75 - p25) / (1 - low):.2f}%">'
                f'</i><i class="mean" style="{left(p50)}"></i>'
            )
            rows.append(_row(title, marks + line))
    steps = np.arange(low, 1.01, step)
    numbers = "".join(f'<span style="{left(step)}">{step:.1f}</span>' for step in steps)
    rows.append(
        f'<div class="row"><span class="what"></span><div class="track axis">{numbers}</div></div>'
    )
    meaning = html.escape(meaning_of(float(scores[0]), scale)) if len(scores) else ""
    return (
        f'{_STYLE}<div class="scale" data-testid="score-scale" role="img" '
        f'aria-label="{meaning or "Score scale"}">{"".join(rows)}<p>{meaning}</p></div>'
    )


def meaning_of(score: float, scale: dict[str, list[float]]) -> str:
    """A sentence that compares `score` with those of the pairs in `scale`."""
    shares = [
        f"{np.interp(score, scale[kind], SCORE_QUANTILES):.0f} % of {title}"
        for kind, title in _KINDS.items()
        if kind in scale
    ]
    return f"The best score, {score:.4f}, is higher than that of {', '.join(shares)}."


def _row(title: str, marks: str) -> str:
    return (
        f'<div class="row"><span class="what">{title}</span><div class="track">{marks}</div></div>'
    )
