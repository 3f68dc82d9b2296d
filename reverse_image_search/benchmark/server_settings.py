"""The same models under other settings of Triton: what instances, threads and waiting would give.

    python -m reverse_image_search.benchmark.server_settings --output-dir .

Each setting gets a copy of the model repository and a server of its own, in the local runtime.
All of it is done `--repeats` times in turn, so that a noisy minute does not strike one alone.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from reverse_image_search import contract
from reverse_image_search.benchmark.__main__ import describe_machine, load
from reverse_image_search.benchmark.servers import local_server

_RUNS = [("two_calls", 1), ("two_calls", 32), ("two_calls", 64), ("one_call", 1), ("one_call", 64)]


def _instances(count: int, *models: contract.ModelSpec) -> Callable[[str, str], str]:
    """More instances of some models; each is a process of its own in the local runtime."""
    names = [model.name for model in models]
    group = f"instance_group {{ count: {count} }}\n"
    return lambda name, config: config + group if name in names else config


def _threads(count: int) -> Callable[[str, str], str]:
    key = '"INTRA_OP_THREAD_COUNT" value { string_value: '
    return lambda _name, config: config.replace(f'{key}"1"', f'{key}"{count}"')


def _queue_delay(microseconds: int) -> Callable[[str, str], str]:
    setting = f"dynamic_batching {{ max_queue_delay_microseconds: {microseconds} }}"
    return lambda _name, config: config.replace("dynamic_batching { }", setting)


SETTINGS: dict[str, Callable[[str, str], str]] = {
    "as built": lambda _name, config: config,
    "2 encoders": _instances(2, contract.IMAGE_ENCODER),
    "2 similarities": _instances(2, contract.VECTOR_SIMILARITY),
    "2 of both": _instances(2, *contract.MODELS),
    "2 threads each": _threads(2),
    "wait 0.5 ms for a batch": _queue_delay(500),
    "no batching": lambda _name, config: config.replace("dynamic_batching { }\n", ""),
}


def main() -> int:
    """Print a row for each setting."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--output-dir", type=Path, required=True, help="of a build")
    parser.add_argument("--seconds", type=float, default=3.0, help="of each measurement")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    images = options.output_dir / "gallery" / "query_images.npy"
    reports: dict[tuple[str, str, int], list[dict]] = {}
    for repeat in range(options.repeats):
        for setting, edit in SETTINGS.items():
            print(f"repeat {repeat + 1}: {setting} ...", file=sys.stderr, flush=True)
            with tempfile.TemporaryDirectory() as folder:
                repositories = _copy_repositories(options.output_dir, Path(folder), edit)
                with local_server(repositories) as url:
                    for scenario, clients in _RUNS:
                        report = load(url, scenario, clients, images, options.seconds)
                        reports.setdefault((setting, scenario, clients), []).append(report)
    print(f"{describe_machine()}\n")
    columns = [f"{scenario.replace('_', ' ')}, {clients}" for scenario, clients in _RUNS]
    print(f"| setting | {' | '.join(columns)} |\n|---{'|---' * len(columns)}|")
    for setting in SETTINGS:
        cells = [_cell(reports[setting, *run], run[1]) for run in _RUNS]
        print(f"| {setting} | {' | '.join(cells)} |")
    return 0


def _copy_repositories(
    output_dir: Path, folder: Path, edit: Callable[[str, str], str]
) -> list[Path]:
    repositories = [
        shutil.copytree(output_dir / name, folder / name)
        for name in ("model_repo", "ensemble_repo")
    ]
    for model in contract.MODELS:
        config = repositories[0] / model.name / "config.pbtxt"
        config.write_text(edit(model.name, config.read_text()))
    return repositories


def _cell(reports: list[dict], clients: int) -> str:
    """Median latency of one client, or median throughput of more."""
    if clients == 1:
        return f"{statistics.median(report['p50_ms'] for report in reports):.1f} ms"
    return f"{statistics.median(report['queries_per_second'] for report in reports):.0f}/s"


if __name__ == "__main__":
    sys.exit(main())
