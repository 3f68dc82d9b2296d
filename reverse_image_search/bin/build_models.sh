#!/usr/bin/env bash
# Usage: build_models.sh [options]
#
# Trains the image encoder on Fashion-MNIST, embeds the gallery of 60,000 images, and writes
# model_repo/ (for Triton) and gallery/ (for the app). The previous build stays in place until the
# new one is complete.
#
# With --images it does so for your own images. Run it again after images came, changed or went: it
# embeds only what is new, and images keep their ids.
#
#   --images DIR...   folders of your own images, with their sub-folders; hidden files are left out
#   --add PATH...     add files and folders to a gallery of your own images
#   --remove PATH...  remove files and folders from it
#   --dry-run         say what --images, --add or --remove would do
#   --watch           with --images: go on doing so whenever files come, change or go, until Ctrl-C
#   --labels FILE     CSV file of path,label lines; the default label is the name of the folder
#   --no-labels       no labels
#   --limit N         train on and index only the first N images
#   --epochs N        passes over the images
#   --quick           train a narrower encoder for fewer passes: 2 minutes, but the search is worse
#   --quality         average three encoders: three times the training, better search
#   --dataset NAME    source of the images (default fashion_mnist)
#   --encoder NAME    fashion (trained here) or a pretrained one: efficientnet_lite0, resnet18,
#                     resnet50, efficientnet_b0, convnext_tiny, vit_b_16, dinov2_small, dinov2_base,
#                     siglip2_base; the default suits the dataset
#   --index NAME      kind of vector search: exact (default), ivf (approximate), milvus (a vector
#                     database, at MILVUS_URI of .env; doc/milvus.md)
#   --recall SHARE    of the 20 nearest that ivf must find (default 0.995)
#   --weights FILE    weights of a pretrained encoder, instead of their download
#   --no-adapt        leave the embeddings of a pretrained encoder as they are, instead of learning from
#                     the images what makes them the same item or of the same kind
#   --top-k K         neighbors that the server returns for each query (default 100)
#   --data-dir DIR    where the dataset is, or is downloaded to (default data/)
#   --output-dir DIR  where model_repo/ and gallery/ go (default: OUTPUT_DIR of .env)
#   --seed N          random seed (default 0)
#   --no-floor        publish a full build even if its search quality is too low
#   -h, --help        this text
#
# RUNTIME=docker builds in a container, RUNTIME=local in .venv, which is created if missing.

case $- in *p*) ;; *) exec bash -p "$0" "$@" ;; esac
set -euo pipefail
source "$(dirname "$(readlink -f "$0")")/lib/settings.sh"
source "$LIB_DIR/python_environment.sh"
source "$LIB_DIR/published_build.sh"
source "$LIB_DIR/docker.sh"

# docker_build_models [options]
# The folders that the options name have the same paths in the container.
docker_build_models() {
  local option value folder target="$OUTPUT_DIR"
  local -A folders=(["$REPO_ROOT"]=1 ["$OUTPUT_DIR"]=1) read_only=()
  local -a options=(--output-dir="$OUTPUT_DIR") run=(run --rm --name "$BUILD_CONTAINER" --workdir "$REPO_ROOT")
  while (($#)); do
    option="${1%%=*}" value="${1#*=}"
    if [[ $option == --@(images|add|remove) ]]; then
      options+=("$option")
      [[ $1 == *=* ]] || { value="${2-}" && shift; }
      while true; do
        value="$(realpath --canonicalize-missing -- "$value")"
        options+=("$value")
        if [[ $option != --remove ]]; then
          [[ -e $value ]] || die "there is no folder $value"
          read_only["$value"]=1
        fi
        [[ ${2--} != -* ]] || break
        value="$2" && shift
      done
    elif [[ $option == --@(data-dir|output-dir|weights|labels) ]]; then
      [[ $1 == *=* ]] || { value="${2-}" && shift; }
      value="$(realpath --canonicalize-missing -- "$value")"
      options+=("$option=$value")
      [[ $option != --output-dir ]] || target="$value"
      [[ $option != --@(weights|labels) ]] || value="$(dirname "$value")"
      folders["$value"]=1
    else
      options+=("$1")
    fi
    (($# == 0)) || shift
  done
  for folder in "${!folders[@]}"; do
    [[ $folder != *:* ]] || die "Docker cannot mount $folder: its name has a colon."
    # The engine would make a missing folder as root.
    mkdir -p "$folder" || die "the folder $folder cannot be made. Name another one."
    run+=(--volume "$folder:$folder")
  done
  folder=/usr/share/datasets/fashion-mnist # of Debian's package
  [[ ! -d $folder ]] || read_only["$folder"]=1
  for folder in "${!read_only[@]}"; do
    [[ $folder != *:* ]] || die "Docker cannot mount $folder: its name has a colon."
    run+=(--volume "$folder:$folder:ro")
  done
  [[ -t 0 && -t 1 ]] || run+=(-T)
  find_compose
  check_not_running "$BUILD_CONTAINER" "docker stop $BUILD_CONTAINER"
  build_image build "It takes some minutes and 2 to 9 GB of disk, once."
  set_container_user build
  find_what_container_serves "$target"
  # A server of this build may start and stop until it is complete.
  [[ $CONTAINER_SERVES == another && -z ${TRITON_URL-} ]] || unset CONTAINER_SERVES
  end_with_script "$BUILD_CONTAINER" 130
  "${COMPOSE[@]}" "${run[@]}" build "${options[@]}" <&0 &
  client=$!
  wait "$client"
}

help_if_asked "$@"
read_settings
choose_runtime
# Training allocates the same large blocks in each step. glibc would give them back to the kernel,
# which clears every page of the next ones. Other C libraries ignore this.
tunables=glibc.malloc.mmap_threshold=4294967296:glibc.malloc.trim_threshold=8589934592
export GLIBC_TUNABLES="${GLIBC_TUNABLES:-$tunables:glibc.malloc.hugetlb=1}"
watch=()
[[ " $* " != *" --watch "* ]] || watch=("$REPO_ROOT/requirements-watch.txt")
if [[ $RUNTIME == docker ]]; then
  ((${#watch[@]} == 0)) ||
    die "--watch needs RUNTIME=local: a container cannot see disks come and go. A server in a container takes over what it builds, too."
  docker_build_models "$@"
else
  prepare_python --only "$BUILD_PACKAGES" "${watch[@]}"
  exec "$PYTHON" -I -m reverse_image_search.build_models --output-dir "$OUTPUT_DIR" "$@"
fi
