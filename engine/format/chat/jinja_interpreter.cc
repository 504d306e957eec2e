#include "engine/format/chat/jinja_interpreter.h"

#include <memory>
#include <optional>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"

#include "engine/base/status.h"

namespace ultrasketch::chat_internal {
namespace {

// Variables, those of the blocks around included.
struct Scope {
  Scope* parent = nullptr;
  std::vector<std::pair<std::string_view, Value>> variables = {};

  // Null when there is none.
  const Value* Find(std::string_view name) const {
    for (const Scope* scope = this; scope != nullptr; scope = scope->parent) {
      for (const auto& [variable, value] : scope->variables) {
        if (variable == name) return &value;
      }
    }
    return nullptr;
  }

  void Set(std::string_view name, Value value) {
    for (auto& [variable, old] : variables) {
      if (variable == name) {
        old = std::move(value);
        return;
      }
    }
    variables.emplace_back(name, std::move(value));
  }
};

enum class Flow { kNext, kBreak, kContinue };

// The sum, difference or product; UNIMPLEMENTED when it has more than 64 bits.
absl::StatusOr<Value> IntegerArithmetic(char op, int64_t a, int64_t b) {
  int64_t result = 0;
  const bool overflows = op == '+'   ? __builtin_add_overflow(a, b, &result)
                         : op == '-' ? __builtin_sub_overflow(a, b, &result)
                                     : __builtin_mul_overflow(a, b, &result);
  if (overflows) return absl::UnimplementedError("an integer of more than 64 bits");
  return Value(result);
}

absl::StatusOr<Value> Arithmetic(std::string_view op, const Value& left, const Value& right) {
  const auto integer = [](const Value& value) -> std::optional<int64_t> {
    if (const auto* boolean = std::get_if<bool>(&value)) return *boolean ? 1 : 0;
    if (const auto* number = std::get_if<int64_t>(&value)) return *number;
    return std::nullopt;
  };
  const std::optional<int64_t> a = integer(left);
  const std::optional<int64_t> b = integer(right);
  const bool a_is_real = std::holds_alternative<double>(left);
  const bool b_is_real = std::holds_alternative<double>(right);
  if ((!a && !a_is_real) || (!b && !b_is_real)) {
    return absl::InvalidArgumentError(absl::StrCat("operator ", Quoted(op), " between ",
                                                   A(DescribeKind(left)), " and ",
                                                   A(DescribeKind(right))));
  }
  if (op == "/" || !a || !b) {
    const double x = a ? static_cast<double>(*a) : std::get<double>(left);
    const double y = b ? static_cast<double>(*b) : std::get<double>(right);
    if (op == "+") return Value(x + y);
    if (op == "-") return Value(x - y);
    if (op == "*") return Value(x * y);
    if (op != "/") {
      return absl::UnimplementedError(
          absl::StrCat("operator ", Quoted(op), " of real numbers is not supported"));
    }
    if (y == 0) return absl::InvalidArgumentError("division by zero");
    return Value(x / y);
  }
  if (op == "+" || op == "-" || op == "*") return IntegerArithmetic(op[0], *a, *b);
  if (*b == 0) return absl::InvalidArgumentError("division by zero");
  if (*b == -1) return op == "%" ? Value(int64_t{0}) : IntegerArithmetic('-', 0, *a);
  // Python rounds down.
  const int64_t remainder = *a % *b;
  const bool rounds = remainder != 0 && (remainder < 0) != (*b < 0);
  return Value(op == "%" ? remainder + (rounds ? *b : 0) : *a / *b - (rounds ? 1 : 0));
}

absl::StatusOr<Value> Repeat(const Value& text, const Value& times) {
  US_ASSIGN_OR_RETURN(const Text* part, PlainText(text, "a string to repeat"));
  const auto* count = std::get_if<int64_t>(&times);
  if (count == nullptr) return absl::InvalidArgumentError("a string times no integer");
  Text repeated;
  if (part->bytes.empty()) return MakeText(std::move(repeated));
  for (int64_t i = 0; i < *count; ++i) {
    repeated.Append(*part);
    US_RETURN_IF_ERROR(CheckTextSize(repeated.bytes.size()));
  }
  return MakeText(std::move(repeated));
}

absl::StatusOr<Value> Binary(std::string_view op, const Value& left, const Value& right) {
  if (op == "+" && AsText(left) != nullptr && AsText(right) != nullptr) {
    US_ASSIGN_OR_RETURN(const Text* a, PlainText(left, ""));
    US_ASSIGN_OR_RETURN(const Text* b, PlainText(right, ""));
    US_RETURN_IF_ERROR(CheckTextSize(a->bytes.size() + b->bytes.size()));
    Text sum = *a;
    sum.Append(*b);
    return MakeText(std::move(sum));
  }
  const List* a = AsList(left);
  const List* b = AsList(right);
  if (op == "+" && a != nullptr && b != nullptr && a->kind == b->kind &&
      (a->kind == List::Kind::kList || a->kind == List::Kind::kTuple)) {
    std::vector<Value> items = a->items;
    items.insert(items.end(), b->items.begin(), b->items.end());
    return MakeList(a->kind, std::move(items));
  }
  if (op == "*" && AsText(left) != nullptr) return Repeat(left, right);
  if (op == "*" && AsText(right) != nullptr) return Repeat(right, left);
  if ((op == "%" && AsText(left) != nullptr) || (op == "*" && (a != nullptr || b != nullptr))) {
    return absl::UnimplementedError(absl::StrCat("operator ", Quoted(op), " between ",
                                                 A(DescribeKind(left)), " and ",
                                                 A(DescribeKind(right)), " is not supported"));
  }
  return Arithmetic(op, left, right);
}

absl::StatusOr<bool> CompareBy(const std::string& comparison, const Value& left,
                               const Value& right) {
  if (comparison == "in" || comparison == "not in") {
    US_ASSIGN_OR_RETURN(const bool contained, Contains(right, left));
    return contained == (comparison == "in");
  }
  return ApplyTest(FindTest(comparison)->id, left, {right});
}

absl::StatusOr<Value> Range(const std::vector<Value>& arguments) {
  int64_t bounds[] = {0, 0, 1};
  for (size_t i = 0; i < arguments.size(); ++i) {
    const auto* integer = std::get_if<int64_t>(&arguments[i]);
    if (integer == nullptr) return absl::InvalidArgumentError("\"range\" takes integers");
    bounds[arguments.size() == 1 ? 1 : i] = *integer;
  }
  const auto [begin, end, step] = bounds;
  if (step == 0) return absl::InvalidArgumentError("the step of \"range\" is 0");
  constexpr size_t kMaxItems = 100000;  // as in jinja2's sandbox
  std::vector<Value> items;
  for (int64_t i = begin; step > 0 ? i < end : i > end;) {
    if (items.size() == kMaxItems) {
      return absl::InvalidArgumentError(absl::StrCat("\"range\" of more than ", kMaxItems));
    }
    items.emplace_back(i);
    if (__builtin_add_overflow(i, step, &i)) break;
  }
  return MakeList(List::Kind::kRange, std::move(items));
}

class Interpreter {
 public:
  Interpreter(const Source& source, const std::tm& now) : source_(source), now_(now) {}

