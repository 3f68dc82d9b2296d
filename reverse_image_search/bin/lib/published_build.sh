# shellcheck shell=bash
# The check of a build, by modules that need no packages, and what containers have to do with it.
# Source it after python_environment.sh.

# Finishes what a killed build left half published, then checks every file that it wrote.
verify_build() {
  local code=0
  run_module serving.publishing "$OUTPUT_DIR" || code=$?
  ((code != 127)) || [[ -d $OUTPUT_DIR/model_repo ]] ||
    die "There are no models in $OUTPUT_DIR/model_repo. Build them with $BIN/build_models.sh"
  ((code == 0 || code == 127)) || exit 1
}

# Prints the requirements files that the published models name, one a line.
requirements_of_build() {
  local file pattern='.*key: "requirements" value [{] string_value: "(requirements-[a-z]+[.]txt)".*'
  for file in "$OUTPUT_DIR"/model_repo/*/config.pbtxt; do
    [[ -f $file ]] || continue
    sed -nE "s/$pattern/\1/p" "$file"
  done | sort -u
}

# Sets TRITON_IMAGE to one with the packages that the published models need, if they need any.
use_image_with_packages() {
  local -a files=()
  mapfile -t files < <(requirements_of_build)
  ((${#files[@]})) || return 0
  [[ $MILVUS_URI == *://* ]] ||
    die "The vectors of this build are in a file, $MILVUS_URI, which containers do not see. Use RUNTIME=local, or a Milvus server (doc/milvus.md)."
  export TRITON_REQUIREMENTS="${files[*]}"
  build_image triton-packages "It takes a minute and 0.5 GB of disk, once."
  export TRITON_IMAGE=reverse_image_search-triton-packages
}

# Sets CONTAINER_SERVES for serving/live.py: whether the server's container, running or about to be
# started again by the engine, serves "this" build, in the folder $1, or "another"; empty without one.
find_what_container_serves() {
  local status folder
  read -r status folder <<<"$(inspect "$SERVER_CONTAINER" \
    '{{.State.Status}} {{range .Mounts}}{{if eq .Destination "/models"}}{{.Source}}{{end}}{{end}}')"
  folder="${folder#/host_mnt}" # before the path in Docker Desktop
  export CONTAINER_SERVES=""
  [[ $status == @(running|restarting) ]] || return 0
  CONTAINER_SERVES=this
  # An engine on another machine has folders that are not here.
  [[ ! -e $folder || $folder -ef $1/model_repo ]] || CONTAINER_SERVES=another
}

# run_module MODULE ARGUMENT...: runs one that needs no packages, with any Python: the docker
# runtime has no .venv. 127 if there is no Python at all.
run_module() {
  local python
  # shellcheck disable=SC2153 # PYTHON is .venv's
  for python in "$PYTHON" python3; do
    "$python" -I -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null || continue
    "$python" -I -c 'import runpy, sys
sys.path.insert(0, sys.argv.pop(1))
runpy.run_module(f"reverse_image_search.{sys.argv.pop(1)}", run_name="__main__", alter_sys=True)' \
      "$REPO_ROOT" "$@"
    return
  done
  return 127
}
