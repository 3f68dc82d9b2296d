#!/usr/bin/env bash
# Installs and starts what tests/docker needs, on Debian, as root: a Docker engine, Compose,
# mmdebstrap for the stand-in images, Prometheus for the queries of the dashboard. Does nothing
# where all of it is there.
#
# Usage: tests/docker/install_engine.sh
set -euo pipefail

readonly PACKAGES=(docker.io docker-compose iptables mmdebstrap prometheus)

main() {
  if (($#)); then
    sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p}' "${BASH_SOURCE[0]}" >&2
    exit 2
  fi
  if ! all_installed dockerd docker-compose mmdebstrap prometheus; then
    apt-get -o DPkg::Lock::Timeout=600 --quiet update
    DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=600 --quiet --yes \
      --no-install-recommends install "${PACKAGES[@]}"
  fi
  docker info >/dev/null 2>&1 || start_engine
  docker version --format 'Docker engine {{.Server.Version}}, client {{.Client.Version}}'
  docker-compose version --short
}

all_installed() {
  local program
  for program; do command -v "$program" >/dev/null || return 1; done
}

# Where systemd runs, the package has started it; in a container nothing does.
start_engine() {
  local log=/var/log/dockerd.log
  setsid dockerd >"$log" 2>&1 </dev/null &
  for _ in {1..60}; do
    docker info >/dev/null 2>&1 && return
    sleep 0.5
  done
  tail -n 20 "$log" >&2
  echo "install_engine.sh: dockerd does not answer; its log is above and in $log" >&2
  exit 1
}

main "$@"
