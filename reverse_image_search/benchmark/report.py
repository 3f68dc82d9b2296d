"""What the benchmark's measurements say: medians, ratios with their targets, tables, a plot."""

import math
import statistics
from pathlib import Path
from typing import Any

from reverse_image_search.command_line import print_table

TARGETS = {  # ratio: at most, or at least
    "two calls, 1 client: p50 over in-process": ("≤", 1.25),
    "one call, 1 client: p50 over in-process": ("≤", 1.15),
    "two calls: best throughput over in-process": ("≥", 0.6),
    "one call: best throughput over in-process": ("≥", 0.75),
    "two calls over FastAPI, 32 clients": ("≥", 2.5),
    "one call over FastAPI, 32 clients": ("≥", 3.0),
    "two calls over LitServe, 32 clients": ("≥", 2.5),
    "one call over LitServe, 32 clients": ("≥", 3.0),
    "two calls over the first version, 32 clients": ("≥", 8.0),
    "one call over the first version, 32 clients": ("≥", 10.0),
    "exact search, one query: over FAISS": ("≤", 1.2),
    "first request over the median": ("≤", 1.5),
    "backend, 1 client: milliseconds added to a call": ("≤", 0.3),
}
_FIGURES = ("queries_per_second", "p50_ms", "p95_ms", "p99_ms", "server_cpus", "generator_cpus")


def median_row(name: str, clients: int, reports: list[dict]) -> dict:
    """Medians of the repeats; `spread` is (largest - smallest) / median of the throughput."""
    keys = [key for key in _FIGURES if key in reports[0]]
    medians = {key: statistics.median(report[key] for report in reports) for key in keys}
    throughputs = [report["queries_per_second"] for report in reports]
    spread = (max(throughputs) - min(throughputs)) / medians["queries_per_second"]
    last = {key: reports[-1][key] for key in ("triton", "model_ms") if reports[-1].get(key)}
    return {"name": name, "clients": clients, **medians, "spread": spread, **last}


def compute_ratios(rows: list[dict]) -> dict[str, float]:
    """The figures that have a target, as far as they were measured."""
    found = {(row["name"], row["clients"]): row for row in rows}
    ratios = {}
    alone = found.get(("in-process, 1 threads, batch 1", 0))
    if not alone:
        return {}
    in_backend = found.get(("two calls", 1), {}).get("triton")
    if in_backend and "model_ms" in alone:
        # What Triton counts for a call to the backend, less what the model takes by itself.
        ratios["backend, 1 client: milliseconds added to a call"] = statistics.mean(
            in_backend[name]["compute_ms"] - milliseconds
            for name, milliseconds in alone["model_ms"].items()
        )
    for way in ("two calls", "one call"):
        own = {clients: row for (name, clients), row in found.items() if name == way}
        if not own:
            continue
        ratios[f"{way}, 1 client: p50 over in-process"] = own[1]["p50_ms"] / alone["p50_ms"]
        best = max(row["queries_per_second"] for row in own.values())
        ratios[f"{way}: best throughput over in-process"] = best / _limit(rows)
        for peer in ("FastAPI", "LitServe", "the first version"):
            if (peer, 32) in found:
                ratios[f"{way} over {peer}, 32 clients"] = (
                    own[32]["queries_per_second"] / found[peer, 32]["queries_per_second"]
                )
    return ratios


def print_report(report: dict) -> None:
    """Tables of all rows, Triton's own statistics and the ratios."""
    rows, limit = report["rows"], _limit(report["rows"])
    print(f"\n{report['machine']}")
    print_table(
        ["what", "clients", "queries/s", "p50 ms", "p95 ms", "p99 ms", "CPUs: server", "generator",
         "spread", "of the limit"],
        [[row["name"], row["clients"] or "", *(row.get(key, 0.0) for key in _FIGURES),
          row["spread"], row["queries_per_second"] / limit] for row in rows],
    )  # fmt: skip
    print_table(
        ["Triton's own statistics", "clients", "model", "batch", "queue ms", "compute ms"],
        [[row["name"], row["clients"], model, *figures.values()]
         for row in rows for model, figures in row.get("triton", {}).items()],
    )  # fmt: skip
    if search := report.get("index_search"):
        pairs = zip(search["faiss_ms"].items(), search["exact_ms"].values(), strict=True)
        print_table(
            [f"exact search of {search['gallery']:,}: queries", "FAISS ms", "here ms", "ratio"],
            [[queries, faiss, here, here / faiss] for (queries, faiss), here in pairs],
        )
    targets = []
    for name, ratio in report["ratios"].items():
        sign, target = TARGETS[name]
        is_met = ratio <= target if sign == "≤" else ratio >= target
        targets.append([name, ratio, f"{sign} {target}", "yes" if is_met else "no"])
    print_table(["ratio", "measured", "target", "met"], targets)


def plot_load(rows: list[dict], machine: str, path: Path) -> None:
    """Latency against throughput, one line per server, the number of clients at each point."""
    lines: dict[str, list[tuple]] = {}
    for row in rows:
        if row["clients"]:
            point = (row["queries_per_second"], row["p50_ms"], row["clients"])
            lines.setdefault(row["name"], []).append(point)
    latencies = [row["p50_ms"] for row in rows]
    limit = _limit(rows)
    if not math.isnan(limit):
        lines["in-process limit"] = [(limit, min(latencies), ""), (limit, max(latencies), "")]
    plot_lines(path, lines, xlabel="queries per second", ylabel="median latency, ms",
               yscale="log", title=f"Numbers at the points: clients\n{machine}")  # fmt: skip


def plot_lines(path: Path, lines: dict[str, list[tuple]], **axes_settings: Any) -> None:
    """Lines by label through points (x, y, text)."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    for label, points in lines.items():
        axes.plot([x for x, _, _ in points], [y for _, y, _ in points], "o-", label=label)
        for x, y, text in points:
            axes.annotate(
                str(text), (x, y), (4, 4), textcoords="offset points", annotation_clip=True
            )
    axes.set(**axes_settings)
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=110)


def _limit(rows: list[dict]) -> float:
    """Best throughput in process; NaN where that was not measured."""
    throughputs = (row["queries_per_second"] for row in rows if not row["clients"])
    return max(throughputs, default=math.nan)
