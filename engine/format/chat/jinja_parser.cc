#include "engine/format/chat/jinja_parser.h"

#include <algorithm>
#include <initializer_list>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_set.h"
#include "absl/status/status.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"

#include "engine/base/status.h"

namespace ultrasketch::chat_internal {
namespace {

using ExpressionPtr = std::unique_ptr<Expression>;
using StatementPtr = std::unique_ptr<Statement>;

bool IsOneOf(std::string_view text, std::initializer_list<std::string_view> choices) {
  return std::find(choices.begin(), choices.end(), text) != choices.end();
}

void UpdateHeight(Expression* expression) {
  for (const ExpressionPtr& operand : expression->operands) {
    if (operand != nullptr) expression->height = std::max(expression->height, operand->height + 1);
  }
  for (const auto& keyword : expression->keywords) {
    expression->height = std::max(expression->height, keyword.second->height + 1);
  }
}

class Parser {
 public:
  Parser(const Source& source, std::vector<Token> tokens)
      : source_(source), tokens_(std::move(tokens)) {}

  absl::StatusOr<Body> Run() {
    US_ASSIGN_OR_RETURN(Body body, ParseBody({}));
    US_RETURN_IF_ERROR(CheckNames());
    return body;
  }

 private:
  // A use of a name that can be judged only when all of the template is known.
  struct Use {
    std::string name;
    size_t offset;
  };

  // --- tokens

  const Token& Now() const { return tokens_[next_]; }
  const Token& After() const { return tokens_[std::min(next_ + 1, tokens_.size() - 1)]; }
  Token Take() { return tokens_[next_ + 1 < tokens_.size() ? next_++ : next_]; }
  bool Is(Token::Kind kind) const { return Now().kind == kind; }
  bool IsOperator(std::string_view text) const {
    return Is(Token::Kind::kOperator) && Now().text == text;
  }
  bool IsName(std::string_view text) const { return Is(Token::Kind::kName) && Now().text == text; }
  bool AcceptOperator(std::string_view text) {
    const bool found = IsOperator(text);
    if (found) Take();
    return found;
  }
  bool AcceptName(std::string_view text) {
    const bool found = IsName(text);
    if (found) Take();
    return found;
  }

  absl::Status ErrorAt(size_t offset, std::string_view message) const {
    return source_.Error(absl::StatusCode::kInvalidArgument, offset, message);
  }
  absl::Status UnsupportedAt(size_t offset, std::string_view what) const {
    return source_.Error(absl::StatusCode::kUnimplemented, offset,
                         absl::StrCat(A(what), " is not supported"));
  }
  absl::Status Expected(std::string_view what) const {
    const Token& token = Now();
    const std::string found = token.kind == Token::Kind::kEnd        ? "the end of the template"
                              : token.kind == Token::Kind::kBlockEnd ? "\"%}\""
                              : token.kind == Token::Kind::kPrintEnd ? "\"}}\""
                              : token.kind == Token::Kind::kString   ? "a string"
                                                                     : Quoted(token.text);
    return ErrorAt(token.offset, absl::StrCat("expected ", A(what), ", found ", found));
  }
  absl::Status ExpectOperator(std::string_view text) {
    if (AcceptOperator(text)) return absl::OkStatus();
    return Expected(Quoted(text));
  }
  absl::StatusOr<std::string> ExpectName() {
    if (!Is(Token::Kind::kName)) return Expected("a name");
    return Take().text;
  }
  absl::Status ExpectBlockEnd() {
    if (!Is(Token::Kind::kBlockEnd)) return Expected("\"%}\"");
    Take();
    return absl::OkStatus();
  }

  // --- statements

  // Statements up to the first of the tags in `ends`, which stays: its "{%" is taken, its name is
  // not. No ends: up to the end of the template.
  absl::StatusOr<Body> ParseBody(std::initializer_list<std::string_view> ends) {
    if (++statement_depth_ > kMaxStatementDepth) {
      return ErrorAt(Now().offset,
                     absl::StrCat("statements are nested deeper than ", kMaxStatementDepth));
    }
    const size_t begin = Now().offset;
    Body body;
    while (true) {
      if (Is(Token::Kind::kEnd)) {
        if (ends.size() == 0) break;
        return ErrorAt(begin, absl::StrCat("no ", Quoted(*(ends.end() - 1)), " for this block"));
      }
      if (Is(Token::Kind::kData)) {
        Token data = Take();
        auto statement = NewStatement(Statement::Kind::kData, data.offset);
        statement->text = std::move(data.text);
        body.push_back(std::move(statement));
      } else if (Is(Token::Kind::kPrintBegin)) {
        auto statement = NewStatement(Statement::Kind::kPrint, Take().offset);
        US_ASSIGN_OR_RETURN(statement->expression, ParseTuple(true, {}));
        if (!Is(Token::Kind::kPrintEnd)) return Expected("\"}}\"");
        Take();
        body.push_back(std::move(statement));
      } else {
        Take();  // {%
        if (Is(Token::Kind::kName) && IsOneOf(Now().text, ends)) break;
        US_ASSIGN_OR_RETURN(StatementPtr statement, ParseStatement());
        body.push_back(std::move(statement));
      }
    }
    --statement_depth_;
    return body;
  }

