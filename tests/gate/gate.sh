#!/usr/bin/env bash
# What finds faults that the tests do not, chosen to take half an hour on two cores with nothing
# compiled before. Every stage runs, whatever the ones before it found; the report comes last.
# usage: gate.sh [--all | --quick] [STAGE]...
# stages: style clang tidy asan tsan fuzz nvcc; those that are named, or else all. --all: the whole
# of each stage, not a choice of it. --quick: without gRPC's headers, clang and nvcc, and with fuzzing
# of 10 s: what can be run beside the tests at every change.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.." || exit

# Seconds of each fuzz target.
fuzz_seconds=30
# What handles what comes from elsewhere, and what has threads.
clang_folders=(engine/base engine/serving server client)
asan_targets=(base_test format_test tokenizer_test chat_template_test gguf_test corruption_test
  fold_codec_test absmaxmin_codec_test dense_codec_test grouped_table_test kv_test scheduler_test
  scheduler_random_test engine_loop_test engine_loop_lifecycle_test completion_test
  stop_matcher_test)
asan_service_targets=(validate_request_test request_translation_test server_parts_test service_test
  server_test soak_test)
tsan_targets=(base_test scheduler_test engine_loop_test engine_loop_lifecycle_test
  device_turns_test)
# Where to begin to count what has changed, for clang-tidy.
tidy_base=${GATE_BASE:-HEAD~20}
all=false
quick=false
stages=()
for argument in "$@"; do
  case "$argument" in
    --all) all=true ;;
    --quick) quick=true ;;
    style | clang | tidy | asan | tsan | fuzz | nvcc) stages+=("$argument") ;;
    *)
      sed -n '4,8s/^# //p' "$0" >&2
      exit 2
      ;;
  esac