  absl::StatusOr<Text> Run(const Body& body,
                           std::vector<std::pair<std::string_view, Value>> variables) {
    root_.variables = std::move(variables);
    Text out;
    US_RETURN_IF_ERROR(Execute(body, &root_, &out).status());
    return out;
  }

 private:
  // --- limits and errors

  absl::Status Error(size_t offset, const absl::Status& status) const {
    return source_.Error(status.code(), offset, S(status.message()));
  }

  // `result`, its error with the place.
  template <typename T>
  absl::StatusOr<T> At(const Expression& expression, absl::StatusOr<T> result) const {
    if (result.ok()) return result;
    return Error(expression.offset, result.status());
  }

  absl::Status Exhausted(size_t offset, std::string_view what) const {
    return source_.Error(absl::StatusCode::kResourceExhausted, offset, what);
  }

  absl::Status Step(size_t offset) {
    if (++num_steps_ > kMaxSteps) return Exhausted(offset, "the template takes too many steps");
    if (depth_ > kMaxDepth) return Exhausted(offset, "the template is nested too deep");
    return absl::OkStatus();
  }

  absl::Status Charge(size_t offset, const Value& value) {
    if (const Text* text = AsText(value)) return ChargeBytes(offset, text->bytes.size());
    if (const List* list = AsList(value)) return ChargeBytes(offset, list->items.size() * 32);
    return absl::OkStatus();
  }

  absl::Status ChargeBytes(size_t offset, size_t num_bytes) {
    num_made_bytes_ += num_bytes + 64;
    if (num_made_bytes_ > kMaxMadeBytes) {
      return Exhausted(offset, "the template takes too much memory");
    }
    return absl::OkStatus();
  }