  // The body of a tag, from the tag's end to `end`, which is taken with its "%}".
  absl::StatusOr<Body> ParseBlock(std::string_view end) {
    US_RETURN_IF_ERROR(BeginBlock());
    US_ASSIGN_OR_RETURN(Body body, ParseBody({end}));
    Take();
    US_RETURN_IF_ERROR(ExpectBlockEnd());
    return body;
  }

  absl::Status BeginBlock() {
    AcceptOperator(":");
    return ExpectBlockEnd();
  }

  static StatementPtr NewStatement(Statement::Kind kind, size_t offset) {
    auto statement = std::make_unique<Statement>();
    statement->kind = kind;
    statement->offset = offset;
    return statement;
  }

  absl::StatusOr<StatementPtr> ParseStatement() {
    const size_t offset = Now().offset;
    US_ASSIGN_OR_RETURN(const std::string name, ExpectName());
    if (name == "if") return ParseIf(offset);
    if (name == "for") return ParseFor(offset);
    if (name == "set") return ParseSet(offset);
    if (name == "macro") return ParseMacro(offset);
    if (name == "generation") {
      auto statement = NewStatement(Statement::Kind::kScope, offset);
      US_ASSIGN_OR_RETURN(Body body, ParseInnerBlock("endgeneration", 0));
      statement->branches.push_back({nullptr, std::move(body)});
      return statement;
    }
    if (name == "break" || name == "continue") {
      if (loop_depth_ == 0) {
        return ErrorAt(offset, absl::StrCat(Quoted(name), " is not within a loop"));
      }
      US_RETURN_IF_ERROR(ExpectBlockEnd());
      return NewStatement(name == "break" ? Statement::Kind::kBreak : Statement::Kind::kContinue,
                          offset);
    }
    return UnsupportedAt(offset, absl::StrCat("statement ", Quoted(name)));
  }

  // A block with variables of its own, within `loop_depth` loops of its own.
  absl::StatusOr<Body> ParseInnerBlock(std::string_view end, int loop_depth) {
    const int outer_loop_depth = std::exchange(loop_depth_, loop_depth);
    ++scope_depth_;
    US_ASSIGN_OR_RETURN(Body body, ParseBlock(end));
    --scope_depth_;
    loop_depth_ = outer_loop_depth;
    return body;
  }

  absl::StatusOr<StatementPtr> ParseIf(size_t offset) {
    auto statement = NewStatement(Statement::Kind::kIf, offset);
    bool is_else = false;
    while (true) {
      Statement::Branch branch;
      if (!is_else) {
        US_ASSIGN_OR_RETURN(branch.condition, ParseTuple(false, {}));
      }
      US_RETURN_IF_ERROR(BeginBlock());
      US_ASSIGN_OR_RETURN(branch.body,
                          is_else ? ParseBody({"endif"}) : ParseBody({"elif", "else", "endif"}));
      statement->branches.push_back(std::move(branch));
      const std::string tag = Take().text;
      if (tag == "endif") break;
      is_else = tag == "else";
    }
    US_RETURN_IF_ERROR(ExpectBlockEnd());
    return statement;
  }

  absl::StatusOr<StatementPtr> ParseFor(size_t offset) {
    auto statement = NewStatement(Statement::Kind::kFor, offset);
    US_RETURN_IF_ERROR(ParseTargets(statement.get(), "in"));
    if (!AcceptName("in")) return Expected("\"in\"");
    US_ASSIGN_OR_RETURN(statement->expression, ParseTuple(false, {"recursive"}));
    if (AcceptName("if")) {
      const size_t first_use = reads_.size();
      US_ASSIGN_OR_RETURN(statement->condition, ParseExpression(true));
      filter_reads_.insert(filter_reads_.end(), reads_.begin() + static_cast<ptrdiff_t>(first_use),
                           reads_.end());
    }
    if (IsName("recursive")) return UnsupportedAt(Now().offset, "a recursive loop");
    US_RETURN_IF_ERROR(BeginBlock());
    ++loop_depth_;
    ++scope_depth_;
    US_ASSIGN_OR_RETURN(Body body, ParseBody({"else", "endfor"}));
    --scope_depth_;
    --loop_depth_;
    statement->branches.push_back({nullptr, std::move(body)});
    if (Take().text == "else") {
      US_ASSIGN_OR_RETURN(Body otherwise, ParseBlockInScope("endfor"));
      statement->branches.push_back({nullptr, std::move(otherwise)});
      return statement;
    }
    US_RETURN_IF_ERROR(ExpectBlockEnd());
    return statement;
  }

