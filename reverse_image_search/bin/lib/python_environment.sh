# shellcheck shell=bash
# The Python environment in .venv. Source it after settings.sh.
# Python runs with -I throughout: only .venv and the project are on its path.

PYTHON="$REPO_ROOT/.venv/bin/python"

# PyTorch's own index of wheels without CUDA: a few hundred MB instead of 2.8 GB.
readonly TORCH_CPU_INDEX=https://download.pytorch.org/whl/cpu
readonly CUDA_SIZE="a download of 2.8 GB, 5.2 GB on disk" # of the pinned torch

# What a job needs of requirements.txt.
# shellcheck disable=SC2034 # for the scripts
readonly BUILD_PACKAGES="torch torchvision numpy pillow tqdm" SERVER_PACKAGES="torch numpy" \
  APP_PACKAGES="streamlit tritonclient numpy pillow" TERMINAL_PACKAGES="tritonclient numpy pillow tqdm"

# prepare_python [--only "NAME ..."] [FILE ...]
# Makes or updates .venv with the packages of requirements.txt, or the named ones of them, and of
# further requirements files.
prepare_python() {
  local missing file only="[^#]*"
  if [[ ${1-} == --only ]]; then
    only="${2// /|}"
    shift 2
  fi
  local -a packages=() arguments=()
  mapfile -t packages < <(grep -E "^($only)(\[.*\])?==" "$REPO_ROOT/requirements.txt")
  venv_works || make_venv
  missing="$("$PYTHON" -I "$LIB_DIR/missing_packages.py" "$REPO_ROOT" \
    <(printf '%s\n' "${packages[@]}") "$@")"
  [[ -n $missing ]] || return 0
  [[ -w $REPO_ROOT/.venv ]] ||
    die "$REPO_ROOT/.venv lacks packages and cannot be changed: it belongs to $(owner_of "$REPO_ROOT/.venv"). Run this as that user, or remove the folder."
  # Tools other than venv, such as `uv venv`, make environments without pip.
  pip_works || "$PYTHON" -I -m ensurepip --default-pip >/dev/null 2>&1 || true
  pip_works || make_venv
  echo "Installing packages into .venv ..."
  [[ $'\n'$missing != *$'\n'torch* ]] || install_cpu_torch
  for file; do arguments+=(-r "$file"); done
  install "${packages[@]}" "${arguments[@]}" ||
    die "the packages could not be installed into .venv (see above). Run this again once that is fixed."
  install --no-deps --editable "$REPO_ROOT" ||
    die "the project could not be installed into .venv (see above)."
}

# Whether .venv has a Python that runs, is one that the packages support, and is the one that
# .venv was made with: a system upgrade may have put another in its place.
venv_works() {
  "$PYTHON" -I -c 'import os, sys, sysconfig
sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13) or not os.path.isdir(sysconfig.get_path("purelib")))' 2>/dev/null
}

make_venv() {
  local python venv="$REPO_ROOT/.venv"
  python="$(find_python)"
  if [[ -e $venv || -L $venv ]]; then
    rm -rf "$venv" 2>/dev/null ||
      die "$venv cannot be removed: it belongs to $(owner_of "$venv")."
    echo "The Python environment in .venv did not work, or was not of Python 3.11 to 3.13."
  fi
  echo "Making .venv with $("$python" -I --version) ..."
  ! "$python" -I -m venv "$venv" || return 0
  rm -rf "$venv"
  "$python" -I -c 'import ensurepip, venv' 2>/dev/null ||
    die "$python lacks the venv module. On Debian and Ubuntu: apt-get install python3-venv"
  die "$python could not make $venv (see above)."
}

# The packages need Python 3.11 or newer; the local runtime's server goes up to 3.13.
find_python() {
  local candidate
  for candidate in python3 python3.13 python3.12 python3.11; do
    "$candidate" -I -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null || continue
    echo "$candidate"
    return
  done
  die "no Python 3.11, 3.12 or 3.13 found. Install one, on Debian and Ubuntu with apt-get install python3 python3-venv"
}

pip_works() {
  "$PYTHON" -I -m pip --version >/dev/null 2>&1
}

# Takes pip's arguments. uv is several times as fast; but it does not read pip's settings, so it may
# not find what pip does.
install() {
  if command -v uv >/dev/null; then
    ! uv_install "$@" || return 0
    echo "uv could not install them (see above). Trying pip ..."
  fi
  pip_install "$@"
}

# In the repository: the caller's folder may have settings for another project.
uv_install() {
  local -a quiet=()
  [[ -t 2 ]] || quiet=(--quiet)
  (
    unset UV_PYTHON UV_SYSTEM_PYTHON
    cd "$REPO_ROOT" && uv pip install --python "$PYTHON" "${quiet[@]}" "$@"
  )
}

# The caller's pip settings may name an index or a proxy, but no other place to install to.
# --quiet turns off the progress bar, too.
pip_install() {
  local -a quiet=()
  [[ -t 1 ]] || quiet=(--quiet)
  PIP_USER=0 PIP_TARGET="" PIP_PREFIX="" PIP_ROOT="" PIP_REQUIRE_VIRTUALENV="" \
    "$PYTHON" -I -m pip install --disable-pip-version-check "${quiet[@]}" "$@"
}

# Without an NVIDIA GPU the CUDA builds of torch are gigabytes for nothing: takes torch and
# torchvision from the CPU index, where that answers. The requirement is then satisfied.
install_cpu_torch() {
  [[ $(uname -sm) == "Linux x86_64" ]] || return 0
  if has_nvidia_gpu; then
    echo "There is an NVIDIA GPU: taking the CUDA builds of torch, $CUDA_SIZE."
  elif ! "$PYTHON" -I -c 'import sys, urllib.request
urllib.request.urlopen(sys.argv[1], timeout=3)' "$TORCH_CPU_INDEX/torch/" 2>/dev/null; then
    echo "PyTorch's CPU index does not answer: taking the CUDA builds of torch, $CUDA_SIZE. They run on a CPU, too."
  else
    local -a torch=()
    mapfile -t torch < <(grep -E '^torch(vision)?==' < <(printf '%s\n' "${packages[@]}"))
    install --index-url "$TORCH_CPU_INDEX" "${torch[@]}" ||
      echo "PyTorch's CPU index could not be used (see above): taking the CUDA builds of torch, $CUDA_SIZE."
  fi
}

owner_of() {
  read -r _ _ REPLY _ < <(ls -ld "$1")
  echo "$REPLY"
}

# run_in_terminal MODULE REQUIREMENTS ARGUMENT...: replaces the script by a command that asks the
# server. REQUIREMENTS is a file of the repository, or empty.
run_in_terminal() {
  local module="$1" requirements="$2"
  shift 2
  # shellcheck disable=SC2034 # for `die`
  ERROR_CODE=2
  help_if_asked "$@"
  read_settings
  prepare_python --only "$TERMINAL_PACKAGES" ${requirements:+"$REPO_ROOT/$requirements"} >&2
  export TRITON_URL="${TRITON_URL:-http://127.0.0.1:$TRITON_HTTP_PORT}"
  exec "$PYTHON" -I -m "reverse_image_search.terminal.$module" "$@"
}
