# shellcheck shell=bash
# The docker runtime: the build, Triton and the app, each in a container. The scripts in bin/
# source it after settings.sh.
#
# Containers run without root, without capabilities and on a read-only root; the ports that they
# publish are open on BIND_ADDRESS alone.

readonly SERVER_CONTAINER=reverse_image_search_triton
readonly APP_CONTAINER=reverse_image_search_app
readonly NETWORK=reverse_image_search # in it, the app finds the server as `triton`

readonly READY_TIMEOUT=300 # seconds; a large gallery on a slow disk takes its time
readonly STOP_TIMEOUT=20   # seconds before the engine kills what does not stop
readonly DEATHS_BEFORE_READY=3
readonly LONGEST_PAUSE=8 # seconds before the server is started again

# docker_serve cpu|gpu DETACH [--ensemble-repo DIR]
# Runs Triton until Ctrl-C; with DETACH=1 in the background, and returns when it is READY.
docker_serve() {
  local device="$1" detach="$2" ensemble_repo="" port
  [[ ${3-} != --ensemble-repo ]] || ensemble_repo="$4"
  check_container_name_free "$SERVER_CONTAINER" "$BIN/start_inference_server_$device.sh --stop"
  for port in TRITON_HTTP_PORT TRITON_GRPC_PORT TRITON_METRICS_PORT; do
    check_port_free "$port"
  done
  pull_triton_image
  [[ $device == cpu ]] || check_gpu_in_containers
  [[ $BIND_ADDRESS == 127.0.0.1 ]] ||
    echo "Triton will answer whoever reaches $BIND_ADDRESS, on three ports. It has no login." >&2

  local -a run=(docker run --name "$SERVER_CONTAINER")
  container_flags run "$(server_user)"
  run+=(
    --network "$NETWORK" --network-alias triton
    --publish "$BIND_ADDRESS:$TRITON_HTTP_PORT:8000"
    --publish "$BIND_ADDRESS:$TRITON_GRPC_PORT:8001"
    --publish "$BIND_ADDRESS:$TRITON_METRICS_PORT:8002"
    --shm-size 1g
    --mount "type=bind,source=$OUTPUT_DIR/model_repo,target=/models,readonly"
  )
  local -a server=("$TRITON_IMAGE" tritonserver --model-repository=/models)
  if [[ -n $ensemble_repo ]]; then
    run+=(--mount "type=bind,source=$ensemble_repo,target=/ensemble_repo,readonly")
    server+=(--model-repository=/ensemble_repo)
  fi
  [[ $device == cpu ]] || run+=(--gpus "${GPUS:-all}")
  server+=(--model-control-mode=none --disable-auto-complete-config --exit-timeout-secs=5)

  make_network
  say "starting $TRITON_IMAGE on the $device"
  if ((detach)); then
    serve_in_background
  else
    serve_in_foreground
  fi
}

docker_stop_server() {
  if [[ -z "$(container_status "$SERVER_CONTAINER")" ]]; then
    echo "No server container of this project runs."
  else
    stop_container "$SERVER_CONTAINER"
    echo "Stopped the container $SERVER_CONTAINER."
  fi
  remove_network_if_unused
}

# docker_build_models [options of build_models.sh]
# What the build writes belongs to the calling user.
docker_build_models() {
  local folder
  local -a run=(docker run --rm) folders=("$REPO_ROOT" "$OUTPUT_DIR") options=()
  collect_folders folders options "$@"
  for folder in "${folders[@]}"; do
    # The engine would make a missing folder as root.
    mkdir -p "$folder" || die "the folder $folder cannot be made. Name another one."
    run+=(--mount "type=bind,source=$folder,target=$folder")
  done
  # The dataset, where this machine has Debian's package of it.
  folder=/usr/share/datasets/fashion-mnist
  [[ ! -d $folder ]] || run+=(--mount "type=bind,source=$folder,target=$folder,readonly")
  if [[ -t 0 && -t 1 ]]; then run+=(--interactive --tty); fi
  container_flags run "$(build_user)"

  build_image build "It takes some minutes and 2 to 9 GB of disk, once."
  exec "${run[@]}" --shm-size 1g --workdir "$REPO_ROOT" reverse_image_search-build \
    python3 -m reverse_image_search.build_models --output-dir "$OUTPUT_DIR" "${options[@]}"
}

# Serves the web page until Ctrl-C.
docker_start_app() {
  [[ -d $OUTPUT_DIR/gallery ]] ||
    die "there is no gallery in $OUTPUT_DIR. Build it with $BIN/build_models.sh"
  check_container_name_free "$APP_CONTAINER" "docker stop $APP_CONTAINER"
  build_image app "It takes a minute and 1 GB of disk, once."

  local code=0
  local -a run=(docker run --rm --name "$APP_CONTAINER") streamlit
  container_flags run "$(server_user)"
  if [[ -z ${TRITON_URL-} ]] && ! server_is_in_network && server_is_ready; then
    # That server listens on this machine's own addresses; only its own network leads there.
    # The image's health check would ask port 8501.
    run+=(--network host --no-healthcheck --env "TRITON_URL=http://$(reachable_address):$TRITON_HTTP_PORT")
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
  # The folder above gallery/, so that the app sees it when the next build replaces it.
  run_container "$APP_CONTAINER" "${run[@]}" \
    --mount "type=bind,source=$OUTPUT_DIR,target=$OUTPUT_DIR,readonly" \
    --env OUTPUT_DIR="$OUTPUT_DIR" \
    reverse_image_search-app streamlit run reverse_image_search/app/page.py \
    --server.headless=true --browser.serverAddress=localhost --browser.serverPort="$APP_PORT" \
    "${streamlit[@]}" || code=$?
  remove_network_if_unused
  ((stopping)) && code=0
  exit "$code"
}

