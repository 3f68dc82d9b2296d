"""Embed image files as `embed.sh` does, and compare with the most that the same servers answer.

python -m reverse_image_search.benchmark.bulk_embedding --replica URL --replica URL FOLDER
"""

import argparse
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from reverse_image_search.benchmark.load_generator import generate_load
from reverse_image_search.benchmark.measurements import describe_machine, in_own_process
from reverse_image_search.command_line import make_parser, print_table
from reverse_image_search.terminal.embed_files import Servers, embed_files
from reverse_image_search.terminal.search_files import files_below


def main() -> None:
    """Print images a second of the load generator and of `embed_files`, alternately."""
    parser = make_parser(__doc__.partition("\n")[0], clients=32, seconds=5.0, repeats=3)
    parser.add_argument("--replica", action="append", help="address, instead of --url")
    parser.add_argument("--in-flight", type=int, default=2, help="requests for each replica")
    parser.add_argument("folder", help="of the images")
    options = parser.parse_args()
    urls = options.replica or [options.url]
    paths = files_below(options.folder)
    load = partial(_load, options, urls)
    rows = []
    for _ in range(options.repeats):
        most, bulk = load(), _bulk(urls, options.in_flight, paths)
        rows.append((f"{most:.0f}", f"{bulk:.0f}", bulk / most))
    print(f"{describe_machine()}; {len(urls)} replicas, {len(paths)} images")
    print_table(("load generator, images/s", "bulk embedding, images/s", "ratio"), rows)


def _load(options: argparse.Namespace, urls: list[str]) -> float:
    """Images a second of clients that ask without pause for one image each."""

    def load(url: str) -> dict:
        measure = url, "embedding", options.clients, options.output_dir, 1.0, options.seconds
        return in_own_process(generate_load, *measure)

    with ThreadPoolExecutor(len(urls)) as threads:
        return sum(report["queries_per_second"] for report in threads.map(load, urls))


def _bulk(urls: list[str], in_flight: int, paths: list[str]) -> float:
    start = time.perf_counter()
    count = sum(1 for _ in embed_files(Servers(urls, in_flight), paths))
    return count / (time.perf_counter() - start)


if __name__ == "__main__":
    main()
