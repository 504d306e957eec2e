// Renders a syntax tree.
#ifndef ULTRASKETCH_ENGINE_FORMAT_CHAT_JINJA_INTERPRETER_H_
#define ULTRASKETCH_ENGINE_FORMAT_CHAT_JINJA_INTERPRETER_H_

#include <ctime>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"

#include "engine/format/chat/jinja_ast.h"
#include "engine/format/chat/jinja_lexer.h"
#include "engine/format/chat/jinja_value.h"

namespace ultrasketch::chat_internal {

// What one rendering may take: evaluations, bytes of all values that it makes, and nesting of
// expressions, statements and macro calls.
inline constexpr int64_t kMaxSteps = 2'000'000;
inline constexpr size_t kMaxMadeBytes = size_t{1} << 28;
inline constexpr int kMaxDepth = 400;

// What `body`, parsed from `source`, prints. Errors say where in the template: INVALID_ARGUMENT for
// what jinja2 raises an exception at, the template's own raise_exception among it; UNIMPLEMENTED
// for what it can do and this cannot; RESOURCE_EXHAUSTED past the limits above.
absl::StatusOr<Text> Render(const Source& source, const Body& body,
                            std::vector<std::pair<std::string_view, Value>> variables,
                            const std::tm& now);

}  // namespace ultrasketch::chat_internal

#endif  // ULTRASKETCH_ENGINE_FORMAT_CHAT_JINJA_INTERPRETER_H_
