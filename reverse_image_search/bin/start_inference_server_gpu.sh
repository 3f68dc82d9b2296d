#!/usr/bin/env bash
# Serves both models with Triton on the GPU; -h prints the options, from lib/inference_server.sh.

case $- in *p*) ;; *) exec bash -p "$0" "$@" ;; esac
set -euo pipefail
source "$(dirname "$(readlink -f "$0")")/lib/settings.sh"
source "$LIB_DIR/inference_server.sh"

start_inference_server gpu "$@"
