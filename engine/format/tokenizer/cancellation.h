// How a long encoding learns that nobody waits for it any more.
#ifndef ULTRASKETCH_ENGINE_FORMAT_TOKENIZER_CANCELLATION_H_
#define ULTRASKETCH_ENGINE_FORMAT_TOKENIZER_CANCELLATION_H_

#include <atomic>
#include <cstddef>

#include "absl/status/status.h"

namespace ultrasketch::tokenizer_internal {

// Loops over symbols look this often: some tens of microseconds.
inline constexpr size_t kSymbolsBetweenChecks = 1024;

// OK, or CANCELLED when the flag (null: none) is set.
inline absl::Status CheckNotCancelled(const std::atomic<bool>* cancelled) {
  if (cancelled == nullptr || !cancelled->load(std::memory_order_relaxed)) return absl::OkStatus();
  return absl::CancelledError("the encoding was cancelled");
}

}  // namespace ultrasketch::tokenizer_internal

#endif  // ULTRASKETCH_ENGINE_FORMAT_TOKENIZER_CANCELLATION_H_
