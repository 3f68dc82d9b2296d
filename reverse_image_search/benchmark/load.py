"""Clients that search without pause: what they see, and what Triton says of each model.

python -m reverse_image_search.benchmark.load --clients 32 --seconds 5
"""

import sys

from reverse_image_search.benchmark.measurements import BenchmarkError, measure_load
from reverse_image_search.command_line import make_parser


def main() -> str | None:
    """Print throughput, latency, and each model's batches, queue, and compute time."""
    parser = make_parser(__doc__.partition("\n")[0], clients=32, seconds=2.0)
    parser.add_argument("--one-call", action="store_true", help="search through the ensemble")
    options = parser.parse_args()
    scenario = "one_call" if options.one_call else "two_calls"
    load = scenario, options.clients, options.output_dir, options.seconds
    try:
        report = measure_load(options.url, *load)
    except BenchmarkError as error:
        return f"load: {error}"
    percentiles = ", ".join(f"p{p} {report[f'p{p}_ms']:.1f} ms" for p in (50, 95, 99))
    print(
        f"{scenario.replace('_', ' ')}: {report['queries_per_second']:.0f} queries/s, {percentiles}"
    )
    for model, of in report["triton"].items():
        times = f"queue {of['queue_ms']:.1f} ms, compute {of['compute_ms']:.1f} ms"
        print(f"  {model:18}batch {of['batch']:.1f}, {times}")
    return None


if __name__ == "__main__":
    sys.exit(main())
