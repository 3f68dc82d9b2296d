#!/usr/bin/env bash
# Usage: benchmark.sh [--start] [--compare] [options]
#        benchmark.sh --builds DIR ... [options]
#
# Measures the running server, with images that suit its gallery: latency and queries per second for
# 1 to 64 clients, compared with the same two models in process. To measure the search in one call
# too, start the server with --ensemble.
#
#   --start         start a server for the measurement, and measure its first request
#   --url URL       address of the running server (default: TRITON_URL, or this machine's)
#   --compare       also measure FAISS, FastAPI, LitServe, and this tutorial's first version
#   --builds DIR ...
#                   start a server for the build in OUTPUT_DIR and one for each of these, such as
#                   of other engines, and measure them in turns: recall, memory, speed
#   --seconds S     length of each measurement (default 3)
#   --repeats N     repeats; medians are reported (default 3)
#   --json FILE     write all numbers
#   --plot FILE     draw latency against throughput, e.g. doc/speed.png
#   -h, --help      this text
#
# Nothing else should run on the machine.

case $- in *p*) ;; *) exec bash -p "$0" "$@" ;; esac
set -euo pipefail
source "$(dirname "$(readlink -f "$0")")/lib/settings.sh"
source "$LIB_DIR/python_environment.sh"
source "$LIB_DIR/published_build.sh"

check_options "$@"
read_settings
verify_build
prepare_python "$REPO_ROOT/requirements-benchmark.txt"
exec "$PYTHON" -I -m reverse_image_search.benchmark --output-dir "$OUTPUT_DIR" "$@"
