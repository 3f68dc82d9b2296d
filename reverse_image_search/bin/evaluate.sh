#!/usr/bin/env bash
# Usage: evaluate.sh [options]
#
# Measures how good the search of the running server is: precision and mean average precision of
# images of the same kind, recall of the originals of disturbed copies, both against simple
# baselines. Prints a table and draws pictures. Takes about ten minutes on 2 cores.
#
#   --json FILE     also write the numbers to FILE
#   --pictures DIR  where the pictures go (default doc/)
#   --queries N     ask with the first N test images only
#   --copies N      copies of each kind (default 2000)
#   -h, --help      this text
#
# It asks the server that start_inference_server_*.sh started; TRITON_URL names another one.

# Under bash, whichever shell was asked, and without the caller's functions and options.
case $- in *p*) ;; *) exec bash -p "$0" "$@" ;; esac
set -euo pipefail
source "$(dirname "$(readlink -f "$0")")/lib/settings.sh"
source "$LIB_DIR/runtime.sh"
source "$LIB_DIR/python_environment.sh"

help_if_asked "$@"
check_options "$@"
read_settings
prepare_python "$REPO_ROOT/requirements-evaluate.txt"
export TRITON_URL="${TRITON_URL:-http://127.0.0.1:$TRITON_HTTP_PORT}"
exec "$PYTHON" -I -m reverse_image_search.evaluation.evaluate "$@"
