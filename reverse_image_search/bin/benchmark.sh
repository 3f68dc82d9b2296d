#!/usr/bin/env bash
# Usage: benchmark.sh [--start] [--compare] [options]
#
# Measures the running server: queries a second and latency for 1 to 64 clients, beside what the
# two models reach in a process of their own. Start the server with --ensemble to have the search
# in one call measured too.
#
#   --start         start a server for the measurement, and measure its first request
#   --url URL       address of the running server (default: port TRITON_HTTP_PORT of this machine)
#   --compare       also measure FAISS, FastAPI, LitServe and this tutorial's first version
#   --seconds S     length of each measurement (default 3)
#   --repeats N     repeats, of which the medians are reported (default 3)
#   --json FILE     write rows and ratios
#   --plot FILE     draw latency against throughput, e.g. doc/speed.png
#   -h, --help      this text
#
# The machine should have nothing else to do.

# Under bash, whichever shell was asked, and without the caller's functions and options.
case $- in *p*) ;; *) exec bash -p "$0" "$@" ;; esac
set -euo pipefail
source "$(dirname "$(readlink -f "$0")")/lib/settings.sh"
source "$LIB_DIR/runtime.sh"
source "$LIB_DIR/python_environment.sh"

help_if_asked "$@"
check_options "$@"
read_settings
verify_build
prepare_python "$REPO_ROOT/requirements-benchmark.txt"
exec "$PYTHON" -I -m reverse_image_search.benchmark --output-dir "$OUTPUT_DIR" "$@"