  // As ParseInnerBlock, but within the loops around it.
  absl::StatusOr<Body> ParseBlockInScope(std::string_view end) {
    return ParseInnerBlock(end, loop_depth_);
  }

  // One name or several; "(a, b)" and "a, b" are the same.
  absl::Status ParseTargets(Statement* statement, std::string_view end) {
    const bool has_parentheses = AcceptOperator("(");
    do {
      if (statement->unpacks && (IsName(end) || IsOperator(end) || IsOperator(")"))) break;
      const size_t offset = Now().offset;
      US_ASSIGN_OR_RETURN(std::string name, ExpectName());
      US_RETURN_IF_ERROR(CheckTarget(name, offset));
      assigned_.insert(name);
      statement->names.push_back(std::move(name));
      statement->unpacks = statement->unpacks || IsOperator(",");
    } while (AcceptOperator(","));
    return has_parentheses ? ExpectOperator(")") : absl::OkStatus();
  }

  absl::Status CheckTarget(const std::string& name, size_t offset) const {
    if (IsOneOf(name, {"true", "false", "none", "True", "False", "None", "loop", "self", "super",
                       "caller", "varargs", "kwargs"})) {
      return UnsupportedAt(offset, absl::StrCat("setting ", Quoted(name)));
    }
    return absl::OkStatus();
  }

  absl::StatusOr<StatementPtr> ParseSet(size_t offset) {
    auto statement = NewStatement(Statement::Kind::kSet, offset);
    if (Is(Token::Kind::kName) && After().kind == Token::Kind::kOperator && After().text == ".") {
      statement->names.push_back(Take().text);
      Take();
      const size_t attribute_offset = Now().offset;
      US_ASSIGN_OR_RETURN(statement->attribute, ExpectName());
      if (statement->attribute.starts_with('_')) {
        return UnsupportedAt(attribute_offset,
                             absl::StrCat("attribute ", Quoted(statement->attribute)));
      }
      namespaces_.insert(statement->names[0]);
    } else {
      US_RETURN_IF_ERROR(ParseTargets(statement.get(), "="));
    }
    if (AcceptOperator("=")) {
      US_ASSIGN_OR_RETURN(statement->expression, ParseTuple(true, {}));
      US_RETURN_IF_ERROR(ExpectBlockEnd());
      return statement;
    }
    if (IsOperator("|")) return UnsupportedAt(Now().offset, "a filter of a set block");
    if (statement->unpacks || !statement->attribute.empty()) return Expected("\"=\"");
    statement->kind = Statement::Kind::kCapture;
    US_ASSIGN_OR_RETURN(Body body, ParseBlockInScope("endset"));
    statement->branches.push_back({nullptr, std::move(body)});
    return statement;
  }

  absl::StatusOr<StatementPtr> ParseMacro(size_t offset) {
    if (scope_depth_ > 0) return UnsupportedAt(offset, "a macro within a loop or another block");
    auto statement = NewStatement(Statement::Kind::kMacro, offset);
    Macro& macro = statement->macro;
    US_ASSIGN_OR_RETURN(macro.name, ExpectName());
    US_RETURN_IF_ERROR(CheckTarget(macro.name, offset));
    US_RETURN_IF_ERROR(ExpectOperator("("));
    while (!IsOperator(")")) {
      if (!macro.parameters.empty()) US_RETURN_IF_ERROR(ExpectOperator(","));
      const size_t parameter_offset = Now().offset;
      US_ASSIGN_OR_RETURN(std::string parameter, ExpectName());
      US_RETURN_IF_ERROR(CheckTarget(parameter, parameter_offset));
      assigned_.insert(parameter);
      ExpressionPtr otherwise;
      if (AcceptOperator("=")) {
        US_ASSIGN_OR_RETURN(otherwise, ParseExpression(true));
      } else if (!macro.defaults.empty() && macro.defaults.back() != nullptr) {
        return ErrorAt(parameter_offset, "a parameter without default follows one with a default");
      }
      macro.parameters.push_back(std::move(parameter));
      macro.defaults.push_back(std::move(otherwise));
    }
    Take();
    macros_.insert(macro.name);
    US_ASSIGN_OR_RETURN(macro.body, ParseInnerBlock("endmacro", 0));
    return statement;
  }

  // --- expressions

  absl::StatusOr<ExpressionPtr> Finish(ExpressionPtr expression) const {
    UpdateHeight(expression.get());
    if (expression->height > kMaxExpressionHeight) {
      return ErrorAt(expression->offset,
                     absl::StrCat("expressions are nested deeper than ", kMaxExpressionHeight));
    }
    return expression;
  }

