# shellcheck shell=bash
# The docker runtime. docker-compose.yml describes the containers; this calls Compose with it.
# Source it after settings.sh.

# shellcheck disable=SC2034 # for the scripts
readonly SERVER_CONTAINER=reverse_image_search_triton APP_CONTAINER=reverse_image_search_app \
  BUILD_CONTAINER=reverse_image_search_build DEATHS_BEFORE_READY=3

# Sets COMPOSE to the command line of Compose v2, or of v1 from 1.28.
find_compose() {
  local candidate version answer found="" hint=""
  [[ -n ${DOCKER_HOST-} || ! "$(docker version 2>/dev/null)" =~ ^Client:\ +Podman ]] ||
    hint=". docker is podman here, which Compose reaches through podman's socket: start it and set DOCKER_HOST (doc/docker.md), or use RUNTIME=local."
  for candidate in "docker compose" docker-compose; do
    read -ra COMPOSE <<<"$candidate"
    version="$("${COMPOSE[@]}" version --short 2>/dev/null)" || continue
    found=", not $candidate ${version%%$'\n'*}"
    [[ $version =~ ^v?([0-9]+)\.([0-9]+) ]] || continue
    ((BASH_REMATCH[1] > 1 || BASH_REMATCH[2] >= 28)) || continue
    COMPOSE+=(--project-directory "$REPO_ROOT" --file "$REPO_ROOT/docker-compose.yml")
    answer="$("${COMPOSE[@]}" ps 2>&1)" || die "$candidate $version failed: ${answer##*$'\n'}$hint"
    return
  done
  die "RUNTIME=docker needs Docker Compose 1.28 or newer$found. Install it (https://docs.docker.com/compose/install/), or use RUNTIME=local.$hint"
}

# build_image SERVICE COST
build_image() {
  local image="reverse_image_search-$1" output
  if ! docker image inspect "$image" >/dev/null 2>&1; then
    echo "Building the image $image. $2"
    "${COMPOSE[@]}" build "$1" >&2
  elif ! output="$("${COMPOSE[@]}" build "$1" 2>&1)"; then
    echo "$output" >&2
    false
  fi || die "the image $image could not be built (see above). Check the network, or use RUNTIME=local."
}

# The caller, who can read what the build wrote and owns what it will write. Servers are never
# root. To a rootless engine, the caller is root.
set_container_user() {
  CONTAINER_USER="$EUID:$(id -g)"
  ((EUID)) || [[ ${1-} == build ]] || CONTAINER_USER=1000:1000
  [[ ! "$(docker info 2>/dev/null)" =~ $'\n'\ +rootless(:\ true)?($'\n'|$) ]] || CONTAINER_USER=0:0
  export CONTAINER_USER
}

# Dies if the container $1 exists; $2 is the command that stops it.
check_not_running() {
  case "$(inspect "$1" '{{.State.Status}}')" in
    "") ;;
    exited | dead | created) docker rm --force "$1" >/dev/null ;; # left by a crash of the machine
    *) die "the container $1 is already running. Stop it with $2" ;;
  esac
}

# end_with_script CONTAINER CODE: the container ends with this script, a signal ends it with CODE. A
# signal may come while the EXIT trap begins, where an `exit` would leave the rest of that undone.
# shellcheck disable=SC2064 # expands now
end_with_script() {
  trap "remove_container $1" EXIT
  trap "remove_container $1; trap - EXIT; exit $2" INT TERM HUP
}

# start_service SERVICE CONTAINER DETACH: returns when it is healthy; DETACH=1: it then lives on.
start_service() {
  local service="$1" container="$2" detach="$3" output hint=""
  end_with_script "$container" $((detach ? 130 : 0))
  set_container_user
  if ! output="$("${COMPOSE[@]}" up --detach --no-deps "$service" 2>&1)"; then
    [[ $output != *"could not select device driver"* ]] ||
      die "Docker has no access to the GPU. Install the NVIDIA Container Toolkit (https://docs.nvidia.com/datacenter/cloud-native/container-toolkit/latest/install-guide.html) and restart Docker, or use $BIN/start_inference_server_cpu.sh"
    echo "$output" >&2
    [[ $service != *-gpu ]] || hint=" If GPUS=$GPUS is the reason, use $BIN/start_inference_server_cpu.sh"
    die "Docker could not start the container $container (see above).$hint"
  fi
  if ((! detach)); then
    follow_log "$container" &
    client=$!
  fi
  wait_until_healthy "$container"
  ((! detach)) || trap - EXIT INT TERM HUP
}

# Keeps the script, and with it the container, until Ctrl-C or the container's own end.
stay() { wait "$client" || true; }

wait_until_healthy() {
  local container="$1" problem="" health restarts status
  while [[ -z $problem ]]; do
    read -r health restarts status <<<"$(inspect "$container" \
      '{{.State.Health.Status}} {{.RestartCount}} {{.State.Status}}')"
    case "$health-$status" in
      healthy-running) return ;;
      unhealthy-running) problem="was not ready in time" ;;
      *-exited | -) problem="was stopped before it was ready" ;;
      *) ((restarts < DEATHS_BEFORE_READY)) || problem="ended $restarts times before it was ready" ;;
    esac
    sleep 0.3
  done
  [[ -n ${client-} ]] || docker logs --tail 60 "$container" >&2 || true
  die "given up: the container $container $problem. Its own log above says why."
}

# Shows the log of the container $1 until it is stopped, across restarts by the engine.
follow_log() {
  local ended status now
  ended="$(inspect "$1" '{{.State.FinishedAt}}')"
  while docker logs --follow --since "$ended" "$1"; do
    sleep 0.3 # the engine knows a little later that the container ended
    read -r status now <<<"$(inspect "$1" '{{.State.Status}} {{.State.FinishedAt}}')"
    [[ $status == r* && $now != "$ended" ]] || return 0
    ended="$now"
    say "$1" "ended; Docker starts it again"
    while [[ "$(inspect "$1" '{{.State.Status}}')" == restarting ]]; do sleep 0.3; done
  done
}

# Stops and removes the container $1, and the network once nothing is in it. Speaks last, because
# the terminal may be gone.
remove_container() {
  local attempt was_there
  trap '' INT TERM HUP PIPE
  was_there="$(inspect "$1" '{{.Id}}')"
  # Without a container yet, `client` may be about to make it.
  [[ -n $was_there || -z ${client-} ]] || kill "$client" 2>/dev/null || true
  for attempt in 1 2 3; do # a second Ctrl-C may end the client of the first attempt
    docker stop "$1" >/dev/null 2>&1 || true
    [[ -z ${client-} ]] || wait "$client" || true
    docker rm --force "$1" >/dev/null 2>&1 || true
    [[ -n "$(inspect "$1" '{{.Id}}')" ]] || break
  done
  docker network rm "${COMPOSE_PROJECT_NAME}_default" >/dev/null 2>&1 || true
  [[ -z $was_there || $1 == "$BUILD_CONTAINER" ]] || say "$1" stopped
}

# Prints the field $2 of the container $1; nothing if there is no such container.
inspect() {
  docker container inspect --format "$2" "$1" 2>/dev/null || true
}

say() {
  local name="${1#reverse_image_search_}"
  printf '%(%H:%M:%S)T %s: %s\n' -1 "${name/triton/tritonserver}" "$2" || true
}
