#!/usr/bin/env bash
# Usage: start_app.sh [--host ADDRESS]
#
# Serves the app at http://localhost:8501/ (APP_PORT of .env) until Ctrl-C. It searches through the
# server that start_inference_server_*.sh started, or TRITON_URL.
#
#   --host ADDRESS  listen there instead of on 127.0.0.1 (BIND_ADDRESS of .env)
#   -h, --help      this text

# Under bash, whichever shell was asked, and without the caller's functions and options.
case $- in *p*) ;; *) exec bash -p "$0" "$@" ;; esac
set -euo pipefail
source "$(dirname "$(readlink -f "$0")")/lib/settings.sh"
source "$LIB_DIR/runtime.sh"
source "$LIB_DIR/python_environment.sh"
source "$LIB_DIR/docker_runtime.sh"

help_if_asked "$@"
read_settings
if [[ ${1-} == --host ]]; then
  take_host "${2-}"
  shift 2
fi
(($# == 0)) || die "unknown option $1. See $BIN/start_app.sh -h"
choose_runtime
check_port_free APP_PORT
[[ $BIND_ADDRESS == 127.0.0.1 ]] ||
  echo "The app will listen on $BIND_ADDRESS: whoever reaches that address can use it. It has no login." >&2
if [[ $RUNTIME == docker ]]; then
  docker_start_app
else
  prepare_python
  export TRITON_URL="${TRITON_URL:-http://127.0.0.1:$TRITON_HTTP_PORT}"
  cd "$REPO_ROOT" # Streamlit reads .streamlit/config.toml from where it starts
  exec "$PYTHON" -I -m reverse_image_search.app \
    --server.port "$APP_PORT" --server.address "$BIND_ADDRESS" --server.headless true
fi