  // --- statements

  absl::StatusOr<Flow> Execute(const Body& body, Scope* scope, Text* out) {
    ++depth_;
    Flow flow = Flow::kNext;
    for (const auto& statement : body) {
      US_RETURN_IF_ERROR(Step(statement->offset));
      US_ASSIGN_OR_RETURN(flow, ExecuteStatement(*statement, scope, out));
      if (flow != Flow::kNext) break;
    }
    --depth_;
    return flow;
  }

  absl::StatusOr<Flow> ExecuteStatement(const Statement& statement, Scope* scope, Text* out) {
    switch (statement.kind) {
      case Statement::Kind::kData:
        out->AppendLiteral(statement.text);
        US_RETURN_IF_ERROR(ChargeBytes(statement.offset, statement.text.size()));
        return Flow::kNext;
      case Statement::Kind::kPrint:
        US_RETURN_IF_ERROR(Print(*statement.expression, scope, out));
        return Flow::kNext;
      case Statement::Kind::kIf:
        return ExecuteIf(statement, scope, out);
      case Statement::Kind::kFor:
        return ExecuteFor(statement, scope, out);
      case Statement::Kind::kSet:
        US_RETURN_IF_ERROR(ExecuteSet(statement, scope));
        return Flow::kNext;
      case Statement::Kind::kCapture: {
        Scope inner{scope};
        Text captured;
        US_ASSIGN_OR_RETURN(const Flow flow,
                            Execute(statement.branches[0].body, &inner, &captured));
        if (flow == Flow::kNext) scope->Set(statement.names[0], MakeText(std::move(captured)));
        return flow;
      }
      case Statement::Kind::kScope: {
        Scope inner{scope};
        return Execute(statement.branches[0].body, &inner, out);
      }
      case Statement::Kind::kMacro:
        scope->Set(statement.macro.name, &statement.macro);
        return Flow::kNext;
      case Statement::Kind::kBreak:
        return Flow::kBreak;
      case Statement::Kind::kContinue:
        return Flow::kContinue;
    }
    return absl::InternalError("unknown statement");
  }

  absl::Status Print(const Expression& expression, Scope* scope, Text* out) {
    US_ASSIGN_OR_RETURN(const Value value, Evaluate(expression, scope));
    US_ASSIGN_OR_RETURN(const Text text, At(expression, ToText(value)));
    out->Append(text);
    return ChargeBytes(expression.offset, text.bytes.size());
  }

  absl::StatusOr<Flow> ExecuteIf(const Statement& statement, Scope* scope, Text* out) {
    for (const Statement::Branch& branch : statement.branches) {
      bool holds = true;
      if (branch.condition != nullptr) {
        US_ASSIGN_OR_RETURN(const Value value, Evaluate(*branch.condition, scope));
        holds = IsTrue(value);
      }
      if (holds) return Execute(branch.body, scope, out);
    }
    return Flow::kNext;
  }

  absl::StatusOr<Flow> ExecuteFor(const Statement& statement, Scope* scope, Text* out) {
    const Expression& expression = *statement.expression;
    US_ASSIGN_OR_RETURN(const Value iterable, Evaluate(expression, scope));
    US_ASSIGN_OR_RETURN(std::shared_ptr<const List> list, At(expression, Iterate(iterable)));
    if (statement.condition != nullptr) {
      auto kept = std::make_shared<List>();
      for (const Value& item : list->items) {
        Scope inner{scope};
        US_RETURN_IF_ERROR(Assign(statement, item, &inner));
        US_ASSIGN_OR_RETURN(const Value holds, Evaluate(*statement.condition, &inner));
        if (IsTrue(holds)) kept->items.push_back(item);
      }
      list = std::move(kept);
    }
    if (list->items.empty() && statement.branches.size() > 1) {
      Scope inner{scope};
      return Execute(statement.branches[1].body, &inner, out);
    }
    auto loop = std::make_shared<Loop>();
    loop->list = list;
    for (size_t i = 0; i < list->items.size(); ++i) {
      loop->index = i;
      Scope inner{scope};
      inner.Set("loop", loop);
      US_RETURN_IF_ERROR(Assign(statement, list->items[i], &inner));
      US_ASSIGN_OR_RETURN(const Flow flow, Execute(statement.branches[0].body, &inner, out));
      if (flow == Flow::kBreak) break;
    }
    return Flow::kNext;
  }

