#!/usr/bin/env bash
# Packs a build and what it needs to run on another machine that has a GPU, the CUDA toolkit and
# python3, but none of this project's libraries: OUT/bundle.tar.xz, and OUT/run_on_device.sh to run
# there (see it for what it does).
# usage: pack_for_device.sh BUILD_DIR OUT [MODEL_FOLDER]...
set -euo pipefail

(($# >= 2)) || {
  printf 'usage: %s BUILD_DIR OUT [MODEL_FOLDER]...\n' "$0" >&2
  exit 2
}
build=$(cd "$1" && pwd)
mkdir -p "$2"
out=$(cd "$2" && pwd)
shift 2
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$work/bin" "$work/lib" "$work/models"

for program in ultrasketch ultrasketchd cuda_backend_test cuda_compress_test cuda_host_test \
  real_model_test libultrasketch_cuda.so libultrasketch_cuda_bench.so \
  libultrasketch_cuda_compress.so; do
  if [[ -e $build/bin/$program ]]; then
    cp "$build/bin/$program" "$work/bin/"
    strip --strip-debug "$work/bin/$program"
  else
    printf 'not built, left out: %s\n' "$program" >&2
  fi
done
# The toolkit's libraries are there, and so are the C and C++ libraries, which must match the system.
for program in "$work"/bin/*; do ldd "$program"; done |
  awk '/=> \// {print $3}' | sort -u |
  grep -Ev '/(libc|libm|libdl|librt|libpthread|libstdc\+\+|libgcc_s|ld-linux.*|libcublas.*)\.so' |
  while read -r library; do cp -L "$library" "$work/lib/"; done
for model in "$@"; do cp -rL "$model" "$work/models/"; done

XZ_OPT='-3 -T0' tar -C "$work" -cJf "$out/bundle.tar.xz" .
cp "$here/run_on_device.sh" "$out/"
du -h "$out"/*
