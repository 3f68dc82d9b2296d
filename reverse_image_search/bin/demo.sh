#!/usr/bin/env bash
# Usage: demo.sh
#
# All in one: installs what is missing, builds the models if there are none, starts Triton (on the
# GPU where there is one) and the app, and prints the address to open. Ctrl-C stops all of it.
#
#   -h, --help  this text
#
# RUNTIME=docker|local chooses the runtime; otherwise docker where a Docker engine answers.

set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/lib/environment.sh"

help_if_asked "$@"
(($# == 0)) || die "unknown option $1. See $BIN/demo.sh -h"
read_settings
choose_runtime
for port in TRITON_HTTP_PORT TRITON_GRPC_PORT TRITON_METRICS_PORT APP_PORT; do
  check_port_free "$port"
done
[[ -f $OUTPUT_DIR/gallery/SHA256SUMS ]] || "$REPO_ROOT/$BIN/build_models.sh"

device=cpu
if has_nvidia_gpu; then device=gpu; fi
server="$REPO_ROOT/$BIN/start_inference_server_$device.sh"
app_process=""
stop_all() {
  trap - EXIT INT TERM
  if [[ -n $app_process ]]; then
    kill -TERM "$app_process" 2>/dev/null || true
    wait "$app_process" || true
  fi
  "$server" --stop
}
trap stop_all EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

"$server" --detach
echo "Open http://localhost:$APP_PORT/ in a browser; Ctrl-C here stops app and server."
"$REPO_ROOT/$BIN/start_app.sh" &
app_process=$!
wait "$app_process"