  absl::Status ExecuteSet(const Statement& statement, Scope* scope) {
    US_ASSIGN_OR_RETURN(Value value, Evaluate(*statement.expression, scope));
    if (statement.attribute.empty()) return Assign(statement, value, scope);
    const Value* target = scope->Find(statement.names[0]);
    if (target == nullptr || !std::holds_alternative<Namespace*>(*target)) {
      return Error(statement.offset, absl::InvalidArgumentError(absl::StrCat(
                                         Quoted(statement.names[0]), " is not a namespace")));
    }
    SetAttribute(std::get<Namespace*>(*target), statement.attribute, std::move(value));
    return absl::OkStatus();
  }

  static void SetAttribute(Namespace* space, const std::string& name, Value value) {
    for (auto& [attribute, old] : space->attributes) {
      if (attribute == name) {
        old = std::move(value);
        return;
      }
    }
    space->attributes.emplace_back(name, std::move(value));
  }

  // To the name or names of a "for" or "set".
  absl::Status Assign(const Statement& statement, const Value& value, Scope* scope) {
    if (!statement.unpacks) {
      scope->Set(statement.names[0], value);
      return absl::OkStatus();
    }
    US_ASSIGN_OR_RETURN(const auto list, At(*statement.expression, Iterate(value)));
    if (list->items.size() != statement.names.size()) {
      return Error(statement.offset, absl::InvalidArgumentError(absl::StrCat(
                                         "expected ", statement.names.size(),
                                         " values to unpack, found ", list->items.size())));
    }
    for (size_t i = 0; i < list->items.size(); ++i) {
      scope->Set(statement.names[i], list->items[i]);
    }
    return absl::OkStatus();
  }

  // --- expressions

  absl::StatusOr<Value> Evaluate(const Expression& expression, Scope* scope) {
    ++depth_;
    US_RETURN_IF_ERROR(Step(expression.offset));
    US_ASSIGN_OR_RETURN(Value value, EvaluateKind(expression, scope));
    --depth_;
    return value;
  }

  absl::StatusOr<Value> EvaluateKind(const Expression& expression, Scope* scope) {
    switch (expression.kind) {
      case Expression::Kind::kConstant:
        return expression.value;
      case Expression::Kind::kName:
        return Lookup(expression.text, *scope);
      case Expression::Kind::kConditional:
        return EvaluateConditional(expression, scope);
      case Expression::Kind::kBinary:
        if (expression.text == "and" || expression.text == "or")
          return EvaluateLogic(expression, scope);
        break;
      case Expression::Kind::kCompare:
        return EvaluateCompare(expression, scope);
      case Expression::Kind::kCall:
        return EvaluateCall(expression, scope);
      default:
        break;
    }
    std::vector<Value> operands;
    for (const auto& operand : expression.operands) {
      operands.emplace_back();
      if (operand != nullptr) {
        US_ASSIGN_OR_RETURN(operands.back(), Evaluate(*operand, scope));
      }
    }
    US_ASSIGN_OR_RETURN(Value value, EvaluateOperands(expression, std::move(operands), scope));
    US_RETURN_IF_ERROR(Charge(expression.offset, value));
    return value;
  }

  static absl::StatusOr<Value> Lookup(const std::string& name, const Scope& scope) {
    if (const Value* found = scope.Find(name)) return *found;
    if (const auto* function = FindFunction(name)) return Value(function->id);
    return Value(Undefined());
  }

  absl::StatusOr<Value> EvaluateConditional(const Expression& expression, Scope* scope) {
    US_ASSIGN_OR_RETURN(const Value condition, Evaluate(*expression.operands[1], scope));
    const Expression* chosen =
        IsTrue(condition) ? expression.operands[0].get() : expression.operands[2].get();
    return chosen == nullptr ? Value(Undefined()) : Evaluate(*chosen, scope);
  }

  absl::StatusOr<Value> EvaluateLogic(const Expression& expression, Scope* scope) {
    US_ASSIGN_OR_RETURN(Value left, Evaluate(*expression.operands[0], scope));
    if (IsTrue(left) == (expression.text == "or")) return left;
    return Evaluate(*expression.operands[1], scope);
  }

