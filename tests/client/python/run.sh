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
  "$python" -m venv "$folder" || skip "python3 -m venv fails: is python3-venv installed?"
  # One small package tells whether PyPI can be reached; what fails after it is an error.
  "$folder/bin/pip" download --quiet --no-deps --retries 1 --timeout 20 --dest "$folder/probe" \
    "$(grep iniconfig "$requirements")" || skip "PyPI cannot be reached"
  "$folder/bin/pip" install --quiet --disable-pip-version-check --no-deps -r "$requirements"
  "$folder/bin/pip" check
  printf '%s' "$stamp" >"$folder/stamp"
}

environment build
environment newest
environment lowest

rm -rf "$work/dist"
"$work/build/bin/pip" wheel --quiet --no-deps --no-build-isolation --wheel-dir "$work/dist" "$package"
wheel=("$work"/dist/*.whl)
export ULTRASKETCH_BIN=$bin ULTRASKETCH_WHEEL=${wheel[0]}
export PYTHONDONTWRITEBYTECODE=1 MYPY_CACHE_DIR=$work/mypy
for environment in newest lowest; do
  "$work/$environment/bin/pip" install --quiet --disable-pip-version-check --no-deps \
    --force-reinstall "${wheel[0]}"
  "$work/$environment/bin/pip" check
  "$work/$environment/bin/python" -m pytest -q -p no:cacheprovider -o python_files='*_test.py' "$here"
done
