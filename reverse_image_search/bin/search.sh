#!/usr/bin/env bash
# Usage: search.sh [options] FILE|DIR|- ...
#
# Searches the gallery for each image FILE, for the files below each folder DIR, or for one image
# from standard input (-), and prints the most similar images with their cosine similarity.
#
#   -k N               neighbors of each query (default 10)
#   --threshold SCORE  leave out neighbors with a lower score (-1 to 1)
#   --paths            print the paths of what is found and nothing else
#   -0                 end each of these paths with a null byte, for xargs -0
#   --json             print a list with an object for each query
#   --csv              print a row for each path that is found
#   --open             show queries and neighbors in the browser, as one HTML file
#   -h, --help         this text
#
# Exit code: 0 if something was found, 1 if nothing was (or nothing above the threshold), 2 on
# errors. Files that cannot be read are named on standard error, and the others are searched for.
#
# The server is the one that start_inference_server_*.sh started, or TRITON_URL.

case $- in *p*) ;; *) exec bash -p "$0" "$@" ;; esac
set -euo pipefail
source "$(dirname "$(readlink -f "$0")")/lib/settings.sh"
source "$LIB_DIR/python_environment.sh"

run_in_terminal search "" "$@"
