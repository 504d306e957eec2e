#!/usr/bin/env bash
# Tests and times what pack_for_device.sh packed, on a machine with a GPU. Prints a short report at
# its end, and leaves it in LOG_DIR with the measurements as JSON and all logs in one archive.
# usage: run_on_device.sh REPOSITORY LOG_DIR [STAGE]...
# stages: tests models server cycles kernels steps memcheck racecheck; all of them unless some are
# named.
set -uo pipefail

(($# >= 2)) || {
  printf 'usage: %s REPOSITORY LOG_DIR [tests|models|server|cycles|kernels|steps|memcheck|racecheck]...\n' "$0" >&2
  exit 2
}
repository=$(cd "$1" && pwd)
mkdir -p "$2"
out=$(cd "$2" && pwd)
shift 2
stages=("$@")
((${#stages[@]})) || stages=(tests models server cycles kernels steps memcheck racecheck)
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
work=${TMPDIR:-/tmp}/ultrasketch-device
if [[ ! -e $work/bin || $here/bundle.tar.xz -nt $work/bin ]]; then
  rm -rf "$work"
  mkdir -p "$work"
  tar -C "$work" -xJf "$here/bundle.tar.xz" 2>/dev/null ||
    python3 -m tarfile -e "$here/bundle.tar.xz" "$work" || exit 1
  touch "$work/bin"
fi
bin=$work/bin
logs=$work/logs
rm -rf "$logs"
mkdir -p "$logs"
toolkit=$(find /usr/local/cuda*/ /opt -name 'libcublasLt.so.13' -printf '%h\n' 2>/dev/null | head -n 1)
export LD_LIBRARY_PATH=$work/lib:$toolkit
export ULTRASKETCH_TEST_DATA_DIR=$repository/tests/data
export ULTRASKETCH_SAMPLE_MODEL_DIR=$repository/deploy/models/classics-6m
readonly PROMPT='It was towards the end of a cold November that'
readonly TEXT=$repository/deploy/demo/sample.txt

report=()
note() {
  report+=("$*")
  printf '%s\n' "$*"
}
wanted() { [[ " ${stages[*]} " == *" $1 "* ]]; }
# stage NAME SECONDS COMMAND...: runs it with its output in NAME.log, and notes how it ended.
stage() {
  local name=$1 seconds=$2 begin=$SECONDS status
  shift 2
  timeout "$seconds" "$@" >"$logs/$name.log" 2>&1
  status=$?
  note "$name: exit $status after $((SECONDS - begin)) s"
  return "$status"
}

nvidia-smi --query-gpu=name,driver_version,memory.total,clocks.sm,clocks.max.sm --format=csv,noheader

if wanted tests; then
  stage host_test 30 "$bin/cuda_host_test" --gtest_brief=1
  stage tests 400 "$bin/cuda_backend_test"
  grep -E '^\[  (PASSED|FAILED|SKIPPED)' "$logs/tests.log" | sort -u | tail -n 40
  # The first lines of each failure.
  grep -E -A 4 'Failure$' "$logs/tests.log" | head -n 80
  stage tests-compress 400 "$bin/cuda_compress_test"
  grep -E '^\[  (PASSED|FAILED|SKIPPED)|Failure$' -A 4 "$logs/tests-compress.log" | head -n 60
  stage tests-real-model 120 "$bin/real_model_test" --gtest_filter='*OnAGpu*'
  grep -E '^\[  (PASSED|FAILED|SKIPPED)|Failure$' -A 4 "$logs/tests-real-model.log" | head -n 40
  # Products of one or two tokens as on devices that have no instructions to count bits.
  ULTRASKETCH_CUDA_FUSED_PRODUCTS=off stage tests-not-fused 120 "$bin/cuda_backend_test" \
    --gtest_brief=1 --gtest_filter='*fold*tokens1:*fold*tokens2:*Gated*tokens1:*Gated*tokens2:*Model*'
  tail -n 1 "$logs/tests-not-fused.log"
  # Uncompressed products as on devices without wgmma.
  ULTRASKETCH_CUDA_DENSE_WGMMA=off stage tests-dense-mma 120 "$bin/cuda_backend_test" \
    --gtest_brief=1 --gtest_filter='*dense*:*Logits*:*InputsOfAnySize*'
  tail -n 1 "$logs/tests-dense-mma.log"
  note "$(grep -cE '^\[       OK' "$logs/tests.log") tests passed," \
    "$(grep -cE '^\[  FAILED.*ms\)$' "$logs/tests.log") failed," \
    "$(grep -cE '^\[  SKIPPED.*ms\)$' "$logs/tests.log") skipped"
fi

# json KEY FILE: a number or string of a JSON file.
json() { python3 -c 'import json, sys; print(json.load(open(sys.argv[2]))[sys.argv[1]])' "$1" "$2" 2>/dev/null; }

if wanted models; then
  for model in "$repository"/deploy/models/* "$work"/models/*; do
    [[ -e $model/config.json ]] || continue
    name=$(basename "$model")
    for device in cpu cuda:0; do
      timeout 60 "$bin/ultrasketch" eval --json --model "$model" --text "$TEXT" --device "$device" \
        >"$logs/eval-$name-$device.json" 2>"$logs/eval-$name-$device.log"
      note "$name on $device: perplexity $(json perplexity "$logs/eval-$name-$device.json")," \
        "$(json tokens_per_second "$logs/eval-$name-$device.json") tokens/s"
      timeout 60 "$bin/ultrasketch" eval --json --model "$model" --text "$TEXT" --device "$device" \
        --kv-cache-type int8 >"$logs/eval-int8-$name-$device.json" \
        2>"$logs/eval-int8-$name-$device.log"
      note "$name on $device, int8 keys and values: perplexity" \
        "$(json perplexity "$logs/eval-int8-$name-$device.json")"
      timeout 60 "$bin/ultrasketch" generate --json --model "$model" --device "$device" \
        --prompt "$PROMPT" --max-tokens 64 --temperature 0 \
        >"$logs/text-$name-$device.json" 2>"$logs/text-$name-$device.log"
      timeout 60 "$bin/ultrasketch" generate --json --model "$model" --device "$device" \
        --prompt "$PROMPT" --max-tokens 64 --temperature 0.8 --top-p 0.9 --seed 7 \
        >"$logs/sampled-$name-$device.json" 2>"$logs/sampled-$name-$device.log"
    done
    for kind in text sampled; do
      on_cpu=$(json text "$logs/$kind-$name-cpu.json")
      on_cuda=$(json text "$logs/$kind-$name-cuda:0.json")
      if [[ -z $on_cpu || -z $on_cuda ]]; then
        note "$name, $kind: failed"
        cat "$logs/$kind-$name-cpu.log" "$logs/$kind-$name-cuda:0.log"
      elif [[ $on_cpu == "$on_cuda" ]]; then
        note "$name, $kind: same on both"
      else
        note "$name, $kind: differs"
        printf 'cpu:  %s\ncuda: %s\n' "$on_cpu" "$on_cuda"
      fi
    done
    tail -n 3 "$logs"/eval-"$name"-cuda:0.log
  done
fi

# The daemon with its defaults, both sample models on one device, asked by several clients at a time.
if wanted server; then
  "$bin/ultrasketchd" --model-repository "$repository/deploy/models" --listen 127.0.0.1:18001 \
    --metrics-listen 127.0.0.1:18002 >"$logs/server.log" 2>&1 &
  daemon=$!
  for ((i = 0; i < 100; ++i)); do
    "$bin/ultrasketch" health --target 127.0.0.1:18001 >/dev/null 2>&1 && break
    sleep 0.2
  done
  clients=()
  for model in classics-6m classics-20m-sketch; do
    for seed in 1 2 3 4; do
      for temperature in 0 0.8; do
        timeout 60 "$bin/ultrasketch" generate --json --target 127.0.0.1:18001 --model "$model" \
          --prompt "$PROMPT" --max-tokens 64 --temperature "$temperature" --seed "$seed" \
          >"$logs/served-$model-$temperature-$seed.json" \
          2>"$logs/served-$model-$temperature-$seed.log" &
        clients+=($!)
      done
    done
  done
  wait "${clients[@]}"
  curl -sS http://127.0.0.1:18002/metrics >"$logs/metrics.txt" ||
    python3 -c 'import sys, urllib.request as u; sys.stdout.write(u.urlopen(sys.argv[1]).read().decode())' \
      http://127.0.0.1:18002/metrics >"$logs/metrics.txt"
  kill "$daemon"
  wait "$daemon"
  note "server: exit $?"
  for model in classics-6m classics-20m-sketch; do
    # What a client gets alone, on the same device.
    timeout 60 "$bin/ultrasketch" generate --json --model "$repository/deploy/models/$model" \
      --device cuda --prompt "$PROMPT" --max-tokens 64 --temperature 0.8 --seed 3 \
      >"$logs/alone-$model.json" 2>"$logs/alone-$model.log"
    for seed in 2 3 4; do
      note "$model, seed $seed: greedy as seed 1: $(cmp -s \
        <(json text "$logs/served-$model-0-1.json") <(json text "$logs/served-$model-0-$seed.json") &&
        [[ -n $(json text "$logs/served-$model-0-$seed.json") ]] && printf yes || printf no)"
    done
    note "$model, sampled as alone: $(cmp -s <(json text "$logs/served-$model-0.8-3.json") \
      <(json text "$logs/alone-$model.json") && [[ -s $logs/alone-$model.json ]] && printf yes || printf no)"
  done
  grep -E 'model_loaded|error|warning' "$logs/server.log"
  grep -E '^ultrasketch_(memory_bytes|requests_total.*"OK"|generated_tokens_total|model_state)' \
    "$logs/metrics.txt" | grep -v ' 0$'
fi

# 100 times a model comes and goes while another one answers, both with int8 keys and values: the
# device's memory and the process's stay where they were.
if wanted cycles; then
  "$bin/ultrasketchd" --model-repository "$repository/deploy/models" --kv-cache-type int8 \
    --listen 127.0.0.1:18003 --metrics-listen 127.0.0.1:18004 >"$logs/cycles-server.log" 2>&1 &
  daemon=$!
  target=(--target 127.0.0.1:18003)
  for ((i = 0; i < 100; ++i)); do
    "$bin/ultrasketch" health "${target[@]}" >/dev/null 2>&1 && break
    sleep 0.2
  done
  ask() {
    timeout 60 "$bin/ultrasketch" generate --json "${target[@]}" --model "$1" --prompt "$PROMPT" \
      --max-tokens "$2" --temperature 0 --ignore-eos
  }
  held() {
    printf '%s MiB on the device, %s MiB resident' \
      "$(nvidia-smi --query-gpu=memory.used --format=csv,noheader,nounits)" \
      "$(awk '/VmRSS/ {print int($2 / 1024)}' "/proc/$daemon/status")"
  }
  ask classics-20m-sketch 64 >"$logs/cycles-first.json" 2>"$logs/cycles-first.log"
  touch "$logs/cycling"
  while [[ -e $logs/cycling ]]; do
    ask classics-20m-sketch 400 >>"$logs/cycles-beside.json" 2>>"$logs/cycles-beside.log" || echo failed
  done >"$logs/cycles-beside-failures.log" &
  beside=$!
  failed=0
  for ((i = 0; i <= 100; ++i)); do
    ((i % 25)) || note "after $i cycles: $(held)"
    ((i < 100)) || break
    timeout 60 "$bin/ultrasketch" models unload "${target[@]}" classics-6m >>"$logs/cycles.log" 2>&1 &&
      timeout 60 "$bin/ultrasketch" models load "${target[@]}" classics-6m >>"$logs/cycles.log" 2>&1 &&
      ask classics-6m 8 >"$logs/cycles-6m.json" 2>>"$logs/cycles.log" || ((++failed))
  done
  rm "$logs/cycling"
  wait "$beside"
  ask classics-20m-sketch 64 >"$logs/cycles-last.json" 2>"$logs/cycles-last.log"
  kill "$daemon"
  wait "$daemon"
  note "cycles: exit $?, $failed of 100 failed," \
    "$(wc -l <"$logs/cycles-beside-failures.log") of $(grep -c '"text"' "$logs/cycles-beside.json") answers beside them failed," \
    "text as before: $(cmp -s <(json text "$logs/cycles-first.json") <(json text "$logs/cycles-last.json") &&
      [[ -s $logs/cycles-last.json ]] && printf yes || printf no)"
  tail -n 3 "$logs/cycles.log"
fi

# bench NAME SECONDS ARGUMENT...: `ultrasketch bench` on the device, its JSON in NAME.json.
bench() {
  local name=$1 seconds=$2
  shift 2
  stage "$name" "$seconds" bash -c '"$0" bench "$@" --device cuda --json >"'"$logs/$name.json"'"' \
    "$bin/ultrasketch" "$@"
  cat "$logs/$name.log"
}

if wanted kernels; then
  readonly TOKENS=1,4,8,16,32,64,256,2048
  bench kernels-fold 120 kernel --preset llama-3.2-1b,llama-3.1-8b --codec fold --tokens "$TOKENS"
  bench kernels-absmaxmin 120 kernel --preset llama-3.2-1b,llama-3.1-8b --codec absmaxmin \
    --tokens "$TOKENS"
fi

if wanted steps; then
  # As compress stores the embedding and the head, and as the uncompressed model does.
  for table in int8 dense; do
    bench "steps-1b-$table" 60 step --preset llama-3.2-1b --table "$table"
    bench "steps-8b-$table" 120 step --preset llama-3.1-8b --table "$table"
  done
  bench steps-1b-absmaxmin 60 step --preset llama-3.2-1b --codec absmaxmin
  for type in fp16 int8; do
    bench "steps-1b-long-$type" 90 step --preset llama-3.2-1b --batch 1,4,16,64 --context 8192 \
      --prompt 8192 --kv-cache-type "$type"
  done
  ULTRASKETCH_CUDA_DEPENDENT_LAUNCH=off bench steps-1b-plain 60 step --preset llama-3.2-1b
fi

# Shapes that reach every kernel and are quick under a checker; each set in a process of its own,
# all at a time, since racecheck takes a hundred times as long as the tests alone.
readonly CHECKED=(
  '*fold_*x100_*tokens1:*fold_131x250_*tokens17:*fold_131x250_*tokens65:*fold_300x1000_*tokens130'
  '*Gated*48x250_*tokens1:*Gated*400x1000_*tokens2:*Gated*48x250_*tokens17:*NonFinite*131x250*tokens2'
  '*dense_131x250*tokens1:*dense_131x250*tokens17:*dense_131x250*tokens65:*Table*Logits*257x20*'
  '*Shapes*dense_300x6200*tokens1:*Shapes*dense_300x6200*tokens65:*Shapes*dense_9000x260*tokens130'
  '*ManyTokens/ProductTest*dense_3072x260*tokens1024'
  '*ManyTokens/ProductTest*dense_20000x260*tokens600'
  '*SketchProduct*131_250in*tokens1:*SketchProduct*131_250in*tokens17:*SketchProduct*131_250in*tokens65'
  '*AgreesWithTheCpu/decode:*AgreesWithTheCpu/mixed:*AgreesWithTheCpu/heads_of_10'
  '*AgreesWithTheCpu/decode_groups_of_twelve:*AgreesWithTheCpu/decode_groups_of_sixteen'
  '*AgreesWithTheCpu/many_decodes_of_64'
  '*AgreesWithTheCpu/many_decodes_of_128'
  '*AgreesWithTheCpu/decode_int8:*AgreesWithTheCpu/mixed_int8:*AgreesWithTheCpu/heads_of_10_int8'
  '*AgreesWithTheCpu/many_long_decodes_of_64_int8'
  '*AgreesWithTheCpu/decode_over_many_chunks*:*AgreesWithTheCpu/heads_of_256_int8'
  '*ManyRows*tokens1:*AFoldedModelAgreesWithTheCpu'
  '*AgreesWithTheCpu/head_norms_of_*:*AgreesWithTheCpu/no_rope_of_*'
  '*CudaTest.Samples*:*CudaTest.Ties*:*ClassesAndPlanes*'
)
for tool in memcheck racecheck; do
  wanted "$tool" || continue
  for index in "${!CHECKED[@]}"; do
    timeout 160 compute-sanitizer --tool "$tool" --print-limit 20 "$bin/cuda_backend_test" \
      --gtest_brief=1 --gtest_filter="${CHECKED[index]}" >"$logs/$tool-$index.log" 2>&1 &
  done
  wait
  for index in "${!CHECKED[@]}"; do
    log=$logs/$tool-$index.log
    note "$tool ${CHECKED[index]}: $(grep -oE '^\[  PASSED.*' "$log" | tail -n 1)" \
      "$(grep -oE '(ERROR|RACECHECK) SUMMARY.*' "$log" || printf 'not finished')"
    grep -E '^========= (Invalid|Error|Race|Warning)' -A 6 "$log" | head -n 20
  done
done

cp "$logs"/kernels-*.json "$logs"/steps-*.json "$out/" 2>/dev/null
tar -C "$logs" -czf "$out/logs.tar.gz" .
printf '\n--- report\n'
printf '%s\n' "${report[@]}" | tee "$out/report.txt"
