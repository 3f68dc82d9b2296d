#!/usr/bin/env bash
# Usage: build_models.sh [options]
#
# Trains the image encoder on Fashion-MNIST, embeds the gallery of 60,000 images, and writes
# model_repo/ (for Triton) and gallery/ (for the app). The previous build stays in place until the
# new one is complete.
#
#   --limit N         train on and index only the first N images
#   --epochs N        passes over the images
#   --quality         average three encoders: three times the training, better search
#   --encoder NAME    fashion (default: trained here) or resnet18 (ImageNet weights)
#   --weights FILE    weights for --encoder resnet18 instead of torchvision's download
#   --top-k K         neighbors that the server returns for each query (default 100)
#   --data-dir DIR    where the dataset is, or is downloaded to (default data/)
#   --output-dir DIR  where model_repo/ and gallery/ go (default: OUTPUT_DIR of .env)
#   --seed N          random seed (default 0)
#   --no-floor        publish a full build even if its search quality is too low
#   -h, --help        this text
#
# RUNTIME=docker builds in a container, RUNTIME=local in .venv, which is created if missing.

# Under bash, whichever shell was asked, and without the caller's functions and options.
case $- in *p*) ;; *) exec bash -p "$0" "$@" ;; esac
set -euo pipefail
source "$(dirname "$(readlink -f "$0")")/lib/settings.sh"
source "$LIB_DIR/runtime.sh"
source "$LIB_DIR/python_environment.sh"
source "$LIB_DIR/docker_runtime.sh"

help_if_asked "$@"
read_settings
choose_runtime
if [[ $RUNTIME == docker ]]; then
  docker_build_models "$@"
else
  prepare_python
  exec "$PYTHON" -I -m reverse_image_search.build_models --output-dir "$OUTPUT_DIR" "$@"
fi
