#!/usr/bin/env bash
# Usage: embed.sh --into FOLDER [options] FILE|DIR ...
#
# Embeds image files, and those below each folder DIR, with the served encoder, many at a time, and
# writes the embeddings in numbered parts:
#
#   FOLDER/part-00000.npy    (n, D) float32, of unit length
#   FOLDER/part-00000.jsonl  the paths of its rows, a JSON string on each line
#   FOLDER/part-00000.unreadable.jsonl
#                            path and reason, where files could not be read
#
# Stopped or killed, the same command goes on with the parts that are missing, and so does one
# without FILE|DIR.
#
#   --url URL          a server; several times for several replicas (default: TRITON_URL, or the
#                      server of this machine)
#   --part-size N      images of a part (default 10000)
#   --in-flight N      requests at a time for each --url (default 2)
#   --share I/N        embed only every Nth part, from the Ith; for N processes, on any machines
#   -h, --help         this text
#
# Exit code: 0 if all parts are there, 2 on errors.

case $- in *p*) ;; *) exec bash -p "$0" "$@" ;; esac
set -euo pipefail
source "$(dirname "$(readlink -f "$0")")/lib/settings.sh"
source "$LIB_DIR/python_environment.sh"

run_in_terminal embed "" "$@"
