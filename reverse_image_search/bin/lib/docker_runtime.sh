# shellcheck shell=bash
# The docker runtime: the build, Triton and the app, each in a container. Sourced by the scripts in
# bin/, after environment.sh.
#
# Containers run as the calling user, without capabilities, on a read-only root; the ports that
# they publish are open on BIND_ADDRESS alone.

readonly SERVER_CONTAINER=reverse_image_search_triton
readonly APP_CONTAINER=reverse_image_search_app
readonly NETWORK=reverse_image_search # here the app finds the server as `triton`

readonly READY_TIMEOUT=300 # seconds; a large gallery on a slow disk takes its time
readonly STOP_TIMEOUT=20   # seconds before the engine kills what does not stop
readonly DEATHS_BEFORE_READY=3

# docker_serve cpu|gpu DETACH [--ensemble-repo DIR]
# Runs Triton until Ctrl-C, or, with DETACH=1, in the background and returns when it is READY.
docker_serve() {
  local device="$1" detach="$2" ensemble_repo=""
  [[ ${3-} != --ensemble-repo ]] || ensemble_repo="$4"
  check_container_name_free "$SERVER_CONTAINER" "$BIN/start_inference_server_$device.sh --stop"
  local port
  for port in TRITON_HTTP_PORT TRITON_GRPC_PORT TRITON_METRICS_PORT; do
    check_port_free "$port"
  done
  pull_triton_image
  [[ $device == cpu ]] || check_gpu_in_containers
  warn_of_open_ports
  make_network

  local -a run=(docker run --name "$SERVER_CONTAINER" --network "$NETWORK" --network-alias triton)
  container_flags run
  run+=(
    --publish "$BIND_ADDRESS:$TRITON_HTTP_PORT:8000"
    --publish "$BIND_ADDRESS:$TRITON_GRPC_PORT:8001"
    --publish "$BIND_ADDRESS:$TRITON_METRICS_PORT:8002"
    --shm-size 1g
    --mount "type=bind,source=$OUTPUT_DIR/model_repo,target=/models,readonly"
  )
  [[ $device == cpu ]] || run+=(--gpus "${GPUS:-all}")
  [[ -z $ensemble_repo ]] ||
    run+=(--mount "type=bind,source=$ensemble_repo,target=/ensemble,readonly")

  local -a server=(tritonserver --model-repository=/models)
  [[ -z $ensemble_repo ]] || server+=(--model-repository=/ensemble)
  server+=(--model-control-mode=none --disable-auto-complete-config --exit-timeout-secs=5)

  echo "Triton: $TRITON_IMAGE on the $device"
  if ((detach)); then
    serve_in_background "$device"
  else
    serve_in_foreground
  fi
}

docker_stop_server() {
  if [[ -z "$(container_status "$SERVER_CONTAINER")" ]]; then
    echo "No server container of this project is running."
  else
    docker stop --time "$STOP_TIMEOUT" "$SERVER_CONTAINER" >/dev/null
    docker rm --force "$SERVER_CONTAINER" >/dev/null 2>&1 || true
    echo "Stopped the container $SERVER_CONTAINER."
  fi
  remove_network_if_unused
}

# docker_build_models [options of build_models.sh]
# What the build writes belongs to the calling user.
docker_build_models() {
  build_image build "This takes minutes the first time, and 3 to 9 GB of disk."
  local -a run=(docker run --rm) folders=("$REPO_ROOT" "$OUTPUT_DIR") arguments=()
  container_flags run
  absolute_paths arguments folders --data-dir --output-dir --weights -- "$@"

  local folder
  for folder in "${folders[@]}"; do
    # The engine would make a missing folder as root.
    mkdir -p "$folder" || die "$folder cannot be made. Name another folder."
    run+=(--mount "type=bind,source=$folder,target=$folder")
  done
  # Debian's package of the dataset, where this machine has it.
  folder=/usr/share/datasets/fashion-mnist
  [[ ! -d $folder ]] || run+=(--mount "type=bind,source=$folder,target=$folder,readonly")
  if [[ -t 0 && -t 1 ]]; then run+=(--interactive --tty); fi

  exec "${run[@]}" --shm-size 1g --workdir "$REPO_ROOT" reverse_image_search-build \
    python3 -m reverse_image_search.build_models --output-dir "$OUTPUT_DIR" "${arguments[@]}"
}

# Serves the web page until Ctrl-C.
docker_start_app() {
  [[ -d $OUTPUT_DIR/gallery ]] ||
    die "There is no gallery in $OUTPUT_DIR. Build it with $BIN/build_models.sh"
  check_container_name_free "$APP_CONTAINER" "docker rm --force $APP_CONTAINER"
  build_image app "This takes a minute the first time, and 1 GB of disk."

  local -a run=(docker run --rm --name "$APP_CONTAINER") streamlit=()
  container_flags run
  local server_is_local=0
  if [[ -z ${TRITON_URL-} && -z "$(container_status "$SERVER_CONTAINER")" ]] && server_is_ready; then
    server_is_local=1
  fi
  if ((server_is_local)); then
    # The local server listens on this machine's loopback, which only its network reaches.
    run+=(--network host --env "TRITON_URL=http://127.0.0.1:$TRITON_HTTP_PORT")
    streamlit=(--server.address="$BIND_ADDRESS" --server.port="$APP_PORT")
  else
    make_network
    run+=(
      --network "$NETWORK" --publish "$BIND_ADDRESS:$APP_PORT:8501"
      --env "TRITON_URL=${TRITON_URL:-http://triton:8000}"
    )
    streamlit=(--server.address=0.0.0.0 --server.port=8501)
  fi
  echo "Open http://localhost:$APP_PORT/ in a browser; Ctrl-C stops the app."
  run_until_stopped "$APP_CONTAINER" "${run[@]}" \
    --mount "type=bind,source=$OUTPUT_DIR/gallery,target=/app/gallery,readonly" \
    reverse_image_search-app streamlit run reverse_image_search/app.py --server.headless=true \
    --browser.serverAddress=localhost --browser.serverPort="$APP_PORT" "${streamlit[@]}"
}

# The rest is for the functions above. ---------------------------------------------------------

# Flags that every container of this project gets, added to the array named $1.
container_flags() {
  local -n flags="$1"
  # Root may not serve: the build alone, whose files are the caller's, runs as whoever calls.
  flags+=(
    --init --user "$(id -u):$(id -g)" --cap-drop ALL --security-opt no-new-privileges
    --env HOME=/tmp --env USER=user
  )
  [[ ${CONTAINER_READ_ONLY:-true} != true ]] || flags+=(--read-only --tmpfs /tmp:exec,mode=1777)
}
