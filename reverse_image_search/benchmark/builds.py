"""Several builds, such as one for each engine, served at the same time and measured in turns."""

import contextlib
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

from reverse_image_search import contract
from reverse_image_search.benchmark.load_generator import query_tensors
from reverse_image_search.benchmark.measurements import (
    describe_machine,
    measure_load,
    server_processes,
)
from reverse_image_search.benchmark.report import median_row
from reverse_image_search.benchmark.servers import local_server
from reverse_image_search.client import Client
from reverse_image_search.command_line import print_table
from reverse_image_search.evaluation.evaluate import check_ranking
from reverse_image_search.gallery import Gallery, rows_of
from reverse_image_search.layout import MODEL_REPO, gallery_file

_QUERIES = 256  # that recall is measured with


def measure_builds(
    output_dirs: list[Path], client_counts: tuple[int, ...], seconds: float, repeats: int
) -> dict:
    """A server for each build: machine, rows of `builds`, and of `rows` by number of clients.

    A round asks each server once for each number of clients, so ratios hold on a noisy machine.
    """
    names = _names(output_dirs)
    builds: dict[str, dict[str, Any]] = {}
    reports: dict[tuple[str, int], list[dict]] = defaultdict(list)
    with contextlib.ExitStack() as stack:
        for name, output_dir in names.items():
            start = time.perf_counter()
            url = stack.enter_context(local_server([output_dir / MODEL_REPO]))
            ready_seconds = time.perf_counter() - start
            builds[name] = {"url": url, "ready_seconds": ready_seconds}
            builds[name] |= _recalls(Client(url), output_dir)
            print(f"{name}: READY after {ready_seconds:.1f} s", flush=True)
        for repeat in range(repeats):
            print(f"repeat {repeat + 1} of {repeats}", flush=True)
            for clients in client_counts:
                for name, output_dir in names.items():
                    load = "two_calls", clients, output_dir, seconds
                    report = measure_load(builds[name]["url"], *load)
                    reports[name, clients].append(report)
                    print(f"  {name}, {clients} clients: {report['queries_per_second']:.0f} "
                          f"queries/s, p50 {report['p50_ms']:.2f} ms", flush=True)  # fmt: skip
        for build in builds.values():
            processes = server_processes(int(build.pop("url").rpartition(":")[2]))
            build["memory_mb"] = sum(each.memory_full_info().uss for each in processes) / 1e6
    rows = [median_row(*key, reports[key]) for key in sorted(reports, key=lambda key: key[1])]
    return {"machine": describe_machine(), "builds": builds, "rows": rows}


def print_builds(report: dict) -> None:
    """A row for each build; memory is what its server's processes do not share with others, and
    `vector_similarity` Triton's time for a call with the fewest clients.
    """
    loads = {(row["name"], row["clients"]): row for row in report["rows"]}
    counts = sorted({clients for _, clients in loads})
    depths = sorted({depth for build in report["builds"].values() for depth in build["recalls"]})
    table = []
    for name, build in report["builds"].items():
        of = [loads[name, clients] for clients in counts]
        table.append([
            name, *(f"{build['recalls'][k]:.4f}" if k in build["recalls"] else "" for k in depths),
            build["ready_seconds"], build["memory_mb"],
            of[0]["triton"][contract.VECTOR_SIMILARITY.name]["compute_ms"],
            *(f"{load['p50_ms']:.1f} ms, {load['queries_per_second']:.0f}/s" for load in of),
        ])  # fmt: skip
    columns = [f"recall@{depth}" for depth in depths]
    columns += ["READY, s", "memory, MB", f"{contract.VECTOR_SIMILARITY.name}, ms"]
    print(f"\n{report['machine']}")
    print_table(["engine", *columns, *(f"clients: {clients}" for clients in counts)], table)


def _names(output_dirs: list[Path]) -> dict[str, Path]:
    """The builds by the name of their index, with their folder where that is not enough."""
    indexes = [
        str(Gallery(gallery_file(output_dir)).metadata.build_options.get("index", ""))
        for output_dir in output_dirs
    ]
    return {
        index if indexes.count(index) == 1 else f"{index} {output_dir}": output_dir
        for index, output_dir in zip(indexes, output_dirs, strict=True)
    }


def _recalls(client: Client, output_dir: Path) -> dict:
    """Of the served index against exact search of the gallery's own embeddings."""
    ids, embeddings = Gallery(gallery_file(output_dir)).embeddings()
    queries = client.embed(query_tensors(output_dir, _QUERIES))
    neighbors = client.find_similar(queries)
    rows = rows_of(neighbors.ids, ids)
    recalls = check_ranking(queries, embeddings, rows, neighbors, is_exact=False)
    return {
        "recalls": {int(name.rpartition("_")[2]): float(of.mean()) for name, of in recalls.items()}
    }
