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
  triton_image="${TRITON_IMAGE:-$(setting TRITON_IMAGE)}"

  case "${1:-}" in
    "") ;;
    --remove)
      take_name_off "$python_image"
      take_name_off "$triton_image"
      return
      ;;
    *)
      sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p}' "${BASH_SOURCE[0]}" >&2
      exit 2
      ;;
  esac

  give_name "$python_image" make_python_image
  give_name "$triton_image" make_triton_image
}

# Make the stand-in for the image $1 with the function $2, unless the image itself is there.
give_name() {
  local name="$1" maker="$2" started=$SECONDS
  if docker image inspect "$name" >/dev/null 2>&1 && ! is_stand_in "$name"; then
    echo "$name is there already: no stand-in."
    return
  fi
  "$maker" "$CACHE:$maker"
  docker tag "$CACHE:$maker" "$name"
  echo "Stand-in for $name: $((SECONDS - started)) s, $(size_in_mb "$name") MB"
}

take_name_off() {
  if is_stand_in "$1"; then docker rmi --no-prune "$1" >/dev/null; fi
}

is_stand_in() { [[ "$(label_of "$1" "$LABEL")" == true ]]; }

label_of() {
  docker image inspect --format "{{index .Config.Labels \"$2\"}}" "$1" 2>/dev/null || true
}

size_in_mb() { echo $(($(docker image inspect --format '{{.Size}}' "$1") / 1000000)); }

# Packages are unpacked, not configured, which takes half the time; the hook does the rest. A
# virtual environment at /usr/local has the official image's paths and, unlike Debian's own
# Python, lets pip install. PyPI may stand behind a proxy with a certificate of its own, which
# this machine knows and the image has to be told.
make_python_image() {
  local image="$1" certificates=/etc/ssl/certs/ca-certificates.crt finish made_by
  made_by="$(declare -f make_python_image packages | sha256sum | cut -c1-12)"
  [[ "$(label_of "$image" made_by)" != "$made_by" ]] || return 0
  # shellcheck disable=SC2016 # mmdebstrap's shell expands "$1", the new root folder.
  finish='
    cp "$1/usr/share/base-passwd/passwd.master" "$1/etc/passwd"
    cp "$1/usr/share/base-passwd/group.master" "$1/etc/group"
    printf "[global]\ncert = /etc/ssl/certs/ca-certificates.crt\n" >"$1/etc/pip.conf"
    chroot "$1" ldconfig
    chroot "$1" python3 -m venv --copies /usr/local
    rm -rf "$1/usr/share/doc" "$1/usr/share/man" "$1/usr/share/locale"'
  mmdebstrap --quiet --variant=extract \
    --hook-dir=/usr/share/mmdebstrap/hooks/merged-usr \
    --include="$(packages)" \
    --extract-hook="$finish" \
    --extract-hook="copy-in $certificates /etc/ssl/certs/" \
    bookworm - 2> >(grep -v usr-is-merged >&2) |
    docker import \
      --change 'ENV PATH=/usr/local/bin:/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin' \
      --change 'ENV PIP_DEFAULT_TIMEOUT=180' \
      --change 'CMD ["python3"]' \
      --change "LABEL $LABEL=true made_by=$made_by" - "$image" >/dev/null
}

packages() {
  echo base-files,base-passwd,bash,coreutils,dash,findutils,grep,hostname,libc-bin,login,mawk,passwd,sed,tar,util-linux,ca-certificates,libpython3.11,libstdc++6,python3,python3-venv
}

# The build stage of our own Dockerfile holds torch for that Python already: the server's packages
# go on top of it, in the official image's places.
make_triton_image() {
  local image="$1" scratch
  docker build --quiet --target build --tag "$CACHE:build" \
    --file "$REPO_ROOT/reverse_image_search/Dockerfile" "$REPO_ROOT" >/dev/null
  scratch="$(mktemp -d)"
  # shellcheck disable=SC2064 # the folder's name of now, not of the exit
  trap "rm -rf '$scratch'" EXIT
  cp -r "$REPO_ROOT/reverse_image_search/serving/triton_backend/pytorch" "$scratch/pytorch"
  cat >"$scratch/Dockerfile" <<DOCKERFILE
FROM $CACHE:build
USER root
RUN pip install --no-cache-dir --no-deps --target /opt/pytriton $(setting TRITON_WHEEL) \\
 && cd /opt/pytriton/pytriton/tritonserver \\
 && mkdir -p /opt/tritonserver/bin /opt/tritonserver/backends \\
 && cp -r bin backends /opt/tritonserver/ \\
 && cp python_backend_stubs/3.11/triton_python_backend_stub /opt/tritonserver/backends/python/ \\
 && chmod -R a+rX /opt/tritonserver /opt/pytriton
COPY pytorch /opt/tritonserver/backends/pytorch
ENV PATH=/opt/tritonserver/bin:\$PATH LD_LIBRARY_PATH=/opt/pytriton/nvidia_pytriton.libs
WORKDIR /opt/tritonserver
CMD ["bash"]
DOCKERFILE
  docker build --quiet --tag "$image" "$scratch" >/dev/null
}

# The value that .env has for the variable $1.
setting() { sed -n "s/^$1=//p" "$REPO_ROOT/.env"; }

main "$@"