  static ExpressionPtr New(Expression::Kind kind, size_t offset) {
    auto expression = std::make_unique<Expression>();
    expression->kind = kind;
    expression->offset = offset;
    return expression;
  }

  absl::StatusOr<ExpressionPtr> NewBinary(Expression::Kind kind, const Token& op,
                                          ExpressionPtr left, ExpressionPtr right) const {
    ExpressionPtr node = New(kind, op.offset);
    node->text = op.text;
    node->operands.push_back(std::move(left));
    node->operands.push_back(std::move(right));
    return Finish(std::move(node));
  }

  static absl::StatusOr<ExpressionPtr> NewConstant(size_t offset, Value value) {
    ExpressionPtr node = New(Expression::Kind::kConstant, offset);
    node->value = std::move(value);
    return node;
  }

  bool AtTupleEnd(std::initializer_list<std::string_view> ends) const {
    return Is(Token::Kind::kPrintEnd) || Is(Token::Kind::kBlockEnd) || IsOperator(")") ||
           (Is(Token::Kind::kName) && IsOneOf(Now().text, ends));
  }

  // An expression, or a tuple of them without parentheses.
  absl::StatusOr<ExpressionPtr> ParseTuple(bool with_conditional,
                                           std::initializer_list<std::string_view> ends) {
    const size_t offset = Now().offset;
    US_ASSIGN_OR_RETURN(ExpressionPtr first, ParseExpression(with_conditional));
    if (!IsOperator(",")) return first;
    ExpressionPtr tuple = New(Expression::Kind::kTuple, offset);
    tuple->operands.push_back(std::move(first));
    while (AcceptOperator(",") && !AtTupleEnd(ends)) {
      US_ASSIGN_OR_RETURN(ExpressionPtr item, ParseExpression(with_conditional));
      tuple->operands.push_back(std::move(item));
    }
    return Finish(std::move(tuple));
  }

  absl::StatusOr<ExpressionPtr> ParseExpression(bool with_conditional) {
    US_RETURN_IF_ERROR(Descend());
    US_ASSIGN_OR_RETURN(ExpressionPtr node, ParseOr());
    while (with_conditional && IsName("if")) {
      ExpressionPtr conditional = New(Expression::Kind::kConditional, Take().offset);
      conditional->operands.push_back(std::move(node));
      US_ASSIGN_OR_RETURN(ExpressionPtr condition, ParseOr());
      ExpressionPtr otherwise;
      if (AcceptName("else")) {
        US_ASSIGN_OR_RETURN(otherwise, ParseExpression(true));
      }
      conditional->operands.push_back(std::move(condition));
      conditional->operands.push_back(std::move(otherwise));
      US_ASSIGN_OR_RETURN(node, Finish(std::move(conditional)));
    }
    --expression_depth_;
    return node;
  }

  absl::Status Descend() {
    if (++expression_depth_ <= kMaxExpressionHeight / 2) return absl::OkStatus();
    return ErrorAt(Now().offset,
                   absl::StrCat("expressions are nested deeper than ", kMaxExpressionHeight / 2));
  }

  absl::StatusOr<ExpressionPtr> ParseOr() {
    US_ASSIGN_OR_RETURN(ExpressionPtr left, ParseAnd());
    while (IsName("or")) {
      const Token op = Take();
      US_ASSIGN_OR_RETURN(ExpressionPtr right, ParseAnd());
      US_ASSIGN_OR_RETURN(
          left, NewBinary(Expression::Kind::kBinary, op, std::move(left), std::move(right)));
    }
    return left;
  }

  absl::StatusOr<ExpressionPtr> ParseAnd() {
    US_ASSIGN_OR_RETURN(ExpressionPtr left, ParseNot());
    while (IsName("and")) {
      const Token op = Take();
      US_ASSIGN_OR_RETURN(ExpressionPtr right, ParseNot());
      US_ASSIGN_OR_RETURN(
          left, NewBinary(Expression::Kind::kBinary, op, std::move(left), std::move(right)));
    }
    return left;
  }

  absl::StatusOr<ExpressionPtr> ParseNot() {
    if (!IsName("not")) return ParseCompare();
    US_RETURN_IF_ERROR(Descend());
    const Token op = Take();
    ExpressionPtr node = New(Expression::Kind::kUnary, op.offset);
    node->text = op.text;
    US_ASSIGN_OR_RETURN(ExpressionPtr operand, ParseNot());
    node->operands.push_back(std::move(operand));
    --expression_depth_;
    return Finish(std::move(node));
  }

