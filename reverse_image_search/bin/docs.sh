#!/usr/bin/env bash
# Usage: docs.sh [--build] [--port PORT]
#
# Serves README and the pages of doc/ as a site, at http://localhost:8503/, until Ctrl-C. Start it
# again to see changes.
#
#   --build      write the site to .site/html instead, and fail on a broken link
#   --port PORT  serve on another port
#   -h, --help   this text

case $- in *p*) ;; *) exec bash -p "$0" "$@" ;; esac
set -euo pipefail
source "$(dirname "$(readlink -f "$0")")/lib/settings.sh"
source "$LIB_DIR/python_environment.sh"

# What pages link to is part of the site: links lead to the same files as on a Git host.
readonly PAGES=(README.md CONTRIBUTING.md LICENSE .env .github docker-compose.yml pyproject.toml
  doc reverse_image_search tests)

help_if_asked "$@"
action=serve port=8503
while (($#)); do
  case "$1" in
    --build) action=build ;;
    --port) port="${2-}" && shift ;;
    *) die "unknown option $1. See $BIN/$SCRIPT -h" ;;
  esac
  shift
done
[[ $port =~ ^[1-9][0-9]{0,4}$ ]] || die "--port needs a port number, not '$port'."

prepare_python "$REPO_ROOT/requirements-docs.txt"
cd "$REPO_ROOT"
rm -rf .site
mkdir -p .site/pages
for page in "${PAGES[@]}"; do
  [[ ! -e $page ]] || cp -R "$page" .site/pages/
done
cp requirements*.txt .site/pages/
cp doc/zensical.toml .site/
find .site/pages -name __pycache__ -prune -exec rm -rf {} +
options=(--config-file .site/zensical.toml)
if [[ $action == build ]]; then
  "$PYTHON" -I -m zensical build --strict "${options[@]}"
  echo "The site is in .site/html"
else
  exec "$PYTHON" -I -m zensical serve --dev-addr "127.0.0.1:$port" "${options[@]}"
fi
