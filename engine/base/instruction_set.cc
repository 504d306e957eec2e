#include "engine/base/instruction_set.h"

#include <cstdlib>

#include "absl/strings/str_cat.h"

#include "engine/base/check.h"
#include "engine/base/status.h"

namespace ultrasketch {
namespace {

constexpr const char* kNames[] = {"avx512", "avx2", "portable"};

// Null unless it is the name of one that this processor can run.
const char* RunnableName(std::string_view name) {
  for (const char* known : kNames) {
    if (name == known && HasInstructionSet(known)) return known;
  }
  return nullptr;
}

const char* BestName() {
  for (const char* name : kNames) {
    if (HasInstructionSet(name)) return name;
  }
  return "portable";
}

const char* Choose() {
  const char* wanted = std::getenv(kInstructionSetVariable);
  if (wanted == nullptr || *wanted == '\0') return BestName();
  const char* name = RunnableName(wanted);
  US_CHECK(name != nullptr && "ULTRASKETCH_INSTRUCTION_SET names one that can run here");
  return name;
}

}  // namespace

bool HasInstructionSet(std::string_view name) {
#if defined(__x86_64__)
  if (name == "avx512") {
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("fma");
  }
  if (name == "avx2") {
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
           __builtin_cpu_supports("f16c");
  }
#endif
  return name == "portable";
}

const char* InstructionSet() {
  static const char* const name = Choose();
  return name;
}

absl::Status CheckInstructionSet() {
  const char* wanted = std::getenv(kInstructionSetVariable);
  if (wanted == nullptr || *wanted == '\0' || RunnableName(wanted) != nullptr) {
    return absl::OkStatus();
  }
  std::string runnable;
  for (const char* name : kNames) {
    if (HasInstructionSet(name)) absl::StrAppend(&runnable, runnable.empty() ? "" : ", ", name);
  }
  return absl::InvalidArgumentError(absl::StrCat(kInstructionSetVariable,
                                                 ": expected what this processor can run (",
                                                 runnable, "), found ", Quoted(wanted)));
}

}  // namespace ultrasketch
