#!/usr/bin/env bash
# Builds docker/Dockerfile's image `cpu` without a Docker daemon, and runs the server and the HEALTHCHECK of what it
# built: Debian's buildah with chroot isolation and vfs storage, on a debian:12 that debootstrap makes. Not a part of
# CI: it compiles the server anew. Needs root, and Debian's packages buildah and debootstrap.
#
# usage: test_images.sh [--prebuilt BUILD_FOLDER]
#   --prebuilt takes the programs of a build folder of this machine (Debian 12) in place of the stage that compiles.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

usage() { printf 'usage: %s [--prebuilt BUILD_FOLDER]\n' "$0" >&2; exit 2; }
prebuilt=''
if (($# == 2)) && [[ $1 == --prebuilt ]]; then prebuilt=$2; elif (($#)); then usage; fi
say() { printf '\033[1m==> %s\033[0m\n' "$*" >&2; }
for program in buildah debootstrap; do
  command -v "$program" >/dev/null || { printf 'apt-get install %s\n' "$program" >&2; exit 1; }
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
cleanup() {
  local status=$?
  [[ -z $readonly_root ]] || umount --recursive "$readonly_root" || true
  buildah umount --all >/dev/null 2>&1 || true
  rm -rf "$work"
  exit "$status"
}
trap cleanup EXIT

say "debian:12 by debootstrap"
debootstrap --variant=minbase bookworm "$work/debian" >/dev/null
base=$(buildah from scratch)
buildah add --quiet "$base" "$work/debian" / >/dev/null
for tag in 12 12-slim; do buildah commit --quiet "$base" "docker.io/library/debian:$tag" >/dev/null; done
rm -rf "$work/debian"

say "building the image cpu"
options=(--file docker/Dockerfile --target cpu --format docker --pull=false --tag ultrasketch:test
  --build-arg DEBIAN_IMAGE=docker.io/library/debian:12
  --build-arg DEBIAN_RUNTIME_IMAGE=docker.io/library/debian:12-slim)
if [[ -n $prebuilt ]]; then
  # The programs, laid out as the stage build-cpu does it, in an image of that name.
  mkdir "$work/out"
  docker/install.sh "$prebuilt" "$work/out/out" >/dev/null
  stage=$(buildah from scratch)
  buildah add --quiet "$stage" "$work/out" / >/dev/null
  buildah commit --quiet "$stage" localhost/prebuilt >/dev/null
  sed 's#--from=build-cpu#--from=localhost/prebuilt#; /^FROM setup AS build-cpu/,/^$/d' docker/Dockerfile \
    >"$work/Dockerfile"
  options[1]=$work/Dockerfile
fi
buildah build "${options[@]}" . >"$work/build.log" 2>&1 || { tail -n 40 "$work/build.log" >&2; exit 1; }

say "what the image says of itself"
image=$(buildah inspect --type image ultrasketch:test)
# field PATTERN: the image's description has it.
field() { grep -Eq "$1" <<<"$image" || { printf 'the image has no %s\n' "$1" >&2; exit 1; }; }
field '"User": "65534:65534"'
field '"StopSignal": "SIGTERM"'
field '"org.opencontainers.image.version": "0.1.0"'
field '"Healthcheck"'

say "the server in it, as nobody, on a read-only root"
container=$(buildah from --pull=false ultrasketch:test)
readonly_root=$(buildah mount "$container")
mount --bind "$readonly_root" "$readonly_root"
mount -o remount,ro,bind "$readonly_root"
mount --rbind /proc "$readonly_root/proc"
in_image=(chroot --userspec=65534:65534 "$readonly_root")
if "${in_image[@]}" /bin/sh -c 'echo x >/tmp/x' 2>/dev/null; then echo "the root can be written to" >&2; exit 1; fi
"${in_image[@]}" /opt/ultrasketch/bin/ultrasketchd --listen=127.0.0.1:0 --metrics-listen=127.0.0.1:0 \
  --model-repository=/models 2>"$work/server.log" &
server=$!
for _ in $(seq 300); do
  grep -q event=serving "$work/server.log" && break
  kill -0 "$server" 2>/dev/null || { cat "$work/server.log" >&2; exit 1; }
  sleep 0.2
done
address=$(sed -nE 's/.*event=serving listen=([^ ]+).*/\1/p' "$work/server.log")
"${in_image[@]}" /opt/ultrasketch/bin/ultrasketch health --target "$address"
"${in_image[@]}" /opt/ultrasketch/bin/ultrasketch generate --target "$address" --prompt 'It was a dark night' --max-tokens 8
kill -TERM "$server"
wait "$server"
say "its libraries are of these packages"
"${in_image[@]}" /bin/cat /opt/ultrasketch/share/doc/ultrasketch/packages.tsv | cut -f 1,2
du -sh --apparent-size "$readonly_root/opt" | cut -f 1
say "passed"
