// Early returns for absl::Status and absl::StatusOr, and the few helpers that
// every part needs to compose an error message. Thread-safe: nothing here has
// state.
#ifndef ULTRASKETCH_ENGINE_BASE_STATUS_H_
#define ULTRASKETCH_ENGINE_BASE_STATUS_H_

#include <string_view>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

#include "engine/base/strings.h"

namespace ultrasketch {

// `status` with "<context>: " in front of its message, payloads kept. OK stays
// OK.
absl::Status Annotate(const absl::Status& status, std::string_view context);

// The status for a failed system call: errno mapped to a code, message "<what>:
// <strerror>".
absl::Status ErrnoStatus(int error_number, std::string_view what);

}  // namespace ultrasketch

#define US_CONCAT_INNER_(a, b) a##b
#define US_CONCAT_(a, b) US_CONCAT_INNER_(a, b)

// Returns the status of `expr` from the enclosing function unless it is OK.
#define US_RETURN_IF_ERROR(expr)                            \
  do {                                                      \
    if (absl::Status us_status = (expr); !us_status.ok()) { \
      return us_status;                                     \
    }                                                       \
  } while (false)

// `lhs = expr.value()`, or returns expr's status. `lhs` may declare a variable, and so cannot be in
// parentheses.
// NOLINTBEGIN(bugprone-macro-parentheses)
#define US_ASSIGN_OR_RETURN(lhs, expr) \
  US_ASSIGN_OR_RETURN_IMPL_(US_CONCAT_(us_status_or_, __LINE__), lhs, expr)
#define US_ASSIGN_OR_RETURN_IMPL_(tmp, lhs, expr) \
  auto tmp = (expr);                              \
  if (!tmp.ok()) return std::move(tmp).status();  \
  lhs = *std::move(tmp)
// NOLINTEND(bugprone-macro-parentheses)

#endif  // ULTRASKETCH_ENGINE_BASE_STATUS_H_