  absl::StatusOr<ExpressionPtr> ParseCompare() {
    US_ASSIGN_OR_RETURN(ExpressionPtr first, ParseSum());
    ExpressionPtr node = New(Expression::Kind::kCompare, first->offset);
    node->operands.push_back(std::move(first));
    while (true) {
      std::string comparison;
      if (Is(Token::Kind::kOperator) && IsOneOf(Now().text, {"==", "!=", "<", "<=", ">", ">="})) {
        comparison = Take().text;
      } else if (AcceptName("in")) {
        comparison = "in";
      } else if (IsName("not") && After().kind == Token::Kind::kName && After().text == "in") {
        Take();
        Take();
        comparison = "not in";
      } else {
        break;
      }
      node->comparisons.push_back(std::move(comparison));
      US_ASSIGN_OR_RETURN(ExpressionPtr operand, ParseSum());
      node->operands.push_back(std::move(operand));
    }
    if (node->comparisons.empty()) return std::move(node->operands[0]);
    return Finish(std::move(node));
  }

  absl::StatusOr<ExpressionPtr> ParseSum() {
    US_ASSIGN_OR_RETURN(ExpressionPtr left, ParseConcat());
    while (IsOperator("+") || IsOperator("-")) {
      const Token op = Take();
      US_ASSIGN_OR_RETURN(ExpressionPtr right, ParseConcat());
      US_ASSIGN_OR_RETURN(
          left, NewBinary(Expression::Kind::kBinary, op, std::move(left), std::move(right)));
    }
    return left;
  }

  absl::StatusOr<ExpressionPtr> ParseConcat() {
    US_ASSIGN_OR_RETURN(ExpressionPtr first, ParseProduct());
    if (!IsOperator("~")) return first;
    ExpressionPtr node = New(Expression::Kind::kConcat, Now().offset);
    node->operands.push_back(std::move(first));
    while (AcceptOperator("~")) {
      US_ASSIGN_OR_RETURN(ExpressionPtr operand, ParseProduct());
      node->operands.push_back(std::move(operand));
    }
    return Finish(std::move(node));
  }

  absl::StatusOr<ExpressionPtr> ParseProduct() {
    US_ASSIGN_OR_RETURN(ExpressionPtr left, ParsePower());
    while (Is(Token::Kind::kOperator) && IsOneOf(Now().text, {"*", "/", "//", "%"})) {
      const Token op = Take();
      US_ASSIGN_OR_RETURN(ExpressionPtr right, ParsePower());
      US_ASSIGN_OR_RETURN(
          left, NewBinary(Expression::Kind::kBinary, op, std::move(left), std::move(right)));
    }
    return left;
  }

  absl::StatusOr<ExpressionPtr> ParsePower() {
    US_ASSIGN_OR_RETURN(ExpressionPtr node, ParseUnary(true));
    if (IsOperator("**")) return UnsupportedAt(Now().offset, "operator \"**\"");
    return node;
  }

  absl::StatusOr<ExpressionPtr> ParseUnary(bool with_filters) {
    ExpressionPtr node;
    if (IsOperator("-") || IsOperator("+")) {
      US_RETURN_IF_ERROR(Descend());
      const Token op = Take();
      node = New(Expression::Kind::kUnary, op.offset);
      node->text = op.text;
      US_ASSIGN_OR_RETURN(ExpressionPtr operand, ParseUnary(false));
      node->operands.push_back(std::move(operand));
      US_ASSIGN_OR_RETURN(node, Finish(std::move(node)));
      --expression_depth_;
    } else {
      US_ASSIGN_OR_RETURN(node, ParsePrimary());
    }
    US_ASSIGN_OR_RETURN(node, ParsePostfix(std::move(node)));
    while (with_filters) {
      if (AcceptOperator("|")) {
        US_ASSIGN_OR_RETURN(node, ParseFilter(std::move(node)));
      } else if (AcceptName("is")) {
        US_ASSIGN_OR_RETURN(node, ParseTest(std::move(node)));
      } else if (IsOperator("(")) {
        US_ASSIGN_OR_RETURN(node, ParseCall(std::move(node)));
      } else {
        break;
      }
    }
    return node;
  }

  absl::StatusOr<ExpressionPtr> ParsePrimary() {
    const Token token = Take();
    switch (token.kind) {
      case Token::Kind::kName:
        return ParseName(token);
      case Token::Kind::kString: {
        std::string text = token.text;
        while (Is(Token::Kind::kString)) text += Take().text;
        return NewConstant(token.offset, MakeLiteral(std::move(text)));
      }
      case Token::Kind::kInteger:
        return NewConstant(token.offset, token.integer);
      case Token::Kind::kFloat:
        return NewConstant(token.offset, token.real);
      case Token::Kind::kOperator:
        if (token.text == "(") return ParseParentheses(token.offset);
        if (token.text == "[") return ParseList(token.offset);
        if (token.text == "{") return ParseDict(token.offset);
        break;
      default:
        break;
    }
    if (token.kind != Token::Kind::kEnd) --next_;
    return Expected("an expression");
  }

