#!/usr/bin/env bash
# Usage: start_app.sh [--host ADDRESS]
#
# Serves the app at http://localhost:8501/ (APP_PORT of .env) until Ctrl-C. It searches through the
# server that start_inference_server_*.sh started, or TRITON_URL.
#
#   --host ADDRESS  listen there instead of on 127.0.0.1 (BIND_ADDRESS of .env)
#   -h, --help      this text

case $- in *p*) ;; *) exec bash -p "$0" "$@" ;; esac
set -euo pipefail
source "$(dirname "$(readlink -f "$0")")/lib/settings.sh"
source "$LIB_DIR/python_environment.sh"
source "$LIB_DIR/published_build.sh"
source "$LIB_DIR/docker.sh"

docker_start_app() {
  local service=app volumes
  [[ -d $OUTPUT_DIR/gallery ]] ||
    die "there is no gallery in $OUTPUT_DIR. Build it with $BIN/build_models.sh"
  find_compose
  check_not_running "$APP_CONTAINER" "docker stop $APP_CONTAINER"
  build_image app "It takes a minute and 1 GB of disk, once."
  if [[ -z ${TRITON_URL-} && -z "$(inspect "$SERVER_CONTAINER" '{{.Id}}')" ]] &&
    (exec 3<>"/dev/tcp/127.0.0.1/$TRITON_HTTP_PORT") 2>/dev/null; then
    export TRITON_URL="http://127.0.0.1:$TRITON_HTTP_PORT" # a server of the local runtime
  fi
  [[ ! ${TRITON_URL-} =~ ^https?://(localhost|127\.|\[::1\]) ]] || service=app-on-host
  volumes="$(run_module serving.app_volumes "$OUTPUT_DIR")" ||
    echo "The app shows thumbnails instead of originals: to find their folders takes Python 3.10 or newer on this machine." >&2
  [[ -z $volumes ]] || COMPOSE+=(--file "$volumes")
  start_service "$service" "$APP_CONTAINER" 0
  echo "Open $(app_url) in a browser; Ctrl-C stops the app."
  stay
}

help_if_asked "$@"
read_settings
if [[ ${1-} == --host ]]; then
  check_address "${2-}" --host
  export BIND_ADDRESS="$2"
  shift 2
fi
(($# == 0)) || die "unknown option $1. See $BIN/start_app.sh -h"
choose_runtime
check_ports_free APP_PORT
[[ $BIND_ADDRESS == 127.0.0.1 ]] ||
  echo "The app will listen on $BIND_ADDRESS: whoever reaches that address can use it. It has no login." >&2
if [[ $RUNTIME == docker ]]; then
  docker_start_app
else
  prepare_python --only "$APP_PACKAGES"
  export TRITON_URL="${TRITON_URL:-http://127.0.0.1:$TRITON_HTTP_PORT}"
  cd "$REPO_ROOT" # Streamlit reads .streamlit/config.toml from where it starts
  exec "$PYTHON" -I -m reverse_image_search.app \
    --server.port "$APP_PORT" --server.address "$BIND_ADDRESS" --server.headless true
fi
