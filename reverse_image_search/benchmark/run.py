"""Measure a running server next to the machine's limit and to other servers.

Run it through ``reverse_image_search/bin/benchmark.sh``.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
from pathlib import Path

from reverse_image_search import contract
from reverse_image_search.benchmark.measurements import (
    BenchmarkError,
    describe_machine,
    measure_load,
    run_module,
)
from reverse_image_search.benchmark.report import compute_ratios, median_row, print_report
from reverse_image_search.benchmark.server_statistics import served_models
from reverse_image_search.benchmark.servers import own_server, peers
from reverse_image_search.gallery import Gallery, GalleryError
from reverse_image_search.layout import REPOSITORY_ROOT, START_COMMAND, gallery_file

_CLIENTS = (1, 8, 32, 64)
_PEER_CLIENTS = (1, 32)
_BATCH_SIZES = (1, 8, 16, 32, 64)


def main() -> int:
    """Measure, print, and write what was asked for; returns the exit code."""
    options = _parse()
    try:
        report = measure(options)
    except (BenchmarkError, GalleryError) as error:
        print(f"benchmark: {error}", file=sys.stderr)
        return 1
    print_report(report)
    if options.json:
        options.json.write_text(json.dumps(report, indent=2) + "\n")
    if options.plot:
        from reverse_image_search.benchmark.plot import plot_load

        plot_load(report["rows"], report["machine"], options.plot)
    return 0


def measure(options: argparse.Namespace) -> dict:
    """All measurements.

    Returns
    -------
    machine, rows, ratios, and index_search where peers are measured

    Raises
    ------
    BenchmarkError, GalleryError : the message says what to do
    """
    size = len(Gallery(gallery_file(options.output_dir)))  # fails early without a build
    ratios: dict[str, float] = {}
    with contextlib.ExitStack() as stack:
        url = options.url
        if options.start:
            url, first_over_median = stack.enter_context(own_server(options.output_dir))
            ratios["first request over the median"] = first_over_median
        rows = _measure_servers(options, url)
    report: dict = {"machine": describe_machine(), "rows": rows}
    if options.compare:
        search = run_module("index_search", "--output-dir", options.output_dir, "--sizes", size)
        report["index_search"] = search
        one_query = search["exact_ms"]["1"] / search["faiss_ms"]["1"]
        ratios["exact search, one query: over FAISS"] = one_query
    report["ratios"] = compute_ratios(rows) | ratios
    return report


def _measure_servers(options: argparse.Namespace, url: str) -> list[dict]:
    output_dir, seconds = options.output_dir, options.seconds
    reports: dict[tuple[str, int], list[dict]] = {}

    def add(name: str, clients: int, report: dict) -> None:
        reports.setdefault((name, clients), []).append(report)
        print(f"  {name}, {clients or 'no'} clients: {report['queries_per_second']:.0f} queries/s, "
              f"p50 {report['p50_ms']:.2f} ms", flush=True)  # fmt: skip

    ways = _served_ways(url)
    for repeat in range(options.repeats):
        print(f"repeat {repeat + 1} of {options.repeats}", flush=True)
        for threads in sorted({1, os.cpu_count() or 1}):
            in_process = run_module(
                "in_process", "--output-dir", output_dir, "--threads", threads,
                "--seconds", seconds, "--batch-sizes", *_BATCH_SIZES,
            )  # fmt: skip
            for size, report in in_process.items():
                add(f"in-process, {threads} threads, batch {size}", 0, report)
        for name, scenario in ways:
            for clients in _CLIENTS:
                add(name, clients, measure_load(url, scenario, clients, output_dir, seconds))
    if options.compare:
        for name, scenario, server in peers(output_dir):
            with server as peer_url:
                for _ in range(options.repeats):
                    for clients in _PEER_CLIENTS:
                        report = measure_load(peer_url, scenario, clients, output_dir, seconds)
                        add(name, clients, report)
    return [median_row(*key, repeats) for key, repeats in reports.items()]


def _served_ways(url: str) -> list[tuple[str, str]]:
    """Name and scenario of each way to search at `url`."""
    served = served_models(url)
    if not served:
        raise BenchmarkError(
            f"no server answers at {url}. Start it with {START_COMMAND} --ensemble, or let the "
            "benchmark start one with --start"
        )
    if contract.IMAGE_SEARCH.name in served:
        return [("two calls", "two_calls"), ("one call", "one_call")]
    print("image_search is not served; start the server with --ensemble to measure it.")
    return [("two calls", "two_calls")]


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
