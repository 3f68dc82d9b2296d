"""Plots of the benchmarks."""

from __future__ import annotations

from pathlib import Path

from matplotlib.figure import Figure


def plot_load(rows: list[dict], machine: str, path: Path) -> None:
    """Latency against throughput, one line per server."""
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    for name in dict.fromkeys(row["name"] for row in rows if row["clients"]):
        points = [row for row in rows if row["name"] == name]
        throughput = [row["queries_per_second"] for row in points]
        axes.plot(throughput, [row["p50_ms"] for row in points], "o-", label=name)
        for row, x in zip(points, throughput, strict=True):
            axes.annotate(
                str(row["clients"]), (x, row["p50_ms"]), (4, 4), textcoords="offset points"
            )
    limit = max(row["queries_per_second"] for row in rows if not row["clients"])
    axes.axvline(limit, color="gray", linestyle=":", label="in-process limit")
    axes.set(xlabel="queries per second", ylabel="median latency, ms", yscale="log",
             title=f"Numbers at the points: clients\n{machine}")  # fmt: skip
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=110)


def plot_growth(rows: list[dict], machine: str, path: Path) -> None:
    """Time and memory of a search against the size of the gallery."""
    figure = Figure(figsize=(9, 4), layout="constrained")
    time_axes, memory_axes = figure.subplots(1, 2)
    sizes = [row["gallery"] for row in rows]
    for index in ("exact", "faiss"):
        for size in (1, 32):
            label = f"{index}, {size} queries at once, each"
            times = [row[f"{index}_ms"][size] / size for row in rows]
            time_axes.plot(sizes, times, "o-", label=label)
    for key, label, scale in (
        ("memory_mb", "memory, MB", 1),
        ("file_mb", "file, MB", 1),
        ("load_seconds", "load, ms", 1e3),
    ):
        memory_axes.plot(sizes, [scale * row[key] for row in rows], "o-", label=label)
    time_axes.set(ylabel="ms")
    for axes in (time_axes, memory_axes):
        axes.set(xscale="log", yscale="log", xlabel="vectors in the gallery")
        axes.grid(alpha=0.3)
        axes.legend()
    figure.suptitle(machine)
    figure.savefig(path, dpi=110)