  // a < b < c is a < b and b < c.
  absl::StatusOr<Value> EvaluateCompare(const Expression& expression, Scope* scope) {
    US_ASSIGN_OR_RETURN(Value left, Evaluate(*expression.operands[0], scope));
    for (size_t i = 0; i < expression.comparisons.size(); ++i) {
      US_ASSIGN_OR_RETURN(Value right, Evaluate(*expression.operands[i + 1], scope));
      US_ASSIGN_OR_RETURN(const bool holds,
                          At(expression, CompareBy(expression.comparisons[i], left, right)));
      if (!holds) return Value(false);
      left = std::move(right);
    }
    return Value(true);
  }

  absl::StatusOr<Value> EvaluateOperands(const Expression& expression, std::vector<Value> operands,
                                         Scope* scope) {
    switch (expression.kind) {
      case Expression::Kind::kList:
        return At(expression, MakeList(List::Kind::kList, std::move(operands)));
      case Expression::Kind::kTuple:
        return At(expression, MakeList(List::Kind::kTuple, std::move(operands)));
      case Expression::Kind::kDict: {
        std::vector<std::pair<Value, Value>> items;
        for (size_t i = 0; i + 1 < operands.size(); i += 2) {
          items.emplace_back(std::move(operands[i]), std::move(operands[i + 1]));
        }
        return At(expression, MakeDict(std::move(items)));
      }
      case Expression::Kind::kUnary:
        if (expression.text == "not") return Value(!IsTrue(operands[0]));
        return At(expression, Arithmetic(expression.text, int64_t{0}, operands[0]));
      case Expression::Kind::kBinary:
        return At(expression, Binary(expression.text, operands[0], operands[1]));
      case Expression::Kind::kConcat:
        return Concat(expression, operands);
      case Expression::Kind::kAttribute:
        return At(expression, GetAttribute(operands[0], expression.text));
      case Expression::Kind::kSubscript:
        return At(expression, GetItem(operands[0], operands[1]));
      case Expression::Kind::kSlice:
        return At(expression, GetSlice(operands[0], operands[1], operands[2], operands[3]));
      case Expression::Kind::kTest: {
        const Value tested = std::move(operands[0]);
        operands.erase(operands.begin());
        US_ASSIGN_OR_RETURN(const bool holds,
                            At(expression, ApplyTest(expression.test, tested, operands)));
        return Value(holds);
      }
      case Expression::Kind::kFilter:
      case Expression::Kind::kMethod: {
        const Value object = std::move(operands[0]);
        operands.erase(operands.begin());
        US_ASSIGN_OR_RETURN(const Arguments arguments,
                            MakeArguments(expression, std::move(operands), scope));
        if (expression.kind == Expression::Kind::kFilter) {
          return At(expression, ApplyFilter(expression.filter, object, arguments));
        }
        return At(expression, CallMethod(expression.method, object, arguments));
      }
      default:
        return absl::InternalError("unknown expression");
    }
  }

  absl::StatusOr<Arguments> MakeArguments(const Expression& expression,
                                          std::vector<Value> positional, Scope* scope) {
    Arguments arguments;
    arguments.positional = std::move(positional);
    for (const auto& [name, keyword] : expression.keywords) {
      US_ASSIGN_OR_RETURN(Value value, Evaluate(*keyword, scope));
      arguments.keywords.emplace_back(name, std::move(value));
    }
    return arguments;
  }

  absl::StatusOr<Value> Concat(const Expression& expression, const std::vector<Value>& operands) {
    Text joined;
    for (const Value& operand : operands) {
      if (AsText(operand) != nullptr) {
        US_RETURN_IF_ERROR(At(expression, PlainText(operand, "")).status());
      }
      US_ASSIGN_OR_RETURN(const Text text, At(expression, ToText(operand)));
      joined.Append(text);
      if (const absl::Status status = CheckTextSize(joined.bytes.size()); !status.ok()) {
        return Error(expression.offset, status);
      }
    }
    return MakeText(std::move(joined));
  }

  absl::StatusOr<Value> EvaluateCall(const Expression& expression, Scope* scope) {
    std::vector<Value> positional;
    for (const auto& operand : expression.operands) {
      US_ASSIGN_OR_RETURN(Value value, Evaluate(*operand, scope));
      positional.push_back(std::move(value));
    }
    US_ASSIGN_OR_RETURN(Arguments arguments,
                        MakeArguments(expression, std::move(positional), scope));
    US_ASSIGN_OR_RETURN(const Value callee, Lookup(expression.text, *scope));
    if (const auto* macro = std::get_if<const Macro*>(&callee)) {
      return CallMacro(expression, **macro, std::move(arguments));
    }
    if (const auto* function = std::get_if<FunctionId>(&callee)) {
      US_ASSIGN_OR_RETURN(Value value, CallFunction(expression, *function, arguments));
      US_RETURN_IF_ERROR(Charge(expression.offset, value));
      return value;
    }
    return Error(expression.offset,
                 absl::InvalidArgumentError(
                     absl::StrCat(Quoted(expression.text), " is called before it is defined")));
  }

