#!/usr/bin/env bash
# Usage: evaluate.sh [options]
#
# Measures the search quality of the running server: precision and mean average precision of
# category-level retrieval, recall of the originals of perturbed copies, and simple baselines for
# both. Prints a table and draws figures. Takes about ten minutes on 2 cores.
#
#   --json FILE     also write the numbers to FILE
#   --figures DIR   where the figures go (default doc/)
#   --queries N     use only the first N test images
#   --copies N      copies of each kind (default 2000)
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
