// The syntax tree of a Jinja template.
#ifndef ULTRASKETCH_ENGINE_FORMAT_CHAT_JINJA_AST_H_
#define ULTRASKETCH_ENGINE_FORMAT_CHAT_JINJA_AST_H_

#include <cstddef>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "engine/format/chat/jinja_builtins.h"
#include "engine/format/chat/jinja_value.h"

namespace ultrasketch::chat_internal {

struct Expression {
  enum class Kind {
    kConstant,  // value
    kName,      // text
    kList,      // operands; also kTuple
    kTuple,
    kDict,         // operands: key, value, key, value, ...
    kUnary,        // text: "not", "-", "+"
    kBinary,       // text: "and", "or", "+", "-", "*", "/", "//", "%", "**"
    kConcat,       // operands joined by ~
    kCompare,      // operands, comparisons between them
    kConditional,  // operands: then, condition, else (null: undefined)
    kAttribute,    // operands[0] . text
    kSubscript,    // operands[0] [ operands[1] ]
    kSlice,   // operands[0] [ operands[1] : operands[2] : operands[3] ], the last three or null
    kFilter,  // operands[0] | filter (arguments: the other operands, keywords)
    kTest,    // operands[0] is test (arguments: the other operands)
    kCall,    // text (operands, keywords): a function or macro
    kMethod,  // operands[0] . method (the other operands)
  };
  Kind kind;
  size_t offset = 0;  // in the source
  int height = 1;     // of the tree from here
  std::string text;
  Value value;
  FilterId filter{};
  TestId test{};
  MethodId method{};
  std::vector<std::unique_ptr<Expression>> operands;
  std::vector<std::string> comparisons;  // "==", ..., "in", "not in"
  std::vector<std::pair<std::string, std::unique_ptr<Expression>>> keywords;
};

struct Statement;
using Body = std::vector<std::unique_ptr<Statement>>;

struct Macro {
  std::string name;
  std::vector<std::string> parameters;
  std::vector<std::unique_ptr<Expression>> defaults;  // one a parameter; null where there is none
  Body body;
};

struct Statement {
  enum class Kind {
    kData,     // text
    kPrint,    // expression
    kIf,       // branches: condition (null: else) and body
    kFor,      // names in expression, kept where `condition` holds (or null): branches[0], or
               // branches[1] when nothing is left
    kSet,      // names = expression, or names[0].attribute = expression
    kCapture,  // names[0] = what branches[0] prints
    kMacro,
    kScope,  // branches[0], whose variables end with it
    kBreak,
    kContinue,
  };
  struct Branch {
    std::unique_ptr<Expression> condition;
    Body body;
  };
  Kind kind;
  size_t offset = 0;
  std::string text;
  std::vector<std::string> names;
  bool unpacks = false;   // several names, or one with a comma
  std::string attribute;  // empty when a variable is set
  std::unique_ptr<Expression> expression;
  std::unique_ptr<Expression> condition;
  std::vector<Branch> branches;
  Macro macro;
};

}  // namespace ultrasketch::chat_internal

#endif  // ULTRASKETCH_ENGINE_FORMAT_CHAT_JINJA_AST_H_
