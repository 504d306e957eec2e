#!/usr/bin/env bash
# Says of which Debian packages the libraries in a folder are: DOC/packages.tsv (package, version, architecture,
# source package, files), and their licenses in DOC/licenses.
# usage: list_packages.sh LIBRARIES DOC
set -euo pipefail
(($# == 2)) || { printf 'usage: %s LIBRARIES DOC\n' "$0" >&2; exit 2; }
mkdir -p "$2/licenses"
declare -A files=()
for path in "$1"/*.so*; do
  [[ -L $path ]] && continue
  name=$(basename "$path")
  # Several packages may have a file of this name: the one whose file it is a copy of.
  found=''
  while IFS=: read -r package architecture original; do
    # `package: path` or `package:architecture: path`
    original=${original:-$architecture}
    if cmp -s "${original# }" "$path" || [[ $(basename "${original# }") == "$name" && -z $found ]]; then
      found=$package
      cmp -s "${original# }" "$path" && break
    fi
  done < <(dpkg-query --search "*/$name" 2>/dev/null)
  [[ -n $found ]] || { printf '%s: no Debian package has %s\n' "$0" "$name" >&2; exit 1; }
  files[$found]+="${files[$found]:+ }$name"
done
for package in "${!files[@]}"; do
  dpkg-query --show --showformat='${Package}\t${Version}\t${Architecture}\t${source:Package}\t' "$package" | head -n 1
  printf '%s\n' "${files[$package]}"
  cp "/usr/share/doc/$package/copyright" "$2/licenses/$package"
done | sort >"$2/packages.tsv"
