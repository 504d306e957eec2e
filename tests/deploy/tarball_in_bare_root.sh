#!/usr/bin/env bash
# Unpacks the archive that `cpack` made in a bare Debian 12, and serves from it: nothing but glibc may come from the
# system. Not a part of CI: debootstrap downloads. Needs root, and Debian's package debootstrap.
# usage: tarball_in_bare_root.sh BUILD_FOLDER
set -euo pipefail
(($# == 1)) || { printf 'usage: %s BUILD_FOLDER\n' "$0" >&2; exit 2; }
# shellcheck source=tests/deploy/try_server.sh
source "$(dirname "${BASH_SOURCE[0]}")/try_server.sh"
work=$(mktemp -d)
root=$work/root
cleanup() {
  local status=$?
  umount "$root/proc" 2>/dev/null || true
  rm -rf "$work"
  exit "$status"
}
trap cleanup EXIT
cpack --config "$1/CPackConfig.cmake" -B "$work/package" >"$work/cpack.log" || { cat "$work/cpack.log" >&2; exit 1; }
debootstrap --variant=minbase bookworm "$root" >/dev/null
mkdir "$root/opt/somewhere"
tar -xzf "$work"/package/*.tar.gz -C "$root/opt/somewhere" --strip-components=1
mount --bind /proc "$root/proc"
inside=(chroot --userspec=65534:65534 "$root")

# The loader of the root itself, which needs no ldd.
for program in ultrasketch ultrasketchd; do
  "${inside[@]}" /bin/sh -c "LD_TRACE_LOADED_OBJECTS=1 /opt/somewhere/bin/$program" >"$work/libraries"
  if grep 'not found' "$work/libraries"; then exit 1; fi
  if grep -Ev '=> /opt/somewhere/|lib(c|m|dl|rt|pthread|resolv)\.so|ld-linux|linux-vdso' "$work/libraries"; then
    echo "these come from the system, not from the archive" >&2
    exit 1
  fi
done
try_server "$work" /opt/somewhere/bin --model=sketch=/opt/somewhere/share/ultrasketch/models/classics-20m-sketch \
  "${inside[@]}"
ls -l "$work"/package/*.tar.gz | awk '{print $5, "bytes"}'
echo "passed"