  absl::StatusOr<ExpressionPtr> ParseName(const Token& token) {
    if (token.text == "true" || token.text == "True") return NewConstant(token.offset, true);
    if (token.text == "false" || token.text == "False") return NewConstant(token.offset, false);
    if (token.text == "none" || token.text == "None") return NewConstant(token.offset, None());
    ExpressionPtr node = New(Expression::Kind::kName, token.offset);
    node->text = token.text;
    reads_.push_back({token.text, token.offset});
    return node;
  }

  absl::StatusOr<ExpressionPtr> ParseParentheses(size_t offset) {
    if (AcceptOperator(")")) return New(Expression::Kind::kTuple, offset);
    US_ASSIGN_OR_RETURN(ExpressionPtr node, ParseTuple(true, {}));
    US_RETURN_IF_ERROR(ExpectOperator(")"));
    return node;
  }

  absl::StatusOr<ExpressionPtr> ParseList(size_t offset) {
    ExpressionPtr list = New(Expression::Kind::kList, offset);
    while (!AcceptOperator("]")) {
      if (!list->operands.empty()) {
        US_RETURN_IF_ERROR(ExpectOperator(","));
        if (AcceptOperator("]")) break;
      }
      US_ASSIGN_OR_RETURN(ExpressionPtr item, ParseExpression(true));
      list->operands.push_back(std::move(item));
    }
    return Finish(std::move(list));
  }

  absl::StatusOr<ExpressionPtr> ParseDict(size_t offset) {
    ExpressionPtr dict = New(Expression::Kind::kDict, offset);
    while (!AcceptOperator("}")) {
      if (!dict->operands.empty()) {
        US_RETURN_IF_ERROR(ExpectOperator(","));
        if (AcceptOperator("}")) break;
      }
      US_ASSIGN_OR_RETURN(ExpressionPtr key, ParseExpression(true));
      US_RETURN_IF_ERROR(ExpectOperator(":"));
      US_ASSIGN_OR_RETURN(ExpressionPtr value, ParseExpression(true));
      dict->operands.push_back(std::move(key));
      dict->operands.push_back(std::move(value));
    }
    return Finish(std::move(dict));
  }

  absl::StatusOr<ExpressionPtr> ParsePostfix(ExpressionPtr node) {
    while (true) {
      if (IsOperator(".")) {
        US_ASSIGN_OR_RETURN(node, ParseAttribute(std::move(node)));
      } else if (IsOperator("[")) {
        US_ASSIGN_OR_RETURN(node, ParseSubscript(std::move(node)));
      } else if (IsOperator("(")) {
        US_ASSIGN_OR_RETURN(node, ParseCall(std::move(node)));
      } else {
        return node;
      }
    }
  }

  absl::StatusOr<ExpressionPtr> ParseAttribute(ExpressionPtr object) {
    Take();
    const Token token = Take();
    if (token.kind == Token::Kind::kInteger) {
      ExpressionPtr node = New(Expression::Kind::kSubscript, token.offset);
      node->operands.push_back(std::move(object));
      US_ASSIGN_OR_RETURN(ExpressionPtr index, NewConstant(token.offset, token.integer));
      node->operands.push_back(std::move(index));
      return Finish(std::move(node));
    }
    if (token.kind != Token::Kind::kName) {
      if (token.kind != Token::Kind::kEnd) --next_;
      return Expected("the name of an attribute");
    }
    if (token.text.starts_with('_')) {
      return UnsupportedAt(token.offset, absl::StrCat("attribute ", Quoted(token.text)));
    }
    ExpressionPtr node = New(Expression::Kind::kAttribute, token.offset);
    node->text = token.text;
    node->operands.push_back(std::move(object));
    return Finish(std::move(node));
  }

  absl::StatusOr<ExpressionPtr> ParseSubscript(ExpressionPtr object) {
    ExpressionPtr node = New(Expression::Kind::kSubscript, Take().offset);
    node->operands.push_back(std::move(object));
    for (int part = 0; part < 3; ++part) {
      ExpressionPtr bound;
      if (!IsOperator(":") && !IsOperator("]")) {
        US_ASSIGN_OR_RETURN(bound, ParseExpression(true));
      } else if (part == 0 && IsOperator("]")) {
        return Expected("an expression");
      }
      node->operands.push_back(std::move(bound));
      if (part == 2 || !AcceptOperator(":")) break;
      node->kind = Expression::Kind::kSlice;
    }
    if (node->kind == Expression::Kind::kSlice) node->operands.resize(4);
    if (IsOperator(",")) return UnsupportedAt(Now().offset, "a subscript of several parts");
    US_RETURN_IF_ERROR(ExpectOperator("]"));
    return Finish(std::move(node));
  }

