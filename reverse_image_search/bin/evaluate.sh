#!/usr/bin/env bash
# Usage: evaluate.sh [options]
#
# Measures the search quality of the running server on any gallery: recall of the originals of
# perturbed copies; where images have labels, precision and mean average precision of category-level
# retrieval; simple baselines for both; and, of an approximate index, recall@20 and recall@100
# against exact search. Prints tables with confidence intervals. Takes about ten minutes on 2 cores.
#
#   --json FILE     also write the numbers to FILE
#   --figures DIR   also draw figures into DIR
#   --queries N     use only the first N test images; without test images, N random images of the
#                   gallery (default 2000), each left out of its own results
#   --copies N      copies of each kind (default 2000, of photos 500)
#   -h, --help      this text
#
# The server is the one that start_inference_server_*.sh started, or TRITON_URL.

case $- in *p*) ;; *) exec bash -p "$0" "$@" ;; esac
set -euo pipefail
source "$(dirname "$(readlink -f "$0")")/lib/settings.sh"
source "$LIB_DIR/python_environment.sh"

check_options "$@"
read_settings
prepare_python "$REPO_ROOT/requirements-evaluate.txt"
export TRITON_URL="${TRITON_URL:-http://127.0.0.1:$TRITON_HTTP_PORT}"
exec "$PYTHON" -I -m reverse_image_search.evaluation.evaluate "$@"
