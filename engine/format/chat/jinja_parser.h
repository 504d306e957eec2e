// From tokens to a syntax tree.
#ifndef ULTRASKETCH_ENGINE_FORMAT_CHAT_JINJA_PARSER_H_
#define ULTRASKETCH_ENGINE_FORMAT_CHAT_JINJA_PARSER_H_

#include "absl/status/statusor.h"

#include "engine/format/chat/jinja_ast.h"
#include "engine/format/chat/jinja_lexer.h"

namespace ultrasketch::chat_internal {

// Nesting of expressions and of statements; longer templates are refused.
inline constexpr int kMaxExpressionHeight = 200;
inline constexpr int kMaxStatementDepth = 40;

// INVALID_ARGUMENT for a syntax error; UNIMPLEMENTED, by name, for each statement, filter, test,
// function and method that is not supported. Both say where.
absl::StatusOr<Body> ParseTemplate(const Source& source);

}  // namespace ultrasketch::chat_internal

#endif  // ULTRASKETCH_ENGINE_FORMAT_CHAT_JINJA_PARSER_H_
