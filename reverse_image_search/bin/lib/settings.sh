# shellcheck shell=bash
# What every script starts with: the settings of .env, -h, errors, the runtime and its ports.
# They run under `bash -p`, whichever shell was asked: without the caller's functions and options.

if ((BASH_VERSINFO[0] * 100 + BASH_VERSINFO[1] < 404)); then
  echo "$0: needs bash 4.4 or newer, this is $BASH_VERSION. On macOS: brew install bash" >&2
  exit 1
fi

LIB_DIR="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
REPO_ROOT="$(cd "$LIB_DIR/../../.." && pwd)"
BIN=reverse_image_search/bin
SCRIPT="$(basename "$(readlink -f "$0")")" # where it was called through a link, too

# The caller's locale decides what [a-z] means, and its Python settings where modules come from.
# A caller without a home or a name is what a container's arbitrary user id is.
export LC_ALL=C USER="${USER:-user}"
[[ -n ${HOME-} ]] || { unset HOME && export HOME=~; }
unset POSIXLY_CORRECT ERROR_CODE "${!PYTHON@}"
umask u=rwx

die() {
  echo "$SCRIPT: $*" >&2
  exit "${ERROR_CODE-1}" # set by a script whose exit code 1 means something else
}

# The header comment of the script, or of the file $1, is its help.
print_help() {
  sed -n '2,/^[^#]/ s/^# \{0,1\}//p' "${1:-$0}"
}

help_if_asked() {
  [[ ${1-} == -h || ${1-} == --help ]] || return 0
  print_help && exit
}

# Dies of an option that the help does not name, before anything is installed for it.
check_options() {
  local argument help
  help_if_asked "$@"
  help="$(print_help)"
  for argument; do
    argument="${argument%%=*}"
    [[ $argument != -* || $help =~ $'\n'\ +(-h,\ )?"$argument"($|[[:space:]]) ]] ||
      die "unknown option $argument. See $BIN/$SCRIPT -h"
  done
}

# Exports each setting of .env that the environment does not set already.
read_settings() {
  local line name number=0 used=""
  local -A from_file=()
  [[ -r $REPO_ROOT/.env ]] || die "$REPO_ROOT/.env is missing. Restore it with: git checkout .env"
  while IFS= read -r line || [[ -n $line ]]; do
    number=$((number + 1))
    read_setting "${line%$'\r'}" || die "line $number of .env is not NAME=value: $line"
  done <"$REPO_ROOT/.env"
  for name in RUNTIME TRITON_WHEEL TRITON_IMAGE OUTPUT_DIR BIND_ADDRESS; do
    [[ -v $name ]] || die "$name is missing in .env. Restore the file with: git checkout .env"
  done
  for name in TRITON_HTTP_PORT TRITON_GRPC_PORT TRITON_METRICS_PORT APP_PORT; do
    [[ ${!name-} =~ ^[1-9][0-9]{0,4}$ && ${!name} -le 65535 ]] ||
      die "$name is '${!name-}', which is not a port number from 1 to 65535."
    [[ " $used " != *" ${!name} "* ]] ||
      die "$name is ${!name}, as another port is. The four ports must differ."
    used+=" ${!name}"
  done
  check_address "$BIND_ADDRESS" BIND_ADDRESS
  [[ ${MILVUS_URI:=milvus.db} == @(/*|*://*) ]] || MILVUS_URI="$REPO_ROOT/$MILVUS_URI"
  [[ $OUTPUT_DIR == /* ]] || OUTPUT_DIR="$REPO_ROOT/$OUTPUT_DIR"
  export MILVUS_URI OUTPUT_DIR="${OUTPUT_DIR%/.}"
}

# One line of .env, as Docker Compose reads it: with quotes, comments or `export`, and the last of
# two settings wins.
read_setting() {
  local value name="[A-Za-z_][A-Za-z_0-9]*"
  [[ ! $1 =~ ^[[:space:]]*(#|$) ]] || return 0
  [[ $1 =~ ^[[:space:]]*(export[[:space:]]+)?($name)[[:space:]]*=(.*)$ ]] || return 1
  name="${BASH_REMATCH[2]}" value="${BASH_REMATCH[3]}"
  if [[ $value =~ ^[[:space:]]*(\"([^\"]*)\"|\'([^\']*)\')[[:space:]]*(#.*)?$ ]]; then
    value="${BASH_REMATCH[2]}${BASH_REMATCH[3]}"
  else
    value="${value%%[[:space:]]#*}"
    value="${value#"${value%%[![:space:]]*}"}"
    value="${value%"${value##*[![:space:]]}"}"
    [[ $value != [\"\']* ]] || return 1
  fi
  [[ ! -v $name || -v from_file[$name] ]] || return 0
  export "$name=$value"
  from_file[$name]=1
}

# check_address ADDRESS NAME
check_address() {
  local octet='(25[0-5]|2[0-4][0-9]|1?[0-9]?[0-9])'
  [[ $1 =~ ^$octet(\.$octet){3}$ ]] ||
    die "$2 needs an IPv4 address of this machine, such as 0.0.0.0 for all of them, not '$1'."
}

# Sets RUNTIME to docker or local, and says which and why.
choose_runtime() {
  local reason="RUNTIME says so"
  if [[ -z $RUNTIME ]]; then
    RUNTIME=local reason="no Docker engine answers"
    ! docker_answers || RUNTIME=docker reason="a Docker engine answers"
  fi
  [[ $RUNTIME == docker || $RUNTIME == local ]] ||
    die "RUNTIME is '$RUNTIME', which is neither docker nor local. Set it to one, or leave it empty."
  echo "Runtime: $RUNTIME ($reason)"
}

docker_answers() {
  command -v docker >/dev/null || return 1
  [[ -n ${DOCKER_HOST-} || ! "$(docker version 2>/dev/null)" =~ ^Client:\ +Podman ]] || return 1
  local -a limit=()
  ! command -v timeout >/dev/null || limit=(timeout 10) # macOS has none
  "${limit[@]}" docker info >/dev/null 2>&1
}

# No pipe into `grep -q`: it closes the pipe early, and pipefail takes that for a failure.
has_nvidia_gpu() {
  command -v nvidia-smi >/dev/null && [[ "$(nvidia-smi -L 2>/dev/null)" == GPU* ]]
}

# Dies when something listens on one of the ports, given by the names of their variables.
# `localhost` is 127.0.0.1 and ::1, and a browser may try either first.
check_ports_free() {
  local name address port owner=""
  for name; do
    port="${!name}"
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
  done
}

# Where a browser on this machine finds the app.
app_url() {
  local host="$BIND_ADDRESS"
  [[ $host != 127.0.0.1 && $host != 0.0.0.0 ]] || host=localhost
  echo "http://$host:$APP_PORT/"
}
