"""Measure a running server next to the machine's limit, and next to its peers.

Run it through ``reverse_image_search/bin/benchmark.sh``.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path

from reverse_image_search import contract
from reverse_image_search.benchmark.server_figures import (
    BenchmarkError,
    served_models,
    server_cpu_seconds,
    statistics_between,
    triton_statistics,
)
from reverse_image_search.benchmark.servers import own_server, peers
from reverse_image_search.layout import REPOSITORY_ROOT

_CLIENTS = (1, 8, 32, 64)
_PEER_CLIENTS = (1, 32)
_BATCH_SIZES = (1, 8, 16, 32, 64)

_TARGETS = {  # ratio: (target, whether less is better)
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


def main() -> int:
    """Measure, print, and write what was asked for; returns the exit code."""
    options = _parse()
    try:
        with contextlib.ExitStack() as stack:
            ratios: dict[str, float] = {}
            if options.start:
                url, first_over_median = stack.enter_context(own_server(options.output_dir))
                ratios["first request over the median"] = first_over_median
            else:
                url = options.url
            rows = _measure_all(options, url)
        report = {"machine": describe_machine(), "rows": rows}
        if options.compare:
            report["exact_search"] = _run_module("exact_search", "--output-dir", options.output_dir)
            one_query = report["exact_search"]["rows"][0]
            ratios["exact search, one query: over FAISS"] = (
                one_query["here_ms"] / one_query["faiss_ms"]
            )
    except BenchmarkError as error:
        print(f"benchmark: {error}", file=sys.stderr)
        return 1
    report["ratios"] = _ratios(rows) | ratios
    _print_report(report)
    if options.json:
        options.json.write_text(json.dumps(report, indent=2) + "\n")
    if options.plot:
        from reverse_image_search.benchmark.plot import plot_load

        plot_load(rows, report["machine"], options.plot)
    return 0


def _measure_all(options: argparse.Namespace, url: str) -> list[dict]:
    images = options.output_dir / "gallery" / "query_images.npy"
    model_repo = options.output_dir / "model_repo"
    if not images.exists():
        raise BenchmarkError(
            f"{images} is missing. Build with reverse_image_search/bin/build_models.sh"
        )
    served = served_models(url)
    ways = [("two calls", "two_calls")]
    if contract.IMAGE_SEARCH.name in served:
        ways.append(("one call", "one_call"))
    else:
        print("image_search is not served; start the server with --ensemble to measure it.")
    runs: dict[tuple[str, int], list[dict]] = {}

    def add(name: str, clients: int, report: dict) -> None:
        runs.setdefault((name, clients), []).append(report)
        print(f"  {name}, {clients or 'no'} clients: {report['queries_per_second']:.0f} queries/s, "
              f"p50 {report['p50_ms']:.2f} ms", flush=True)  # fmt: skip

    for repeat in range(options.repeats):
        print(f"repeat {repeat + 1} of {options.repeats}", flush=True)
        for threads in sorted({1, os.cpu_count() or 1}):
            for size, report in _in_process(model_repo, images, threads, options.seconds).items():
                add(f"in-process, {threads} threads, batch {size}", 0, report)
        for name, scenario in ways:
            for clients in _CLIENTS:
                add(name, clients, load(url, scenario, clients, images, options.seconds))
    if options.compare:
        for name, scenario, server in peers(model_repo):
            with server as peer_url:
                for _ in range(options.repeats):
                    for clients in _PEER_CLIENTS:
                        report = load(peer_url, scenario, clients, images, options.seconds)
                        add(name, clients, report)
    return [_median_row(*key, reports) for key, reports in runs.items()]


def _in_process(model_repo: Path, images: Path, threads: int, seconds: float) -> dict[str, dict]:
    return _run_module(
        "in_process", "--model-repo", model_repo, "--images", images, "--threads", threads,
        "--seconds", seconds, "--batch-sizes", *_BATCH_SIZES,
    )  # fmt: skip


def load(url: str, scenario: str, clients: int, images: Path, seconds: float) -> dict:
    """One run of the load generator, with what the server itself says about it.

    Returns
    -------
    `generate_load`'s report, and server_cpus, generator_cpus, and Triton's statistics by model
    """
    port = int(url.rpartition(":")[2])
    cpu_before, statistics_before = server_cpu_seconds(port), triton_statistics(url)
    begin = time.perf_counter()
    report = _run_module(
        "load_generator", "--url", url, "--scenario", scenario, "--clients", clients,
        "--images", images, "--seconds", seconds, "--warm-up", seconds / 2,
    )  # fmt: skip
    # The server's share includes the warm-up, so it is given for each second of the run.
    report["server_cpus"] = (server_cpu_seconds(port) - cpu_before) / (time.perf_counter() - begin)
    report["generator_cpus"] = report["cpu_seconds"] / report["seconds"]
    report["triton"] = statistics_between(statistics_before, triton_statistics(url))
    return report


def _run_module(name: str, *arguments: object) -> dict:
    command = [sys.executable, "-I", "-m", f"reverse_image_search.benchmark.{name}"]
    result = subprocess.run(
        [*command, *map(str, arguments)], cwd=REPOSITORY_ROOT, capture_output=True, text=True
    )
    if result.returncode != 0:
        raise BenchmarkError(f"{name} failed: {result.stderr.strip()}")
    return json.loads(result.stdout)


def _median_row(name: str, clients: int, reports: list[dict]) -> dict:
    """Medians of the repeats; `spread` is (largest - smallest) / median of the throughput."""
    row: dict = {"name": name, "clients": clients}
    for key in (
        "queries_per_second",
        "p50_ms",
        "p95_ms",
        "p99_ms",
        "server_cpus",
        "generator_cpus",
    ):
        if key in reports[0]:
            row[key] = statistics.median(report[key] for report in reports)
    throughputs = [report["queries_per_second"] for report in reports]
    row["spread"] = (max(throughputs) - min(throughputs)) / row["queries_per_second"]
    for key in ("triton", "model_ms"):
        if reports[-1].get(key):
            row[key] = reports[-1][key]
    return row


def _ratios(rows: list[dict]) -> dict[str, float]:
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


def _print_report(report: dict) -> None:
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
    if "exact_search" in report:
        _print_exact_search(report["exact_search"])
    print("\n| ratio | measured | target | met |\n|---|---|---|---|")
    for name, ratio in report["ratios"].items():
        target, less = _TARGETS[name]
        met = ratio <= target if less else ratio >= target
        print(f"| {name} | {ratio:.2f} | {'≤' if less else '≥'} {target} "
              f"| {'yes' if met else 'no'} |")  # fmt: skip


def _print_exact_search(report: dict) -> None:
    print(f"\n| exact search, {report['dimensions']} dimensions: queries "
          "| FAISS ms | here ms | ratio | scores apart |")  # fmt: skip
    print("|---|---|---|---|---|")
    for row in report["rows"]:
        print(
            f"| {row['queries']} | {row['faiss_ms']:.2f} | {row['here_ms']:.2f} "
            f"| {row['here_ms'] / row['faiss_ms']:.2f} | {row['score_difference']:.0e} |"
        )
    print("\n| step | 1 query, ms | 32 queries, ms |\n|---|---|---|")
    for row in report["steps"]:
        print(f"| {row['step']} | {row['one_ms']:.2f} | {row['batch_ms']:.2f} |")


def describe_machine() -> str:
    """Processor, number of processors, torch and date, for titles and tables."""
    model = platform.processor() or platform.machine()
    with contextlib.suppress(OSError, IndexError):
        info = Path("/proc/cpuinfo").read_text()
        model = info.split("model name")[1].split(":", 1)[1].split("\n", 1)[0].strip()
    now = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())
    load = os.getloadavg()[1]
    return f"{model}, {os.cpu_count()} processors, {now}, load of the last 5 minutes {load:.1f}"


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="benchmark.sh", description=main.__doc__)
    parser.add_argument(
        "--url", default=f"http://127.0.0.1:{os.environ.get('TRITON_HTTP_PORT', 8000)}"
    )
    parser.add_argument("--start", action="store_true", help="start a server for the measurement")
    parser.add_argument("--output-dir", type=Path, default=REPOSITORY_ROOT)
    parser.add_argument("--compare", action="store_true", help="measure the peers too")
    parser.add_argument("--seconds", type=float, default=3.0, help="of each measurement")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--plot", type=Path, metavar="FILE")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