  absl::StatusOr<Value> CallFunction(const Expression& expression, FunctionId function,
                                     const Arguments& arguments) {
    switch (function) {
      case FunctionId::kRange:
        return At(expression, Range(arguments.positional));
      case FunctionId::kNamespace: {
        namespaces_.push_back(std::make_unique<Namespace>());
        for (const auto& [name, value] : arguments.keywords) {
          if (name.starts_with('_')) {
            return Error(expression.offset,
                         absl::InvalidArgumentError("attributes must not begin with \"_\""));
          }
          SetAttribute(namespaces_.back().get(), name, value);
        }
        return Value(namespaces_.back().get());
      }
      case FunctionId::kRaiseException: {
        US_ASSIGN_OR_RETURN(const Text message, At(expression, ToText(arguments.positional[0])));
        constexpr size_t kMaxMessageBytes = 500;
        return Error(expression.offset,
                     absl::InvalidArgumentError(absl::StrCat(
                         "the chat template says: ", Quoted(message.bytes, kMaxMessageBytes))));
      }
      case FunctionId::kStrftimeNow:
        return At(expression, FormatNow(arguments.positional[0]));
    }
    return absl::InternalError("unknown function");
  }

  absl::StatusOr<Value> FormatNow(const Value& format_value) const {
    US_ASSIGN_OR_RETURN(const Text* format, PlainText(format_value, "a format"));
    constexpr size_t kMaxFormatBytes = 100;
    if (format->bytes.size() > kMaxFormatBytes || format->HasPlain(0, format->bytes.size())) {
      return absl::UnimplementedError("\"strftime_now\" is supported with a short constant format");
    }
    char formatted[4096];
    const size_t size = std::strftime(formatted, sizeof(formatted), format->bytes.c_str(), &now_);
    return MakeLiteral(std::string(formatted, size));
  }

  absl::StatusOr<Value> CallMacro(const Expression& expression, const Macro& macro,
                                  Arguments arguments) {
    const auto refuse = [&](std::string_view what) {
      return Error(expression.offset, absl::InvalidArgumentError(absl::StrCat(
                                          "macro ", Quoted(macro.name), " is called ", A(what))));
    };
    if (arguments.positional.size() > macro.parameters.size()) {
      return refuse("with too many arguments");
    }
    for (const auto& keyword : arguments.keywords) {
      size_t i = 0;
      while (i < macro.parameters.size() && macro.parameters[i] != keyword.first) ++i;
      if (i == macro.parameters.size()) {
        return refuse(absl::StrCat("with an unknown argument ", Quoted(keyword.first)));
      }
      if (i < arguments.positional.size()) {
        return refuse(absl::StrCat("with argument ", Quoted(keyword.first), " twice"));
      }
    }
    Scope inner{&root_};
    for (size_t i = 0; i < macro.parameters.size(); ++i) {
      Value value;
      if (i < arguments.positional.size()) {
        value = std::move(arguments.positional[i]);
      } else if (const Value* keyword = arguments.Keyword(macro.parameters[i])) {
        value = *keyword;
      } else if (macro.defaults[i] != nullptr) {
        US_ASSIGN_OR_RETURN(value, Evaluate(*macro.defaults[i], &inner));
      }
      inner.Set(macro.parameters[i], std::move(value));
    }
    Text out;
    US_RETURN_IF_ERROR(Execute(macro.body, &inner, &out).status());
    return MakeText(std::move(out));
  }

  const Source& source_;
  const std::tm now_;
  Scope root_;
  std::vector<std::unique_ptr<Namespace>> namespaces_;
  int64_t num_steps_ = 0;
  size_t num_made_bytes_ = 0;
  int depth_ = 0;
};

}  // namespace

absl::StatusOr<Text> Render(const Source& source, const Body& body,
                            std::vector<std::pair<std::string_view, Value>> variables,
                            const std::tm& now) {
  return Interpreter(source, now).Run(body, std::move(variables));
}

}  // namespace ultrasketch::chat_internal
