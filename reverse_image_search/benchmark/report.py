"""What the benchmark's measurements say: medians, ratios with their targets, tables, a plot."""

from __future__ import annotations

import statistics
from pathlib import Path

from reverse_image_search.evaluation.command_line import print_table

TARGETS = {  # ratio: (target, whether less is better)
    "two calls, 1 client: p50 over in-process": (1.25, True),
    "one call, 1 client: p50 over in-process": (1.15, True),
    "two calls: best throughput over in-process": (0.6, False),
    "one call: best throughput over in-process": (0.75, False),
    "two calls over FastAPI, 32 clients": (2.5, False),
    "one call over FastAPI, 32 clients": (3.0, False),
    "two calls over LitServe, 32 clients": (2.5, False),
    "one call over LitServe, 32 clients": (3.0, False),
    "two calls over the first version, 32 clients": (8.0, False),
    "one call over the first version, 32 clients": (10.0, False),
    "exact search, one query: over FAISS": (1.2, True),
    "first request over the median": (1.5, True),
    "backend, 1 client: milliseconds added to a call": (0.3, True),
}
_FIGURES = ("queries_per_second", "p50_ms", "p95_ms", "p99_ms", "server_cpus", "generator_cpus")


def median_row(name: str, clients: int, reports: list[dict]) -> dict:
    """Medians of the repeats; `spread` is (largest - smallest) / median of the throughput."""
    medians = {
        key: statistics.median(report[key] for report in reports)
        for key in _FIGURES
        if key in reports[0]
    }
    throughputs = [report["queries_per_second"] for report in reports]
    spread = (max(throughputs) - min(throughputs)) / medians["queries_per_second"]
    last = {key: reports[-1][key] for key in ("triton", "model_ms") if reports[-1].get(key)}
    return {"name": name, "clients": clients, **medians, "spread": spread, **last}


def compute_ratios(rows: list[dict]) -> dict[str, float]:
    """The figures that have a target, as far as they were measured."""
    found = {(row["name"], row["clients"]): row for row in rows}
    ratios = {}
    alone = found["in-process, 1 threads, batch 1", 0]
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
    rows = report["rows"]
    print(f"\n{report['machine']}")
    print_table(
        ("what", "clients", "queries/s", "p50 ms", "p95 ms", "p99 ms", "CPUs: server",
         "generator", "spread", "of the limit"),
        [
            [row["name"], row["clients"] or "", *(row.get(key, 0.0) for key in _FIGURES),
             row["spread"], row["queries_per_second"] / _limit(rows)]
            for row in rows
        ],
    )  # fmt: skip
    print_table(
        ("Triton's own statistics", "clients", "model", "batch", "queue ms", "compute ms"),
        [
            [row["name"], row["clients"], model, *figures.values()]
            for row in rows
            for model, figures in row.get("triton", {}).items()
        ],
    )
    if search := report.get("index_search"):
        print_table(
            (f"exact search of {search['gallery']:,}: queries", "FAISS ms", "here ms", "ratio"),
            [
                [queries, faiss_ms, here_ms := search["exact_ms"][queries], here_ms / faiss_ms]
                for queries, faiss_ms in search["faiss_ms"].items()
            ],
        )
    targets = []
    for name, ratio in report["ratios"].items():
        target, less = TARGETS[name]
        is_met = ratio <= target if less else ratio >= target
        targets.append([name, ratio, f"{'≤' if less else '≥'} {target}", "yes" if is_met else "no"])
    print_table(("ratio", "measured", "target", "met"), targets)


def plot_load(rows: list[dict], machine: str, path: Path) -> None:
    """Latency against throughput, one line per server."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    for name in dict.fromkeys(row["name"] for row in rows if row["clients"]):
        points = [row for row in rows if row["name"] == name]
        places = [(row["queries_per_second"], row["p50_ms"]) for row in points]
        axes.plot(*zip(*places, strict=True), "o-", label=name)
        for row, place in zip(points, places, strict=True):
            axes.annotate(str(row["clients"]), place, (4, 4), textcoords="offset points")
    axes.axvline(_limit(rows), color="gray", linestyle=":", label="in-process limit")
    axes.set(xlabel="queries per second", ylabel="median latency, ms", yscale="log",
             title=f"Numbers at the points: clients\n{machine}")  # fmt: skip
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=110)


def _limit(rows: list[dict]) -> float:
    """Best throughput in process."""
    return max(row["queries_per_second"] for row in rows if not row["clients"])