  // "(" arguments ")".
  absl::Status ParseArguments(Expression* node) {
    US_RETURN_IF_ERROR(ExpectOperator("("));
    bool is_first = true;
    while (!AcceptOperator(")")) {
      if (!std::exchange(is_first, false)) {
        US_RETURN_IF_ERROR(ExpectOperator(","));
        if (AcceptOperator(")")) break;
      }
      if (IsOperator("*") || IsOperator("**")) {
        return UnsupportedAt(Now().offset, absl::StrCat("argument ", Quoted(Now().text)));
      }
      const bool is_keyword =
          Is(Token::Kind::kName) && After().kind == Token::Kind::kOperator && After().text == "=";
      if (is_keyword) {
        const size_t offset = Now().offset;
        std::string keyword = Take().text;
        Take();
        for (const auto& other : node->keywords) {
          if (other.first == keyword) {
            return ErrorAt(offset, absl::StrCat("argument ", Quoted(keyword), " is given twice"));
          }
        }
        US_ASSIGN_OR_RETURN(ExpressionPtr value, ParseExpression(true));
        node->keywords.emplace_back(std::move(keyword), std::move(value));
      } else {
        const size_t offset = Now().offset;
        if (!node->keywords.empty()) {
          return ErrorAt(offset, "a positional argument follows a keyword argument");
        }
        US_ASSIGN_OR_RETURN(ExpressionPtr value, ParseExpression(true));
        node->operands.push_back(std::move(value));
      }
    }
    return absl::OkStatus();
  }

  // `num_implicit`: operands that are no arguments.
  template <typename Id>
  absl::Status CheckArguments(const Signature<Id>& signature, std::string_view kind,
                              const Expression& node, size_t num_implicit) const {
    const std::string name = absl::StrCat(A(kind), " ", Quoted(signature.name));
    const size_t num_arguments = node.operands.size() - num_implicit;
    if (num_arguments < signature.min_arguments || num_arguments > signature.max_arguments) {
      return UnsupportedAt(node.offset,
                           absl::StrCat(name, " with ", num_arguments, " positional arguments"));
    }
    for (const auto& keyword : node.keywords) {
      if (signature.keywords != "*" && signature.keywords.find(absl::StrCat(
                                           " ", keyword.first, " ")) == std::string_view::npos) {
        return UnsupportedAt(node.offset,
                             absl::StrCat(name, " with argument ", Quoted(keyword.first)));
      }
    }
    return absl::OkStatus();
  }

  absl::StatusOr<ExpressionPtr> ParseCall(ExpressionPtr callee) {
    const size_t offset = callee->offset;
    if (callee->kind == Expression::Kind::kName) {
      reads_.pop_back();
      ExpressionPtr node = New(Expression::Kind::kCall, offset);
      node->text = callee->text;
      US_RETURN_IF_ERROR(ParseArguments(node.get()));
      if (const Signature<FunctionId>* function = FindFunction(node->text)) {
        US_RETURN_IF_ERROR(CheckArguments(*function, "function", *node, 0));
      }
      calls_.push_back({node->text, offset});
      return Finish(std::move(node));
    }
    if (callee->kind == Expression::Kind::kAttribute) {
      const Signature<MethodId>* method = FindMethod(callee->text);
      if (method == nullptr) {
        return UnsupportedAt(offset, absl::StrCat("method ", Quoted(callee->text)));
      }
      ExpressionPtr node = New(Expression::Kind::kMethod, offset);
      node->method = method->id;
      node->text = callee->text;
      node->operands.push_back(std::move(callee->operands[0]));
      US_RETURN_IF_ERROR(ParseArguments(node.get()));
      US_RETURN_IF_ERROR(CheckArguments(*method, "method", *node, 1));
      return Finish(std::move(node));
    }
    return UnsupportedAt(Now().offset, "calling the value of an expression");
  }

  absl::StatusOr<ExpressionPtr> ParseFilter(ExpressionPtr value) {
    const size_t offset = Now().offset;
    US_ASSIGN_OR_RETURN(const std::string name, ExpectName());
    const Signature<FilterId>* filter = FindFilter(name);
    if (filter == nullptr || IsOperator(".")) {
      return UnsupportedAt(offset, absl::StrCat("filter ", Quoted(name)));
    }
    ExpressionPtr node = New(Expression::Kind::kFilter, offset);
    node->filter = filter->id;
    node->operands.push_back(std::move(value));
    if (IsOperator("(")) US_RETURN_IF_ERROR(ParseArguments(node.get()));
    US_RETURN_IF_ERROR(CheckArguments(*filter, "filter", *node, 1));
    US_RETURN_IF_ERROR(CheckNamesWithin(*node));
    return Finish(std::move(node));
  }

