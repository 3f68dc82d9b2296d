# shellcheck shell=bash
# Starts Triton on cpu or gpu; start_inference_server_cpu.sh and _gpu.sh are its front.

start_inference_server() {
  local device="$1" detach=0 ensemble=0 stop=0 check=0 host=""
  shift
  while (($#)); do
    case "$1" in
      --check) check=1 ;;
      --detach) detach=1 ;;
      --ensemble) ensemble=1 ;;
      --stop) stop=1 ;;
      --host)
        take_host "${2-}"
        host="$2"
        shift
        ;;
      -h | --help)
        print_help
        exit 0
        ;;
      *) die "unknown option $1. See $BIN/$(script_name) -h" ;;
    esac
    shift
  done
  if ((stop)); then
    choose_runtime >/dev/null # the terminal may be gone: act before anything is printed
    stop_inference_server
    return
  fi
  choose_runtime
  [[ $RUNTIME == docker || $host == "" || $host == 127.0.0.1 ]] ||
    die "the local server listens on 127.0.0.1 only, not on $host: its release has known critical vulnerabilities. For --host, install Docker and use RUNTIME=docker."
  if [[ $device == gpu ]]; then
    has_nvidia_gpu ||
      die "no NVIDIA GPU found (nvidia-smi lists none). Use $BIN/start_inference_server_cpu.sh"
  fi
  if ((check)); then
    [[ $RUNTIME == docker ]] || local_check
    return
  fi
  verify_build
  if [[ $RUNTIME == docker ]]; then
    docker_serve "$device" "$detach" "$ensemble"
  else
    local_serve "$device" "$detach" "$ensemble"
  fi
}

stop_inference_server() {
  if [[ $RUNTIME == docker ]]; then
    if [[ -n "$(inspect "$SERVER_CONTAINER" '{{.Id}}')" ]]; then
      remove_container "$SERVER_CONTAINER"
    else
      echo "No server container of this project is running."
    fi
  elif venv_works; then
    set_local_server_command
    "${LOCAL_SERVER[@]}" --stop
  else
    echo "No server of this project runs: there is no working .venv."
  fi
}

docker_serve() {
  local device="$1" detach="$2" ensemble="$3" service=triton ready="Ctrl-C stops it" port
  [[ $device == cpu ]] || service=triton-gpu
  find_compose
  check_not_running "$SERVER_CONTAINER" "$BIN/start_inference_server_$device.sh --stop"
  for port in TRITON_HTTP_PORT TRITON_GRPC_PORT TRITON_METRICS_PORT; do
    check_port_free "$port"
  done
  if ! docker image inspect "$TRITON_IMAGE" >/dev/null 2>&1; then
    echo "Pulling $TRITON_IMAGE: 10 to 15 GB, once."
    "${COMPOSE[@]}" pull "$service" ||
      die "$TRITON_IMAGE could not be pulled (see above). Check the network and the tag in .env, or use RUNTIME=local."
  fi
  [[ $BIND_ADDRESS == 127.0.0.1 ]] ||
    echo "Triton will answer anyone who reaches $BIND_ADDRESS, on three ports. It has no login." >&2
  ((! ensemble)) || export TRITON_ARGUMENTS="--model-repository=/ensemble_repo ${TRITON_ARGUMENTS-}"
  export GPUS="${GPUS:-all}"
  GPUS="${GPUS#device=}"

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

local_serve() {
  local device="$1" detach="$2" ensemble="$3" port
  [[ $BIND_ADDRESS == 127.0.0.1 ]] ||
    echo "The local server listens on 127.0.0.1 only: its release has known critical vulnerabilities. BIND_ADDRESS=$BIND_ADDRESS holds for the app alone." >&2
  prepare_python
  set_local_server_command
  [[ $device == gpu ]] && LOCAL_SERVER+=(--gpu)
  ((detach)) && LOCAL_SERVER+=(--detach)
  ((ensemble)) && LOCAL_SERVER+=(--model-repository "$OUTPUT_DIR/ensemble_repo")
  "${LOCAL_SERVER[@]}" --check
  for port in TRITON_HTTP_PORT TRITON_GRPC_PORT TRITON_METRICS_PORT; do
    check_port_free "$port"
  done
  exec "${LOCAL_SERVER[@]}"
}

# Installs what the server needs, and dies where it cannot run.
local_check() {
  prepare_python
  set_local_server_command
  "${LOCAL_SERVER[@]}" --check
}

# Sets LOCAL_SERVER to the command line of the supervisor.
set_local_server_command() {
  LOCAL_SERVER=(
    "$PYTHON" -I -m reverse_image_search.serving.local_server
    --model-repository "$OUTPUT_DIR/model_repo"
    --http-port "$TRITON_HTTP_PORT" --grpc-port "$TRITON_GRPC_PORT"
    --metrics-port "$TRITON_METRICS_PORT"
  )
}
