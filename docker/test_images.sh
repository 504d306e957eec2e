#!/usr/bin/env bash
# Builds docker/Dockerfile without a Docker daemon, and runs the server and the HEALTHCHECK of what it built: Debian's
# buildah with chroot isolation and vfs storage, on a debian:12 that debootstrap makes. Not a part of CI. Needs root,
# a Debian mirror, and Debian's packages buildah and debootstrap.
#
# usage: test_images.sh [--compiler-cache FOLDER | --prebuilt BUILD_FOLDER]
#   Without --prebuilt the image for CPUs is built as it stands, which compiles the server anew: half an hour on two
#   cores, less with a copy of a ccache (its folder, such as ~/.cache/ccache) of builds of this tree.
#   --prebuilt takes the programs of a build folder of this machine (Debian 12) in place of those that the Dockerfile
#   compiles. All else runs: setting up, configuring, and both devices' images, of which the one for GPUs stands on
#   Debian in place of NVIDIA's base.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=tests/deploy/try_server.sh
source tests/deploy/try_server.sh

usage() { printf 'usage: %s [--compiler-cache FOLDER | --prebuilt BUILD_FOLDER]\n' "$0" >&2; exit 2; }
prebuilt=''
compiler_cache=''
case "$#:${1:-}" in
  0:) ;;
  2:--prebuilt) prebuilt=$2 ;;
  2:--compiler-cache) compiler_cache=$2 ;;
  *) usage ;;
esac
say() { printf '\033[1m==> %s\033[0m\n' "$*" >&2; }
die() { printf '%s\n' "$*" >&2; exit 1; }
for program in buildah debootstrap; do
  command -v "$program" >/dev/null || die "apt-get install $program"
done

work=$(mktemp -d)
export BUILDAH_ISOLATION=chroot STORAGE_DRIVER=vfs CONTAINERS_STORAGE_CONF=$work/storage.conf
cat >"$work/storage.conf" <<CONF
[storage]
driver = "vfs"
graphroot = "$work/storage"
runroot = "$work/run"
CONF
readonly_root=''
leave_root() {
  [[ -z $readonly_root ]] || umount --recursive "$readonly_root" || true
  readonly_root=''
}
cleanup() {
  local status=$?
  leave_root
  buildah umount --all >/dev/null 2>&1 || true
  rm -rf "$work"
  exit "$status"
}
trap cleanup EXIT

volumes=()
if [[ -n $compiler_cache ]]; then
  cp -r "$compiler_cache" "$work/ccache"
  printf 'base_dir = /src\nhash_dir = false\n' >"$work/ccache/ccache.conf"
  volumes=(--volume "$work/ccache:/root/.ccache")
fi

# build DOCKERFILE [ARGUMENT]...
build() {
  buildah build --format docker --pull=false --layers "${volumes[@]}" \
    --build-arg DEBIAN_IMAGE=docker.io/library/debian:12 \
    --build-arg DEBIAN_RUNTIME_IMAGE=docker.io/library/debian:12-slim \
    --build-arg CUDA_RUNTIME_IMAGE=docker.io/library/debian:12-slim \
    --file "$@" . >"$work/build.log" 2>&1 || { tail -n 40 "$work/build.log" >&2; return 1; }
}

# try_image IMAGE: what it says of itself, and its server, as nobody on a read-only root.
try_image() {
  local image container field
  image=$(buildah inspect --type image "$1")
  for field in '"User": "65534:65534"' '"StopSignal": "SIGTERM"' '"org.opencontainers.image.version": "0.1.0"' \
    '"Healthcheck"' '"8001/tcp"'; do
    grep -Fq "$field" <<<"$image" || die "the image has no $field"
  done
  container=$(buildah from --pull=false "$1")
  readonly_root=$(buildah mount "$container")
  mount --bind "$readonly_root" "$readonly_root"
  mount -o remount,ro,bind "$readonly_root"
  mount --rbind /proc "$readonly_root/proc"
  local in_image=(chroot --userspec=65534:65534 "$readonly_root")
  ! "${in_image[@]}" /bin/sh -c 'echo x >/tmp/x' 2>/dev/null || die "the root can be written to"
  try_server "$work" /opt/ultrasketch/bin --model-repository=/models "${in_image[@]}"
  "${in_image[@]}" /bin/ls /opt/ultrasketch/bin
  "${in_image[@]}" /bin/cat /opt/ultrasketch/share/doc/ultrasketch/packages.tsv | cut -f 1,2
  du -sh --apparent-size "$readonly_root/opt" | cut -f 1
  leave_root
  buildah rm "$container" >/dev/null
}

say "debian:12 by debootstrap"
debootstrap --variant=minbase bookworm "$work/debian" >/dev/null
base=$(buildah from scratch)
buildah add --quiet "$base" "$work/debian" / >/dev/null
for tag in 12 12-slim; do buildah commit --quiet "$base" "docker.io/library/debian:$tag" >/dev/null; done
rm -rf "$work/debian"

if [[ -z $prebuilt ]]; then
  say "the image for CPUs"
  build docker/Dockerfile --tag ultrasketch:cpu
  [[ -z $compiler_cache ]] || CCACHE_DIR=$work/ccache ccache --show-stats
  try_image ultrasketch:cpu
  say "passed"
  exit
fi

say "the stages setup and build-cpu, but for compiling"
sed '/AS build-cpu$/,/^$/{/^ && /d; s/ \\$//}' docker/Dockerfile >"$work/configure"
build "$work/configure" --target build-cpu
tail -n 3 "$work/build.log"

# The programs, laid out as the stages build-* do it, in an image in their place.
mkdir "$work/out"
docker/install.sh "$prebuilt" "$work/out/out" >/dev/null
stage=$(buildah from scratch)
buildah add --quiet "$stage" "$work/out" / >/dev/null
buildah commit --quiet "$stage" localhost/prebuilt >/dev/null
sed 's#--from=build-c[a-z]*#--from=localhost/prebuilt#; /^FROM setup AS build-/,/^$/d; /AS toolkit$/d' docker/Dockerfile \
  >"$work/prebuilt"
for device in cpu cuda; do
  say "the image of DEVICE=$device"
  build "$work/prebuilt" --build-arg "DEVICE=$device" --tag "ultrasketch:$device"
  try_image "ultrasketch:$device"
done
say "passed"
