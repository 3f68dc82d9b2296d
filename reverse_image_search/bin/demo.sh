#!/usr/bin/env bash
# Usage: demo.sh [--images DIR... [options of build_models.sh]]
#
# Installs what is missing, builds the models if there are none, starts Triton (on the GPU if there is
# one) and the app, and prints the address to open. Ctrl-C stops everything.
#
# That build is the quick one. build_models.sh makes the full one, which searches better and is taken
# over while all this runs.
#
#   --images DIR...  search in your own images: brings the gallery up to date with these folders
#   -h, --help       this text
#
# RUNTIME=docker|local chooses the runtime; the default is docker if a Docker engine answers.

case $- in *p*) ;; *) exec bash -p "$0" "$@" ;; esac
set -euo pipefail
source "$(dirname "$(readlink -f "$0")")/lib/settings.sh"

help_if_asked "$@"
[[ ${1---images} == --images?(=*) ]] || die "unknown option $1. See $BIN/demo.sh -h"
read_settings
choose_runtime
check_ports_free TRITON_HTTP_PORT TRITON_GRPC_PORT TRITON_METRICS_PORT APP_PORT
device=cpu
! has_nvidia_gpu || device=gpu
server="$REPO_ROOT/$BIN/start_inference_server_$device.sh"

# Ends what this script started as soon as the script has ended, in whatever way: then nobody
# writes to the pipe any more that this reads the process ids from. It prints last, because the
# terminal may be gone.
stop_what_was_started() {
  trap '' HUP INT TERM PIPE
  local -a started
  local pid message tries
  mapfile -t started
  for pid in "${started[@]}"; do
    kill -TERM "$pid" 2>/dev/null || continue
    for ((tries = 0; tries < 300; ++tries)); do
      kill -0 "$pid" 2>/dev/null || break
      sleep 0.1
    done
    kill -KILL "$pid" 2>/dev/null || true
  done
  message="$("$server" --stop 2>&1)" || true
  echo "$message" 2>/dev/null || true
}
exec {pipe}> >(stop_what_was_started)
stopper=$!
# shellcheck disable=SC2064 # as it is now
trap "trap '' HUP INT TERM PIPE; exec {pipe}>&-; wait $stopper || true" EXIT
trap 'exit 129' HUP
trap 'exit 130' INT
trap 'exit 141' PIPE
trap 'exit 143' TERM

# In the background, so that a signal to this script is acted on at once.
run() {
  "$@" {pipe}>&- &
  echo "$!" >&"$pipe"
  wait "$!"
}

if (($# > 0)); then
  run "$server" --check
  run "$REPO_ROOT/$BIN/build_models.sh" "$@"
elif [[ ! -f $OUTPUT_DIR/gallery/SHA256SUMS ]]; then
  run "$server" --check
  echo "There are no models yet. Building them with build_models.sh --quick, in 2 to 3 minutes on 2 cores."
  run "$REPO_ROOT/$BIN/build_models.sh" --quick
  echo "These are the quick models. The full build takes some minutes more and finds better ones; this demo takes them over:"
  echo "  $BIN/build_models.sh"
fi
run "$server" --detach
echo "Open $(app_url) in a browser; Ctrl-C here stops app and server."
run "$REPO_ROOT/$BIN/start_app.sh"
