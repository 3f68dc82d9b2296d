#!/usr/bin/env bash
# Usage: start_inference_server_cpu.sh [--detach | --stop | --check] [--ensemble] [--host ADDRESS]
#
# Serves both models of model_repo/ with Triton on the CPU until Ctrl-C: HTTP on port 8000, gRPC on
# 8001, metrics on 8002 (ports of .env).
#
#   --detach    start in the background and return when both models are READY
#   --stop      stop a server that was started with --detach
#   --check     do not start; install what is missing and say whether this machine can serve
#   --ensemble  also serve ensemble_repo/: image_search, from image to ids and scores in one call
#   --host ADDRESS
#               docker runtime: publish the ports there instead of on 127.0.0.1 (BIND_ADDRESS)
#   -h, --help  this text
#
# RUNTIME=docker uses NVIDIA's container, RUNTIME=local the tritonserver from PyPI. The default is
# docker if a Docker engine answers.

# Under bash, whichever shell was asked, and without the caller's functions and options.
case $- in *p*) ;; *) exec bash -p "$0" "$@" ;; esac
set -euo pipefail
source "$(dirname "$(readlink -f "$0")")/lib/settings.sh"
source "$LIB_DIR/runtime.sh"
source "$LIB_DIR/python_environment.sh"
source "$LIB_DIR/docker.sh"
source "$LIB_DIR/inference_server.sh"

read_settings
start_inference_server cpu "$@"
