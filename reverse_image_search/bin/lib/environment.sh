# shellcheck shell=bash
# What every script starts with: where things are, the settings of .env, -h, errors, the runtime
# and the Python environment. Source it; it runs nothing by itself but reading .env.

LIB_DIR="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
REPO_ROOT="$(cd "$LIB_DIR/../../.." && pwd)"
PYTHON="$REPO_ROOT/.venv/bin/python"
BIN=reverse_image_search/bin

# PyTorch's own index of wheels without CUDA: 200 MB instead of several GB.
TORCH_CPU_INDEX=https://download.pytorch.org/whl/cpu

die() {
  echo "$(basename "$0"): $*" >&2
  exit 1
}

# The header comment of the script is its help.
print_help() {
  sed -n '2,/^[^#]/ s/^# \{0,1\}//p' "$0"
}

help_if_asked() {
  case "${1-}" in
    -h | --help)
      print_help
      exit 0
      ;;
  esac
}

# Dies of an option that the help does not name, before anything is installed for it.
check_options() {
  local argument
  for argument; do
    [[ $argument != -* ]] || print_help | grep -qE -- "^ +(-h, )?${argument%%=*}( |$)" ||
      die "unknown option $argument. See $BIN/$(basename "$0") -h"
  done
}

# Exports each setting of .env that the environment does not set already.
read_settings() {
  local line name
  while IFS= read -r line || [[ -n $line ]]; do
    [[ $line =~ ^[A-Z_]+= ]] || continue
    name="${line%%=*}"
    [[ -v $name ]] || export "$name=${line#*=}"
  done <"$REPO_ROOT/.env"
  for name in TRITON_HTTP_PORT TRITON_GRPC_PORT TRITON_METRICS_PORT APP_PORT; do
    [[ ! -v $name || ${!name} =~ ^[0-9]{1,5}$ ]] || die "$name is '${!name}', which is no port number."
  done
  [[ $OUTPUT_DIR == /* ]] || OUTPUT_DIR="$REPO_ROOT/$OUTPUT_DIR"
  OUTPUT_DIR="${OUTPUT_DIR%/.}"
  export OUTPUT_DIR
}

# For `--host $1`: an address of this machine to listen on. It wins over BIND_ADDRESS.
take_host() {
  [[ ${1-} =~ ^[0-9]{1,3}(\.[0-9]{1,3}){3}$ ]] ||
    die "--host needs an IPv4 address of this machine, such as 0.0.0.0 for all of them."
  export BIND_ADDRESS="$1"
}

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
  command -v docker >/dev/null && timeout 10 docker info >/dev/null 2>&1
}

has_nvidia_gpu() {
  command -v nvidia-smi >/dev/null && nvidia-smi -L 2>/dev/null | grep -q '^GPU'
}

# Dies when something listens on a port that this script needs; $1 is the port's variable name.
check_port_free() {
  local name="$1" port="${!1}" owner=""
  if (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; then
    if command -v ss >/dev/null; then
      owner="$(ss -ltnpH "sport = :$port" | sed -n 's/.*users:(("\([^"]*\)",pid=\([0-9]*\).*/ by \1 (process \2)/p' | head -n 1)"
    elif command -v lsof >/dev/null; then
      owner="$(lsof -nP -iTCP:"$port" -sTCP:LISTEN | awk 'NR == 2 {print " by " $1 " (process " $2 ")"}')"
    fi
    die "port $port ($name) is taken$owner. Stop that program, or set $name to another port."
  fi
}

# Finishes what a killed build left half published, then checks every file that it wrote.
verify_build() {
  local python
  python="$(command -v "$PYTHON" || command -v python3 || true)"
  if [[ -n $python ]]; then
    (cd "$REPO_ROOT" && "$python" -E -s -m reverse_image_search.serving.publishing "$OUTPUT_DIR") || exit 1
  elif [[ ! -d $OUTPUT_DIR/model_repo ]]; then
    die "There are no models in $OUTPUT_DIR/model_repo. Build them with $BIN/build_models.sh"
  fi
}

# Makes or updates .venv with the packages of requirements.txt and of the further files in "$@".
prepare_python() {
  local stamp="$REPO_ROOT/.venv/.installed-requirements" wanted
  local -a files=("$REPO_ROOT/requirements.txt" "$@")
  wanted="$(cat "$REPO_ROOT/pyproject.toml" "${files[@]}")"
  [[ -x $PYTHON ]] || make_venv
  # A stamp that holds more than what is wanted will do: test packages do not hurt the app.
  if [[ -f $stamp && "$(cat "$stamp")" == "$wanted"* ]]; then
    return
  fi
  echo "Installing packages into .venv ..."
  install_torch
  local -a arguments=()
  local file
  for file in "${files[@]}"; do arguments+=(-r "$file"); done
  "$PYTHON" -m pip install --disable-pip-version-check --quiet --progress-bar on "${arguments[@]}" ||
    die "the packages could not be installed (see above). Check the network and run this again."
  "$PYTHON" -m pip install --disable-pip-version-check --quiet --no-deps --editable "$REPO_ROOT" ||
    die "the project could not be installed into .venv (see above)."
  printf '%s\n' "$wanted" >"$stamp"
}

make_venv() {
  local python
  python="$(find_python)"
  echo "Making .venv with $("$python" --version) ..."
  if ! "$python" -m venv "$REPO_ROOT/.venv"; then
    rm -rf "$REPO_ROOT/.venv"
    die "$python has no venv module. On Debian and Ubuntu: apt-get install python3-venv"
  fi
}

# The packages need Python 3.11 or newer; the local runtime's server goes up to 3.13.
find_python() {
  local candidate
  for candidate in python3 python3.13 python3.12 python3.11; do
    if command -v "$candidate" >/dev/null && "$candidate" -c \
      'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))'; then
      echo "$candidate"
      return
    fi
  done
  die "no Python 3.11, 3.12 or 3.13 found. Install one, on Debian and Ubuntu with apt-get install python3 python3-venv"
}

# Without an NVIDIA GPU the CUDA builds of torch are gigabytes for nothing: takes torch and
# torchvision from the CPU index, where that answers. pip then finds the requirement satisfied.
install_torch() {
  [[ $(uname -sm) == "Linux x86_64" ]] && ! has_nvidia_gpu || return 0
  "$PYTHON" -c 'import torch, torchvision' 2>/dev/null && return 0
  local -a pins
  mapfile -t pins < <(grep -E '^torch(vision)?==' "$REPO_ROOT/requirements.txt")
  if "$PYTHON" - "$TORCH_CPU_INDEX/torch/" 2>/dev/null <<'PROBE'; then
import sys, urllib.request
urllib.request.urlopen(sys.argv[1], timeout=3)
PROBE
    "$PYTHON" -m pip install --disable-pip-version-check --quiet --progress-bar on \
      --index-url "$TORCH_CPU_INDEX" "${pins[@]}" || true
  else
    echo "PyTorch's CPU index does not answer; taking the CUDA builds (several GB), which run on a CPU too."
  fi
}
