#!/usr/bin/env bash
# Makes stand-ins for the two base images of the docker runtime, for machines that reach no
# container registry:
#
#   python:3.11-slim-bookworm          Debian's Python 3.11 in the official image's places
#   nvcr.io/nvidia/tritonserver:<tag>  NVIDIA's tritonserver from PyPI with our Python-based
#                                      pytorch backend, on CPU
#
# Both get the names that reverse_image_search/Dockerfile and .env use, so that the scripts and
# docker-compose.yml run unchanged. An image that is there already, pulled by you, is left alone.
#
# Usage: tests/docker/make_stand_in_images.sh [--remove]
#   --remove   take the two names off again; the layers stay cached for the next time
#
# Needs root, a Docker engine, mmdebstrap and a way to Debian's and PyPI's packages.
set -euo pipefail

REPO_ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)"
readonly REPO_ROOT
readonly LABEL=reverse_image_search.stand_in
readonly CACHE=reverse_image_search-stand-in

main() {
  local python_image triton_image
  python_image="$(sed -n 's/^ARG PYTHON_IMAGE=//p' "$REPO_ROOT/reverse_image_search/Dockerfile")"
  triton_image="${TRITON_IMAGE:-$(sed -n 's/^TRITON_IMAGE=//p' "$REPO_ROOT/.env")}"

  case "${1:-}" in
    "") ;;
    --remove) take_name_off "$python_image"; take_name_off "$triton_image"; return ;;
    *) sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p}' "${BASH_SOURCE[0]}" >&2; exit 2 ;;
  esac

  give_name "$python_image" make_python_image
  give_name "$triton_image" make_triton_image "$python_image"
}

# Name the stand-in, made first if it is not cached: `give_name NAME MAKER [ARGUMENT]...`.
give_name() {
  local name="$1" maker="$2" cached
  cached="$CACHE:$maker-$(fingerprint "$@")"
  if docker image inspect "$name" >/dev/null 2>&1 && ! is_stand_in "$name"; then
    echo "$name is there already: no stand-in."
    return
  fi
  if ! docker image inspect "$cached" >/dev/null 2>&1; then
    echo "Making a stand-in for $name ..."
    local started=$SECONDS
    "$maker" "$cached" "${@:3}"
    echo "... $((SECONDS - started)) s, $(size_in_mb "$cached") MB"
  fi
  docker tag "$cached" "$name"
}

take_name_off() {
  if is_stand_in "$1"; then docker rmi --no-prune "$1" >/dev/null; fi
}

is_stand_in() {
  [[ "$(docker image inspect --format "{{index .Config.Labels \"$LABEL\"}}" "$1" 2>/dev/null)" == true ]]
}

size_in_mb() { echo $(($(docker image inspect --format '{{.Size}}' "$1") / 1000000)); }

# Changes when this script, the pinned packages or the backend change.
fingerprint() {
  { echo "$@"; cat "${BASH_SOURCE[0]}" "$REPO_ROOT/requirements.txt"
    if [[ "$2" == make_triton_image ]]; then
      cat "$REPO_ROOT"/reverse_image_search/triton_backend/pytorch/*.py
      triton_wheel
    fi
  } | sha256sum | cut -c1-12
}

triton_wheel() { sed -n 's/^TRITON_WHEEL=//p' "$REPO_ROOT/.env"; }

# Packages are unpacked, not configured, which takes half the time; the hook does the rest. A
# virtual environment at /usr/local has the official image's paths and, unlike Debian's own
# Python, lets pip install. PyPI may stand behind a proxy with a certificate of its own, which
# this machine knows and the image has to be told.
make_python_image() {
  local image="$1" certificates=/etc/ssl/certs/ca-certificates.crt finish
  # shellcheck disable=SC2016 # mmdebstrap's shell expands "$1", the new root folder.
  finish='
    cp "$1/usr/share/base-passwd/passwd.master" "$1/etc/passwd"
    cp "$1/usr/share/base-passwd/group.master" "$1/etc/group"
    chroot "$1" ldconfig
    chroot "$1" python3 -m venv --copies /usr/local
    rm -rf "$1/usr/share/doc" "$1/usr/share/man" "$1/usr/share/locale"'
  mmdebstrap --quiet --variant=extract \
    --hook-dir=/usr/share/mmdebstrap/hooks/merged-usr \
    --include="$(packages)" \
    --extract-hook="$finish" \
    --extract-hook="copy-in $certificates /etc/ssl/certs/" \
    --extract-hook='printf "[global]\ncert = '"$certificates"'\n" >"$1/etc/pip.conf"' \
    bookworm - 2> >(grep -v usr-is-merged >&2) |
    docker import \
      --change 'ENV PATH=/usr/local/bin:/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin' \
      --change 'ENV PIP_DEFAULT_TIMEOUT=180' \
      --change 'CMD ["python3"]' \
      --change "LABEL $LABEL=true" - "$image" >/dev/null
}

packages() {
  echo base-files,base-passwd,bash,coreutils,dash,findutils,grep,hostname,libc-bin,login,mawk,\
passwd,sed,tar,util-linux,ca-certificates,libpython3.11,python3,python3-venv
}

# The build stage of our own Dockerfile already holds torch for that Python: the server's
# packages go on top of it.
make_triton_image() {
  local image="$1" scratch wheel
  wheel="$(triton_wheel)"
  scratch="$(mktemp -d)"
  # shellcheck disable=SC2064 # the folder's name is needed now, not at the exit
  trap "rm -rf '$scratch'" EXIT
  docker build --quiet --target build --tag "$CACHE:build" \
    --file "$REPO_ROOT/reverse_image_search/Dockerfile" "$REPO_ROOT"
  cp -r "$REPO_ROOT/reverse_image_search/triton_backend/pytorch" "$scratch/pytorch"
  cat >"$scratch/Dockerfile" <<DOCKERFILE
FROM $CACHE:build
USER root
RUN pip install --no-cache-dir --no-deps --target /opt/pytriton $wheel \\
 && ln -s /opt/pytriton/pytriton/tritonserver /opt/tritonserver \\
 && chmod -R a+rX /opt/pytriton
DOCKERFILE
  docker build --quiet --tag "$image" "$scratch"
}

main "$@"
