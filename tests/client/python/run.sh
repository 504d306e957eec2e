#!/usr/bin/env bash
# Builds the Python client's wheel and tests it against the server, with the newest and with the
# oldest packages that it admits.
#
#   run.sh BIN_DIR WORK_DIR     BIN_DIR has ultrasketch and ultrasketchd; WORK_DIR keeps the
#                               environments from one run to the next
#
# Exit code 77: skipped, for want of Python 3.11, of its venv, or of PyPI.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
package=$here/../../../client/python
bin=$1
work=$2
mkdir -p "$work"

skip() {
  echo "skipped: $*"
  exit 77
}

python=$(command -v python3) || skip "there is no python3"
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
  skip "$("$python" --version) is older than the 3.11 that the client needs"

# environment NAME: a venv in $work/NAME with the packages of requirements-NAME.txt, made anew only
# when they change.
environment() {
  local folder=$work/$1 requirements=$here/requirements-$1.txt stamp
  stamp=$("$python" --version; cat "$requirements")
  [[ -f $folder/stamp && $(<"$folder/stamp") == "$stamp" ]] && return
  rm -rf "$folder"
  "$python" -m venv --without-pip "$folder"
  # One small package tells whether PyPI can be reached; what fails after it is an error.
  "${pip[@]}" download --quiet --no-deps --retries 1 --timeout 20 --dest "$folder/probe" \
    "$(grep iniconfig "$requirements")" || skip "PyPI cannot be reached"
  "${pip[@]}" --python "$folder/bin/python" install --quiet --no-compile --no-deps -r "$requirements"
  "${pip[@]}" --python "$folder/bin/python" check
  printf '%s' "$stamp" >"$folder/stamp"
}

# One pip for all environments: putting it into each takes longer than what it does there.
pip=("$work/pip/bin/python" -m pip --disable-pip-version-check)
if ! "${pip[@]}" --version >/dev/null 2>&1; then
  rm -rf "$work/pip"
  "$python" -m venv "$work/pip" || skip "python3 -m venv fails: is python3-venv installed?"
fi
export MYPY_CACHE_DIR=$work/mypy

environment build
environment newest
environment lowest

rm -rf "$work/dist"
"${pip[@]}" --python "$work/build/bin/python" wheel --quiet --no-deps --no-build-isolation \
  --wheel-dir "$work/dist" "$package"
wheel=("$work"/dist/*.whl)
export ULTRASKETCH_BIN=$bin ULTRASKETCH_WHEEL=${wheel[0]}
for environment in newest lowest; do
  "${pip[@]}" --python "$work/$environment/bin/python" install --quiet --no-compile --no-deps \
    --force-reinstall "${wheel[0]}"
  "${pip[@]}" --python "$work/$environment/bin/python" check
  "$work/$environment/bin/python" -m pytest -q -p no:cacheprovider -o python_files='*_test.py' "$here"
done
