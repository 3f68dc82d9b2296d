"""Measure a running server next to the machine's limit and to other servers.

Run it through ``reverse_image_search/bin/benchmark.sh``.
"""

import argparse
import contextlib
import json
import os
import sys
from collections import defaultdict
from pathlib import Path

from reverse_image_search import contract
from reverse_image_search.benchmark import measurements
from reverse_image_search.benchmark.builds import measure_builds, print_builds
from reverse_image_search.benchmark.in_process import measure_in_process
from reverse_image_search.benchmark.index_search import measure_index_search
from reverse_image_search.benchmark.report import (
    compute_ratios,
    median_row,
    plot_load,
    print_report,
)
from reverse_image_search.benchmark.servers import own_server, peer_servers
from reverse_image_search.client import TritonError
from reverse_image_search.command_line import make_parser
from reverse_image_search.evaluation.evaluate import EvaluationError
from reverse_image_search.gallery import Gallery, GalleryError
from reverse_image_search.layout import MODEL_REPO, START_COMMAND, gallery_file, model_file

_CLIENTS, _PEER_CLIENTS, _BATCH_SIZES = (1, 8, 32, 64), (1, 32), (1, 8, 16, 32, 64)


def main() -> None:
    """Measure, print, and write what was asked for."""
    parser = make_parser(main.__doc__, seconds=3.0, repeats=3)
    parser.add_argument("--start", action="store_true", help="start a server for the measurement")
    parser.add_argument("--compare", action="store_true", help="measure the peers too")
    builds_help = "measure the build and these, each on a server of its own"
    parser.add_argument("--builds", type=Path, nargs="+", metavar="DIR", help=builds_help)
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--plot", type=Path, metavar="FILE")
    options = parser.parse_args()
    try:
        if options.builds:
            output_dirs = [options.output_dir, *options.builds]
            report = measure_builds(output_dirs, _CLIENTS, options.seconds, options.repeats)
        else:
            report = measure(options)
    except (measurements.BenchmarkError, EvaluationError, GalleryError, TritonError) as error:
        sys.exit(f"benchmark: {error}")
    (print_builds if options.builds else print_report)(report)
    if options.json:
        options.json.write_text(json.dumps(report, indent=2) + "\n")
    if options.plot:
        plot_load(report["rows"], report["machine"], options.plot)


def measure(options: argparse.Namespace) -> dict:
    """All measurements: machine, rows, ratios, and index_search where peers are measured."""
    size = len(Gallery(gallery_file(options.output_dir)))  # fails early without a build
    ratios: dict[str, float] = {}
    with contextlib.ExitStack() as stack:
        url = options.url
        if options.start:
            url, first_over_median = stack.enter_context(own_server(options.output_dir))
            ratios["first request over the median"] = first_over_median
        rows = _measure_servers(options, url)
    report: dict = {"machine": measurements.describe_machine(), "rows": rows}
    if options.compare:
        search = measurements.in_own_process(measure_index_search, options.output_dir, size)
        report["index_search"] = search
        ratios["exact search, one query: over FAISS"] = (
            search["exact_ms"][1] / search["faiss_ms"][1]
        )
    return report | {"ratios": compute_ratios(rows) | ratios}


def _measure_servers(options: argparse.Namespace, url: str) -> list[dict]:
    output_dir, seconds = options.output_dir, options.seconds
    ways = _served_ways(url)
    can_run_here = all(
        model_file(output_dir / MODEL_REPO, model.name).exists() for model in contract.MODELS
    )
    if not can_run_here:
        print("The models are not all TorchScript, so they are measured in the server alone.")
    reports: dict[tuple[str, int], list[dict]] = defaultdict(list)

    def add(name: str, clients: int, report: dict) -> None:
        reports[name, clients].append(report)
        print(f"  {name}, {clients or 'no'} clients: {report['queries_per_second']:.0f} queries/s, "
              f"p50 {report['p50_ms']:.2f} ms", flush=True)  # fmt: skip

    for repeat in range(options.repeats):
        print(f"repeat {repeat + 1} of {options.repeats}", flush=True)
        for threads in sorted({1, os.cpu_count() or 1}) if can_run_here else ():
            load = (output_dir, threads, _BATCH_SIZES, seconds)
            for size, report in measurements.in_own_process(measure_in_process, *load).items():
                add(f"in-process, {threads} threads, batch {size}", 0, report)
        for name, scenario in ways.items():
            for clients in _CLIENTS:
                report = measurements.measure_load(url, scenario, clients, output_dir, seconds)
                add(name, clients, report)
    for name, scenario, server in peer_servers(output_dir) if options.compare else ():
        with server as peer_url:
            for clients in _PEER_CLIENTS * options.repeats:
                report = measurements.measure_load(peer_url, scenario, clients, output_dir, seconds)
                add(name, clients, report)
    return [median_row(*key, repeats) for key, repeats in reports.items()]


def _served_ways(url: str) -> dict[str, str]:
    """Name and scenario of each way to search at `url`."""

    def is_served(model: contract.ModelSpec) -> bool:
        return measurements.answer(f"{url}/v2/models/{model.name}/ready") is not None

    if not all(map(is_served, contract.MODELS)):
        raise measurements.BenchmarkError(
            f"the models are not served at {url}. Start a server with {START_COMMAND} --ensemble, "
            "or let the benchmark start one with --start"
        )
    if is_served(contract.IMAGE_SEARCH):
        return {"two calls": "two_calls", "one call": "one_call"}
    print("image_search is not served; start the server with --ensemble to measure it.")
    return {"two calls": "two_calls"}
