// The adapter between std::string_view, which this code base uses everywhere,
// and absl::string_view, which is a class of its own in Debian's Abseil. Use
// `A(view)` where an Abseil function wants one.
#ifndef ULTRASKETCH_ENGINE_BASE_STRINGS_H_
#define ULTRASKETCH_ENGINE_BASE_STRINGS_H_

#include <cstddef>
#include <string>
#include <string_view>

#include "absl/strings/string_view.h"

namespace ultrasketch {

// No copy: the result is valid as long as what `view` points at.
inline absl::string_view A(std::string_view view) {
  return absl::string_view(view.data(), view.size());
}
inline std::string_view S(absl::string_view view) {
  return std::string_view(view.data(), view.size());
}

// True when `bytes` is well-formed UTF-8 (RFC 3629: no surrogates, no overlong
// forms).
bool IsValidUtf8(std::string_view bytes);

// `text` in double quotes for an error message: control characters and
// ill-formed UTF-8 escaped as \xNN, cut after `max_bytes` with "..." in its
// place.
std::string Quoted(std::string_view text, size_t max_bytes = 80);

// Bytes for people: "512 B", "12.1 MB", "1.24 GB" (powers of ten).
std::string HumanBytes(double bytes);

}  // namespace ultrasketch

#endif  // ULTRASKETCH_ENGINE_BASE_STRINGS_H_
