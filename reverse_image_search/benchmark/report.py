"""What the benchmark's measurements say: medians, ratios with their targets, and tables."""

from __future__ import annotations

import statistics

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


def median_row(name: str, clients: int, reports: list[dict]) -> dict:
    """Medians of the repeats; `spread` is (largest - smallest) / median of the throughput."""
    row: dict = {"name": name, "clients": clients}
    latencies, cpus = ("p50_ms", "p95_ms", "p99_ms"), ("server_cpus", "generator_cpus")
    for key in ("queries_per_second", *latencies, *cpus):
        if key in reports[0]:
            row[key] = statistics.median(report[key] for report in reports)
    throughputs = [report["queries_per_second"] for report in reports]
    row["spread"] = (max(throughputs) - min(throughputs)) / row["queries_per_second"]
    for key in ("triton", "model_ms"):
        if reports[-1].get(key):
            row[key] = reports[-1][key]
    return row


def compute_ratios(rows: list[dict]) -> dict[str, float]:
    """The figures that have a target, as far as they were measured."""
    found = {(row["name"], row["clients"]): row for row in rows}
    ratios = {}
    limit_ms = found["in-process, 1 threads, batch 1", 0]["p50_ms"]
    limit = max(row["queries_per_second"] for row in rows if not row["clients"])
    alone_ms = found["in-process, 1 threads, batch 1", 0].get("model_ms", {})
    in_backend = found.get(("two calls", 1), {}).get("triton", {})
    if alone_ms and in_backend:
        # What Triton counts for a call to the backend, less what the model takes by itself.
        ratios["backend, 1 client: milliseconds added to a call"] = statistics.mean(
            in_backend[name]["compute_ms"] - milliseconds for name, milliseconds in alone_ms.items()
        )
    for way in ("two calls", "one call"):
        own = {clients: row for (name, clients), row in found.items() if name == way}
        if not own:
            continue
        ratios[f"{way}, 1 client: p50 over in-process"] = own[1]["p50_ms"] / limit_ms
        best = max(row["queries_per_second"] for row in own.values())
        ratios[f"{way}: best throughput over in-process"] = best / limit
        for peer in ("FastAPI", "LitServe", "the first version"):
            if (peer, 32) in found:
                ratios[f"{way} over {peer}, 32 clients"] = (
                    own[32]["queries_per_second"] / found[peer, 32]["queries_per_second"]
                )
    return ratios


def print_report(report: dict) -> None:
    """Tables of all rows, Triton's own statistics and the ratios."""
    limit = max(row["queries_per_second"] for row in report["rows"] if not row["clients"])
    print(f"\n{report['machine']}\n")
    print("| what | clients | queries/s | of the limit | p50 ms | p95 ms | p99 ms | spread "
          "| CPUs: server | generator |")  # fmt: skip
    print("|---|---|---|---|---|---|---|---|---|---|")
    for row in report["rows"]:
        print(
            f"| {row['name']} | {row['clients'] or ''} | {row['queries_per_second']:.0f} "
            f"| {row['queries_per_second'] / limit:.2f} | {row['p50_ms']:.2f} "
            f"| {row['p95_ms']:.2f} | {row['p99_ms']:.2f} | {row['spread']:.0%} "
            f"| {row.get('server_cpus', 0):.2f} | {row.get('generator_cpus', 0):.2f} |"
        )
    print("\n| Triton's own statistics | clients | model | batch | queue ms | compute ms |")
    print("|---|---|---|---|---|---|")
    for row in report["rows"]:
        for model, figures in row.get("triton", {}).items():
            print(
                f"| {row['name']} | {row['clients']} | {model} | {figures['batch']:.1f} "
                f"| {figures['queue_ms']:.2f} | {figures['compute_ms']:.2f} |"
            )
    if search := report.get("index_search"):
        print(f"\n| exact search of {search['gallery']:,}: queries | FAISS ms | here ms | ratio |")
        print("|---|---|---|---|")
        for queries, faiss_ms in search["faiss_ms"].items():
            here_ms = search["exact_ms"][queries]
            print(f"| {queries} | {faiss_ms:.2f} | {here_ms:.2f} | {here_ms / faiss_ms:.2f} |")
    print("\n| ratio | measured | target | met |\n|---|---|---|---|")
    for name, ratio in report["ratios"].items():
        target, less = TARGETS[name]
        met = ratio <= target if less else ratio >= target
        print(f"| {name} | {ratio:.2f} | {'≤' if less else '≥'} {target} "
              f"| {'yes' if met else 'no'} |")  # fmt: skip
