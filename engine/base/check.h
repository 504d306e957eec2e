// US_CHECK: aborts with file, line and condition when a programmer's assumption
// does not hold. For bad input, files, requests and resources return
// absl::Status instead.
#ifndef ULTRASKETCH_ENGINE_BASE_CHECK_H_
#define ULTRASKETCH_ENGINE_BASE_CHECK_H_

namespace ultrasketch::internal {
[[noreturn]] void CheckFailed(const char* file, int line, const char* condition);
}  // namespace ultrasketch::internal

#define US_CHECK(condition)           \
  ((condition) ? static_cast<void>(0) \
               : ::ultrasketch::internal::CheckFailed(__FILE__, __LINE__, #condition))

// US_CHECK in debug builds only, for inner loops.
#ifdef NDEBUG
#define US_DCHECK(condition) static_cast<void>(0)
#else
#define US_DCHECK(condition) US_CHECK(condition)
#endif

#endif  // ULTRASKETCH_ENGINE_BASE_CHECK_H_
