#!/usr/bin/env bash
# Usage: test.sh [--fast | suite ...] [-- pytest options]
#
# Installs what the tests need into .venv and runs all suites, or the named ones.
#
#   unit         modules alone, against values known by hand and plain NumPy
#   integration  a small build of real data, served by a real Triton; C++ libtorch
#   scripts      what the commands print, start, and leave behind; README's code; style
#   docs         the code of the course, typed as a reader would; the site and its links
#   browser      the app in headless Chromium
#   docker       the docker runtime, on a real Docker engine
#   faults       killed processes, damaged files, hostile requests
#
#   --fast       unit tests and style alone, within two minutes
#   -h, --help   this text
#
# Example: test.sh unit scripts -- -x -k port
#
# What this machine lacks (a browser, a Docker engine, the dataset) is skipped with the reason.
# With CI=true that is a failure, and on Debian and Ubuntu, as root, it is installed first.
# TEST_DATA_DIR names a folder with the dataset, instead of data/.

case $- in *p*) ;; *) exec bash -p "$0" "$@" ;; esac
set -euo pipefail
source "$(dirname "$(readlink -f "$0")")/lib/settings.sh"
source "$LIB_DIR/python_environment.sh"

readonly SUITES=(unit integration scripts docs browser docker faults)

main() {
  local -a suites=() options=() paths=()
  while (($#)); do
    case "$1" in
      -h | --help) print_help && exit ;;
      --fast) paths=(tests/unit tests/scripts/test_style.py) ;;
      --)
        options=("${@:2}")
        break
        ;;
      -*) die "unknown option $1. Options for pytest go behind --; see $BIN/test.sh -h" ;;
      *)
        [[ " ${SUITES[*]} " == *" $1 "* ]] || die "unknown suite $1. There are: ${SUITES[*]}"
        suites+=("$1")
        ;;
    esac
    shift
  done
  ((${#suites[@]} + ${#paths[@]})) || suites=("${SUITES[@]}")
  paths+=("${suites[@]/#/tests/}")

  prepare_python "$REPO_ROOT"/requirements-{test,duplicates,evaluate,milvus,photos,timm,tutorial,watch,docs}.txt
  [[ " ${suites[*]} " != *" browser "* ]] || prepare_browser
  [[ " ${suites[*]} " != *" docker "* ]] || prepare_docker

  echo "Tests: ${paths[*]}"
  cd "$REPO_ROOT"
  exec "$PYTHON" -I -m pytest --numprocesses=2 --dist=loadfile --no-loadscope-reorder \
    --durations=15 "${options[@]}" "${paths[@]}"
}

prepare_browser() {
  command -v chromium >/dev/null || command -v google-chrome >/dev/null && return
  if can_install; then
    echo "Installing chromium ..."
    apt-get -o DPkg::Lock::Timeout=600 -qq update
    DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=600 -qq -y \
      --no-install-recommends install chromium >/dev/null
  else
    echo "No browser: tests/browser will skip. On Debian: apt-get install chromium"
  fi
}

prepare_docker() {
  docker_answers && return
  if [[ ${CI-} == true ]] && can_install; then
    "$REPO_ROOT/tests/docker/install_engine.sh"
  else
    echo "No Docker engine answers: tests/docker will skip."
  fi
}

can_install() {
  ((EUID == 0)) && command -v apt-get >/dev/null
}

main "$@"