  // The filter or test that filters like "map" and "select" are given by name.
  absl::Status CheckNamesWithin(const Expression& node) const {
    const bool by_attribute =
        node.filter == FilterId::kSelectAttr || node.filter == FilterId::kRejectAttr;
    const bool selects =
        by_attribute || node.filter == FilterId::kSelect || node.filter == FilterId::kReject;
    const size_t index = by_attribute ? 2 : 1;
    if ((!selects && node.filter != FilterId::kMap) || index >= node.operands.size()) {
      return absl::OkStatus();
    }
    const Expression& argument = *node.operands[index];
    const Text* name = AsText(argument.value);
    if (name == nullptr) {
      return UnsupportedAt(argument.offset, "a filter or test whose name is no constant");
    }
    if (selects ? FindTest(name->bytes) == nullptr : FindFilter(name->bytes) == nullptr) {
      return UnsupportedAt(argument.offset,
                           absl::StrCat(selects ? "test " : "filter ", Quoted(name->bytes)));
    }
    return absl::OkStatus();
  }

  absl::StatusOr<ExpressionPtr> ParseTest(ExpressionPtr value) {
    const bool negated = AcceptName("not");
    const size_t offset = Now().offset;
    US_ASSIGN_OR_RETURN(const std::string name, ExpectName());
    const Signature<TestId>* test = FindTest(name);
    if (test == nullptr || IsOperator(".")) {
      return UnsupportedAt(offset, absl::StrCat("test ", Quoted(name)));
    }
    ExpressionPtr node = New(Expression::Kind::kTest, offset);
    node->test = test->id;
    node->operands.push_back(std::move(value));
    if (IsOperator("(")) {
      US_RETURN_IF_ERROR(ParseArguments(node.get()));
    } else if ((Is(Token::Kind::kName) && !IsOneOf(Now().text, {"else", "or", "and", "is"})) ||
               Is(Token::Kind::kString) || Is(Token::Kind::kInteger) || Is(Token::Kind::kFloat) ||
               IsOperator("[") || IsOperator("{")) {
      US_ASSIGN_OR_RETURN(ExpressionPtr argument, ParsePrimary());
      US_ASSIGN_OR_RETURN(argument, ParsePostfix(std::move(argument)));
      node->operands.push_back(std::move(argument));
    } else if (IsName("is")) {
      return ErrorAt(Now().offset, "tests cannot be chained by \"is\"");
    }
    US_RETURN_IF_ERROR(CheckArguments(*test, "test", *node, 1));
    US_ASSIGN_OR_RETURN(node, Finish(std::move(node)));
    if (!negated) return node;
    ExpressionPtr negation = New(Expression::Kind::kUnary, offset);
    negation->text = "not";
    negation->operands.push_back(std::move(node));
    return Finish(std::move(negation));
  }

  // --- what can be judged only at the end

  absl::Status CheckNames() const {
    for (const Use& call : calls_) {
      const bool is_function = FindFunction(call.name) != nullptr;
      if (assigned_.contains(call.name) || (!is_function && !macros_.contains(call.name))) {
        return UnsupportedAt(call.offset, absl::StrCat("function ", Quoted(call.name)));
      }
      if (is_function && macros_.contains(call.name)) {
        return UnsupportedAt(call.offset, absl::StrCat("a macro named ", Quoted(call.name)));
      }
    }
    for (const Use& read : reads_) {
      if (!assigned_.contains(read.name) && !macros_.contains(read.name) &&
          IsOneOf(read.name, {"caller", "cycler", "dict", "joiner", "kwargs", "lipsum", "self",
                              "super", "varargs"})) {
        return UnsupportedAt(read.offset, absl::StrCat("variable ", Quoted(read.name)));
      }
    }
    // Jinja evaluates such a condition between the rounds, here it is evaluated before the first.
    for (const Use& read : filter_reads_) {
      if (namespaces_.contains(read.name)) {
        return UnsupportedAt(read.offset, absl::StrCat("namespace ", Quoted(read.name),
                                                       " in the condition of a loop"));
      }
    }
    return absl::OkStatus();
  }

  const Source& source_;
  const std::vector<Token> tokens_;
  size_t next_ = 0;
  int statement_depth_ = 0;
  int expression_depth_ = 0;
  int loop_depth_ = 0;   // loops around, within the same macro
  int scope_depth_ = 0;  // blocks with variables of their own around
  absl::flat_hash_set<std::string> assigned_;
  absl::flat_hash_set<std::string> macros_;
  absl::flat_hash_set<std::string> namespaces_;  // whose attributes are set
  std::vector<Use> reads_;
  std::vector<Use> filter_reads_;
  std::vector<Use> calls_;
};

}  // namespace

absl::StatusOr<Body> ParseTemplate(const Source& source) {
  US_ASSIGN_OR_RETURN(std::vector<Token> tokens, Tokenize(source));
  return Parser(source, std::move(tokens)).Run();
}

}  // namespace ultrasketch::chat_internal
