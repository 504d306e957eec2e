#!/usr/bin/env bash
# Lays out an image's files: the installation in ROOT/opt/ultrasketch, and the sample model in ROOT/models, readable
# for everybody. The Dockerfile calls it.
# usage: install.sh BUILD_FOLDER ROOT
set -euo pipefail
(($# == 2)) || { printf 'usage: %s BUILD_FOLDER ROOT\n' "$0" >&2; exit 2; }
for component in programs libraries models; do
  cmake --install "$1" --component "$component" --strip --prefix "$2/opt/ultrasketch"
done
mv "$2/opt/ultrasketch/share/ultrasketch/models" "$2/models"
chmod -R a+rX "$2"
