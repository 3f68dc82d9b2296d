# shellcheck shell=bash
# Usage: start_inference_server_DEVICE.sh [--detach | --stop | --check] [--previous] [--ensemble] [--host ADDRESS]
#
# Serves both models of model_repo/ with Triton on the DEVICE until Ctrl-C: HTTP on port 8000, gRPC
# on 8001, metrics on 8002 (ports of .env).
#
#   --detach    start in the background and return when both models are READY
#   --stop      stop a server that was started with --detach
#   --check     do not start; install what is missing and say whether this machine can serve
#   --previous  go back to what was served before the last update or build; a running server takes it
#               over. The same again returns to the newer one
#   --ensemble  also serve ensemble_repo/: image_search, from image to ids and scores in one call
#   --host ADDRESS
#               docker runtime: publish the ports there instead of on 127.0.0.1 (BIND_ADDRESS)
#   -h, --help  this text
#
# RUNTIME=docker uses NVIDIA's container, RUNTIME=local the tritonserver from PyPI. The default is
# docker if a Docker engine answers.

source "$LIB_DIR/python_environment.sh"
source "$LIB_DIR/published_build.sh"
source "$LIB_DIR/docker.sh"

# start_inference_server cpu|gpu [options]
start_inference_server() {
  local device="$1" action=serve detach=0 ensemble=0 previous=0 host=""
  while shift && (($#)); do
    case "$1" in
      --check | --stop) action="${1#--}" ;;
      --detach) detach=1 ;;
      --ensemble) ensemble=1 ;;
      --previous) previous=1 ;;
      --host)
        host="${2-}"
        check_address "$host" --host
        export BIND_ADDRESS="$host"
        shift
        ;;
      -h | --help)
        print_help "${BASH_SOURCE[0]}" | sed "s/_DEVICE/_$device/; s/DEVICE/${device^^}/"
        exit
        ;;
      *) die "unknown option $1. See $BIN/$SCRIPT -h" ;;
    esac
  done
  read_settings
  local -a local_server=(
    "$PYTHON" -I -m reverse_image_search.serving.local_server
    --model-repository "$OUTPUT_DIR/model_repo"
    --http-port "$TRITON_HTTP_PORT" --grpc-port "$TRITON_GRPC_PORT"
    --metrics-port "$TRITON_METRICS_PORT"
  )
  if [[ $action == stop ]]; then
    choose_runtime >/dev/null # the terminal may be gone: act before anything is printed
    "${RUNTIME}_stop"
    return
  fi
  choose_runtime
  [[ $RUNTIME == docker || $host == "" || $host == 127.0.0.1 ]] ||
    die "the local server listens on 127.0.0.1 only, not on $host: its release has known critical vulnerabilities. For --host, install Docker and use RUNTIME=docker."
  [[ $device == cpu ]] || has_nvidia_gpu ||
    die "no NVIDIA GPU found (nvidia-smi lists none). Use $BIN/start_inference_server_cpu.sh"
  if ((previous)); then
    roll_back || return 0
  fi
  [[ $action == check ]] || verify_build
  "${RUNTIME}_$action"
}

# Publishes what was served before. Fails where a server runs, which then serves it already.
roll_back() {
  local code=0 no_server=4 address=127.0.0.1
  if [[ $RUNTIME == docker ]]; then
    address="${BIND_ADDRESS/#0.0.0.0/127.0.0.1}"
    find_what_container_serves "$OUTPUT_DIR"
  fi
  run_module serving.roll_back "$OUTPUT_DIR" "http://$address:$TRITON_HTTP_PORT" || code=$?
  ((code == 0 || code == no_server)) || exit 1
  ((code == no_server))
}

# These use the variables of `start_inference_server`.
docker_stop() {
  if [[ -n "$(inspect "$SERVER_CONTAINER" '{{.Id}}')" ]]; then
    remove_container "$SERVER_CONTAINER"
  else
    echo "No server container of this project is running."
  fi
}

docker_check() { :; }

docker_serve() {
  local service=triton ready="Ctrl-C stops it"
  [[ $device == cpu ]] || service=triton-gpu
  find_compose
  check_not_running "$SERVER_CONTAINER" "$BIN/start_inference_server_$device.sh --stop"
  check_ports_free TRITON_HTTP_PORT TRITON_GRPC_PORT TRITON_METRICS_PORT
  if ! docker image inspect "$TRITON_IMAGE" >/dev/null 2>&1; then
    echo "Pulling $TRITON_IMAGE: 10 to 15 GB, once."
    "${COMPOSE[@]}" pull "$service" ||
      die "$TRITON_IMAGE could not be pulled (see above). Check the network and the tag in .env, or use RUNTIME=local."
  fi
  use_image_with_packages
  [[ $BIND_ADDRESS == 127.0.0.1 ]] ||
    echo "Triton will answer anyone who reaches $BIND_ADDRESS, on three ports. It has no login." >&2
  ((! ensemble)) || export TRITON_ARGUMENTS="--model-repository=/ensemble_repo ${TRITON_ARGUMENTS-}"
  GPUS="${GPUS:-all}"
  export GPUS="${GPUS#device=}"

  say "$SERVER_CONTAINER" "starting $TRITON_IMAGE on the $device"
  start_service "$service" "$SERVER_CONTAINER" "$detach"
  if ((detach)); then
    # The table of the models, which the server prints once they are loaded.
    docker logs "$SERVER_CONTAINER" 2>&1 |
      awk '/^\| Model /{print above; inside = 1} /^$/{inside = 0} inside; {above = $0}'
    ready="log: docker logs $SERVER_CONTAINER"
  fi
  say "$SERVER_CONTAINER" "READY at http://${BIND_ADDRESS/#0.0.0.0/127.0.0.1}:$TRITON_HTTP_PORT; $ready"
  ((detach)) || stay
}

local_stop() {
  if venv_works; then
    "${local_server[@]}" --stop
  else
    echo "No server of this project runs: there is no working .venv."
  fi
}

# Installs what the server needs, and dies where it cannot run.
local_check() {
  local -a files=()
  mapfile -t files < <(requirements_of_build)
  prepare_python --only "$SERVER_PACKAGES" "${files[@]/#/$REPO_ROOT/}"
  "${local_server[@]}" --check
}

local_serve() {
  [[ $BIND_ADDRESS == 127.0.0.1 ]] ||
    echo "The local server listens on 127.0.0.1 only: its release has known critical vulnerabilities. BIND_ADDRESS=$BIND_ADDRESS holds for the app alone." >&2
  [[ $device == cpu ]] || local_server+=(--gpu)
  ((! detach)) || local_server+=(--detach)
  ((! ensemble)) || local_server+=(--model-repository "$OUTPUT_DIR/ensemble_repo")
  local_check
  check_ports_free TRITON_HTTP_PORT TRITON_GRPC_PORT TRITON_METRICS_PORT
  exec "${local_server[@]}"
}