# What follows serves the functions above.

# Adds to the array named $1 the flags that every container of this project gets; $2 is its user.
container_flags() {
  local -n flags="$1"
  flags+=(
    --init --user "$2" --cap-drop ALL --security-opt no-new-privileges
    --env HOME=/tmp --env USER=user # this user has no home and no name in the image
  )
  [[ ${CONTAINER_READ_ONLY:-true} != true ]] || flags+=(--read-only --tmpfs /tmp)
}

# The caller, who can read what the build wrote; but never root.
server_user() {
  local uid
  uid="$(id -u)"
  if ((uid == 0)); then echo 1000:1000; else echo "$uid:$(id -g)"; fi
}

# The caller, whose files these will be. A rootless engine calls the caller root.
build_user() {
  if [[ "$(docker info --format '{{.SecurityOptions}}')" == *rootless* ]]; then
    echo 0:0
  else
    echo "$(id -u):$(id -g)"
  fi
}

# Reads the build's options "$@": the array named $2 gets them with absolute paths, the array
# named $1 the folders of those paths that are not in a folder of it already.
collect_folders() {
  local -n into_folders="$1" into_options="$2"
  shift 2
  local option value folder
  while (($#)); do
    option="${1%%=*}"
    case "$option" in
      --data-dir | --output-dir | --weights)
        if [[ $1 == *=* ]]; then value="${1#*=}"; else value="${2-}"; shift; fi
        value="$(realpath --canonicalize-missing -- "$value")"
        into_options+=("$option=$value")
        folder="$value"
        [[ $option != --weights ]] || folder="$(dirname "$value")"
        into_folders+=("$folder")
        ;;
      *) into_options+=("$1") ;;
    esac
    (($# == 0)) || shift
  done
  local -a outermost=()
  for folder in "${into_folders[@]}"; do
    is_below "$folder" "${outermost[@]}" || outermost+=("$folder")
  done
  into_folders=("${outermost[@]}")
}

# Whether the folder $1 is one of the others, or lies in one of them.
is_below() {
  local folder="$1" other
  shift
  for other; do
    [[ $folder/ != "$other"/* ]] || return 0
  done
  return 1
}

build_image() {
  local target="$1" cost="$2" image="reverse_image_search-$1"
  local -a quiet=(--quiet)
  if ! docker image inspect "$image" >/dev/null 2>&1; then
    echo "Making the image $image. $cost"
    quiet=()
  fi
  docker build "${quiet[@]}" --target "$target" --tag "$image" \
    ${TORCH_INDEX_URL:+--build-arg "TORCH_INDEX_URL=$TORCH_INDEX_URL"} \
    --file "$REPO_ROOT/reverse_image_search/Dockerfile" "$REPO_ROOT" >&2 ||
    die "the image $image could not be made (see above). Check the network, or use RUNTIME=local."
}

pull_triton_image() {
  docker image inspect "$TRITON_IMAGE" >/dev/null 2>&1 && return
  echo "Pulling $TRITON_IMAGE: 10 to 15 GB, once."
  docker pull "$TRITON_IMAGE" ||
    die "$TRITON_IMAGE could not be pulled (see above). Check the network and the tag in .env, or use RUNTIME=local."
}

check_gpu_in_containers() {
  local answer
  answer="$(docker run --rm --gpus "${GPUS:-all}" --entrypoint true "$TRITON_IMAGE" 2>&1)" && return
  case "$answer" in
    *"could not select device driver"*)
      die "Docker has no access to the GPU. Install the NVIDIA Container Toolkit (https://docs.nvidia.com/datacenter/cloud-native/container-toolkit/latest/install-guide.html) and restart Docker, or use $BIN/start_inference_server_cpu.sh"
      ;;
    *)
      die "Docker cannot give the GPU (GPUS=${GPUS:-all}) to a container: ${answer##*$'\n'} Mend that, or use $BIN/start_inference_server_cpu.sh"
      ;;
  esac
}

# Dies when the container $1 is running; $2 is the command that stops it. One that has ended is
# removed: it is what a crash of the machine left.
check_container_name_free() {
  local name="$1" stop_command="$2"
  case "$(container_status "$name")" in
    "") ;;
    running | restarting | paused | removing)
      die "the container $name runs already. Stop it with $stop_command"
      ;;
    *) docker rm --force "$name" >/dev/null ;;
  esac
}

# Prints running, restarting, exited ...; nothing when there is no such container.
container_status() {
  docker container inspect --format '{{.State.Status}}' "$1" 2>/dev/null || true
}

stop_container() {
  docker stop --time "$STOP_TIMEOUT" "$1" >/dev/null 2>&1 || true
  docker rm --force "$1" >/dev/null 2>&1 || true
}

make_network() {
  docker network inspect "$NETWORK" >/dev/null 2>&1 || docker network create "$NETWORK" >/dev/null
}

remove_network_if_unused() {
  docker network rm "$NETWORK" >/dev/null 2>&1 || true
}

server_is_in_network() {
  [[ "$(docker container inspect --format '{{json .NetworkSettings.Networks}}' \
    "$SERVER_CONTAINER" 2>/dev/null)" == *"\"$NETWORK\":"* ]]
}

# Whether Triton answers that all of its models are ready.
server_is_ready() {
  local answer
  # shellcheck disable=SC2016 # the inner bash expands $0 and $1
  answer="$(timeout 3 bash -c 'exec 3<>"/dev/tcp/$0/$1" &&
    printf "GET /v2/health/ready HTTP/1.1\r\nHost: $0\r\nConnection: close\r\n\r\n" >&3 &&
    head -n 1 <&3' "$(reachable_address)" "$TRITON_HTTP_PORT" 2>/dev/null)" || true
  [[ $answer == *" 200 "* ]]
}

reachable_address() {
  if [[ $BIND_ADDRESS == 0.0.0.0 ]]; then echo 127.0.0.1; else echo "$BIND_ADDRESS"; fi
}

say() {
  printf '%(%H:%M:%S)T tritonserver: %s\n' -1 "$*"
}

stopping=0

# run_container NAME COMMAND...: a `docker run` in the foreground that a signal to this script
# stops in order. Returns the container's exit code. Sets `was_ready` when Triton answers.
run_container() {
  local name="$1" code=0 client
  shift
  was_ready=0
  trap 'stopping=1' INT TERM HUP
  "$@" &
  client=$!
  while kill -0 "$client" 2>/dev/null; do
    if ((stopping)); then
      docker stop --time "$STOP_TIMEOUT" "$name" >/dev/null 2>&1 || true
    elif [[ $name == "$SERVER_CONTAINER" ]] && ((!was_ready)) && server_is_ready; then
      was_ready=1
      say_ready "Ctrl-C stops it"
    fi
    sleep 0.3
  done
  wait "$client" || code=$?
  return "$code"
}

say_ready() {
  say "READY at http://$(reachable_address):$TRITON_HTTP_PORT; $1"
}

# Starts the server again when it dies, as the local runtime does. Uses docker_serve's `run` and
# `server`.
serve_in_foreground() {
  local code deaths_before_ready=0 pause=1
  while true; do
    code=0
    run_container "$SERVER_CONTAINER" "${run[@]}" --rm "${server[@]}" || code=$?
    if ((stopping)); then
      say "stopped"
      remove_network_if_unused
      exit 0
    fi
    if ((code >= 125 && code <= 127)); then
      remove_network_if_unused
      die "Docker could not start the server's container (see above)."
    fi
    if ((was_ready)); then
      deaths_before_ready=0 pause=1
    elif ((++deaths_before_ready == DEATHS_BEFORE_READY)); then
      remove_network_if_unused
      die "given up: the server ended $deaths_before_ready times before it was ready. Its own log above says why."
    else
      pause=$((pause * 2 > LONGEST_PAUSE ? LONGEST_PAUSE : pause * 2))
    fi
    say "the server ended with exit code $code; starting it again in $pause s"
    sleep "$pause"
  done
}

# Here the engine starts the server again when it dies. Uses docker_serve's `run` and `server`.
serve_in_background() {
  local deadline=$((SECONDS + READY_TIMEOUT)) restarts
  trap 'stop_container "$SERVER_CONTAINER"; remove_network_if_unused; exit 130' INT TERM HUP
  "${run[@]}" --detach --restart on-failure "${server[@]}" >/dev/null || {
    stop_container "$SERVER_CONTAINER"
    remove_network_if_unused
    die "Docker could not start the server's container (see above)."
  }
  until server_is_ready; do
    restarts="$(docker inspect --format '{{.RestartCount}}' "$SERVER_CONTAINER")"
    if ((restarts >= DEATHS_BEFORE_READY)); then
      give_up "the server ended $restarts times before it was ready"
    elif ((SECONDS > deadline)); then
      give_up "the server was not ready within $READY_TIMEOUT s"
    fi
    sleep 0.3
  done
  # The table of the models, which the server prints when it has loaded them.
  docker logs "$SERVER_CONTAINER" 2>&1 |
    awk '/^\| Model /{print above; inside = 1} /^$/{inside = 0} inside; {above = $0}'
  say_ready "log: docker logs $SERVER_CONTAINER"
}

# Ends serve_in_background with the server's own log and the reason $1.
give_up() {
  docker logs --tail 60 "$SERVER_CONTAINER" >&2
  stop_container "$SERVER_CONTAINER"
  remove_network_if_unused
  die "given up: $1. Its own log above says why."
}
