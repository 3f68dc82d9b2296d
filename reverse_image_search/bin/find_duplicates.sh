#!/usr/bin/env bash
# Usage: find_duplicates.sh [options]
#
# Finds near-duplicates in the gallery: searches for all of its images, and prints groups of an image
# to keep, the largest or else the oldest, and its near-duplicates. Deletes nothing.
#
# Near-duplicates have a high score to it. Among photos, cropped and turned copies with lower scores
# count, too: their local features show that they are of the same photo.
#
#   --threshold SCORE  least cosine similarity to the image to keep; nothing else is looked at then
#                      (default: what the build measured on perturbed copies of this gallery's
#                      images)
#   --json             print a list with an object for each group
#   --csv              print a row for each file
#   -h, --help         this text
#
# Exit code: 0 if there are near-duplicates, 1 if there are none, 2 on errors.
#
# The server is the one that start_inference_server_*.sh started, or TRITON_URL.

case $- in *p*) ;; *) exec bash -p "$0" "$@" ;; esac
set -euo pipefail
source "$(dirname "$(readlink -f "$0")")/lib/settings.sh"
source "$LIB_DIR/python_environment.sh"

run_in_terminal duplicates requirements-duplicates.txt "$@"