done
if $quick; then
  ((${#stages[@]})) || stages=(style asan tsan fuzz)
  fuzz_seconds=10
else
  asan_targets+=("${asan_service_targets[@]}")
fi
((${#stages[@]})) || stages=(style clang tidy asan tsan fuzz nvcc)
if $all; then
  fuzz_seconds=300
  clang_folders=(engine server client tests)
  asan_targets=(all)
  tsan_targets=(all)
fi
# One compiler job needs about 1 GB for gRPC's headers.
jobs=$(awk -v cores="$(nproc)" '/^MemAvailable:/ {gb = int($2 / 1048576); print (gb < 1 ? 1 : gb < cores ? gb : cores)}' \
  /proc/meminfo)

say() { printf '\033[1m==> %s\033[0m\n' "$*" >&2; }

# configure PRESET [ARGUMENT]...
configure() {
  local log
  log=$(cmake --preset "$@" 2>&1) || {
    printf '%s\n' "$log" >&2
    return 1
  }
}

stage_style() {
  local status=0
  git ls-files '*.h' '*.cc' '*.cu' '*.cuh' | xargs clang-format --dry-run --Werror || status=1
  python3 tests/gate/include_direction.py || status=1
  git ls-files '*.sh' .ci/run | xargs shellcheck -S warning || status=1
  git ls-files '*.py' | xargs pyflakes3 || status=1
  return $status
}

# Clang 14 does not compile LibTorch 1.13's headers as C++20.
configure_clang() {
  configure dev -B build-clang -DCMAKE_CXX_COMPILER=clang++ -DULTRASKETCH_FINETUNE=OFF \
    -DULTRASKETCH_CUDA=OFF && cmake --build build-clang -j "$jobs" --target us_proto >&2
}

stage_clang() { configure_clang && python3 tests/gate/check_with_clang.py build-clang "${clang_folders[@]}"; }

stage_tidy() {
  configure_clang || return 1
  local files=()
  if $all; then
    mapfile -t files < <(git ls-files '*.cc')
  else
    git rev-parse --verify --quiet "$tidy_base" >/dev/null || {
      echo "there is no commit $tidy_base here: name another one in GATE_BASE" >&2
      return 1
    }
    mapfile -t files < <(git diff --name-only --diff-filter=d "$tidy_base" -- '*.cc')
  fi
  # Of those that are built here, in the order of the commit's id, so that what there is no time for differs from run to run.
  mapfile -t files < <(printf '%s\n' "${files[@]}" |
    grep -Ev '^(tests|engine/finetune|client/finetune)/' |
    grep -Fxf <(sed -nE "s|^ *\"file\": \"$PWD/(.*)\",?$|\\1|p" build-clang/compile_commands.json) |
    shuf --random-source=<(git rev-parse HEAD | sha512sum | sed 'p;p;p;p;p;p;p;p'))
  $all || files=("${files[@]:0:24}")
  ((${#files[@]})) || return 0
  printf '%s\n' "${files[@]}" | xargs -P "$jobs" -n 2 clang-tidy -p build-clang --quiet
}

# sanitized PRESET TARGET...: builds the tests and runs them.
sanitized() {
  local preset=$1
  shift
  configure "$preset" -DULTRASKETCH_FINETUNE=OFF -DULTRASKETCH_CUDA=OFF &&
    cmake --build "build-$preset" -j "$jobs" --target "$@" >&2 || return 1
  local filter=.
  [[ $1 == all ]] || filter="^($(for target in "$@"; do
    "build-$preset/bin/$target" --gtest_list_tests | sed -n 's/^\([^ ].*\.\).*/\1/p'
  done | sed 's/[.+]/\\&/g' | paste -sd '|'))"
  ctest --test-dir "build-$preset" --output-on-failure --no-tests=error -j "$jobs" -R "$filter" \
    --timeout 600 | grep -vE ' Passed | Start ' >&2
}

stage_asan() { sanitized asan "${asan_targets[@]}"; }
stage_tsan() { sanitized tsan "${tsan_targets[@]}"; }

stage_fuzz() {
  configure fuzz -DULTRASKETCH_FINETUNE=OFF -DULTRASKETCH_CUDA=OFF || return 1
  local targets status=0 target
  targets=$(sed -n 's/^us_fuzzer(\([a-z_]*\).*/\1/p' tests/fuzz/CMakeLists.txt)
  # shellcheck disable=SC2086 # words
  cmake --build build-fuzz -j "$jobs" --target $targets write_gguf_corpus >&2 || return 1
  for target in $targets; do
    local corpus=build-fuzz/corpus/$target
    mkdir -p "$corpus" build-fuzz/found
    seed_corpus "$target" "$corpus"
    "build-fuzz/bin/$target" -max_total_time="$fuzz_seconds" -max_len=65536 -timeout=20 \
      -rss_limit_mb=2048 -artifact_prefix=build-fuzz/found/ -print_final_stats=1 "$corpus" \
      >"build-fuzz/$target.log" 2>&1 || {
      tail -n 40 "build-fuzz/$target.log" >&2
      status=1
    }
    printf '%s: %s\n' "$target" "$(sed -n 's/^stat::number_of_executed_units: */runs: /p' "build-fuzz/$target.log")"
  done
  return $status
}

# seed_corpus TARGET FOLDER: small valid inputs to begin with.
seed_corpus() {
  case "$1" in
    gguf_fuzzer) build-fuzz/bin/write_gguf_corpus "$2" >/dev/null ;;
    model_config_fuzzer) find deploy/models tests/data -name config.json -size -64k -print0 | number_into "$2" ;;
    tokenizer_fuzzer) find tests/data/tokenizer -name '*.json' -size -64k -print0 | number_into "$2" ;;
    chat_template_fuzzer) find tests/data/chat/templates -type f -size -64k -print0 | number_into "$2" ;;
  esac
}

number_into() {
  local file number=0
  while IFS= read -r -d '' file; do
    cp "$file" "$1/seed-$number"
    number=$((number + 1))
  done
}

# A device of an earlier generation: the kernels that Hopper does not use.
stage_nvcc() {
  command -v "${CUDACXX:-nvcc}" >/dev/null || [[ -x /usr/local/cuda/bin/nvcc ]] || {
    echo "skipped: there is no nvcc (set CUDACXX)"
    return 0
  }
  local architectures=80-real
  $all && architectures='80-real;86-real;89-real;90a-real;100;120'
  configure cuda -B build-cuda-compile "-DULTRASKETCH_CUDA_ARCHITECTURES=$architectures" \
    -DULTRASKETCH_FINETUNE=OFF -DULTRASKETCH_SERVICE=OFF &&
    cmake --build build-cuda-compile -j "$jobs" --target ultrasketch_cuda ultrasketch_cuda_compress >&2
}

status=0
report=()
for stage in "${stages[@]}"; do
  say "gate: $stage"
  begin=$SECONDS
  if "stage_$stage"; then result=passed; else
    result=FAILED
    status=1
  fi
  report+=("$(printf '%-6s %s after %d s' "$stage" "$result" $((SECONDS - begin)))")
done
printf '%s\n' "${report[@]}"
exit $status
