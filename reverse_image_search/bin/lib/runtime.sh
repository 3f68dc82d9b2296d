# shellcheck shell=bash
# Where things run: docker or this machine, its GPU, its free ports. Source it after settings.sh.

# Sets RUNTIME to docker or local, and says which and why.
choose_runtime() {
  local reason
  case "$RUNTIME" in
    docker | local)
      reason="RUNTIME says so"
      ;;
    "")
      if docker_answers; then
        RUNTIME=docker reason="a Docker engine answers"
      else
        RUNTIME=local reason="no Docker engine answers"
      fi
      ;;
    *) die "RUNTIME is '$RUNTIME', which is neither docker nor local. Set it to one, or leave it empty." ;;
  esac
  export RUNTIME
  echo "Runtime: $RUNTIME ($reason)"
}

docker_answers() {
  command -v docker >/dev/null || return 1
  local -a limit=() # macOS has no timeout
  ! command -v timeout >/dev/null || limit=(timeout 10)
  "${limit[@]}" docker info >/dev/null 2>&1
}

# No pipe into `grep -q`: it closes the pipe early, and pipefail takes that for a failure.
has_nvidia_gpu() {
  command -v nvidia-smi >/dev/null && [[ "$(nvidia-smi -L 2>/dev/null)" == GPU* ]]
}

# Dies when something listens on a port that this script needs; $1 is the port's variable name.
# `localhost` is 127.0.0.1 and ::1, and a browser may try either first.
check_port_free() {
  local name="$1" port="${!1}" owner="" address
  for address in 127.0.0.1 ::1 "${BIND_ADDRESS/#0.0.0.0/127.0.0.1}"; do
    (exec 3<>"/dev/tcp/$address/$port") 2>/dev/null || continue
    # These find nothing of another user's processes, and then fail or say nothing.
    if command -v ss >/dev/null; then
      owner="$(ss -ltnpH "sport = :$port" | sed -n '1s/.*users:(("\([^"]*\)",pid=\([0-9]*\).*/ by \1 (process \2)/p')" || true
    elif command -v lsof >/dev/null; then
      owner="$(lsof -nP -iTCP:"$port" -sTCP:LISTEN | awk 'NR == 2 {print " by " $1 " (process " $2 ")"}')" || true
    fi
    die "port $port ($name) is taken$owner. Stop that program, or set $name to another port."
  done
}

# Where a browser on this machine finds the app.
app_url() {
  case "$BIND_ADDRESS" in
    127.0.0.1 | 0.0.0.0) echo "http://localhost:$APP_PORT/" ;;
    *) echo "http://$BIND_ADDRESS:$APP_PORT/" ;;
  esac
}
