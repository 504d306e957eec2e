#include "engine/format/chat/chat_template.h"

#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"

#include "engine/base/file.h"
#include "engine/base/status.h"
#include "engine/format/chat/jinja_interpreter.h"
#include "engine/format/chat/jinja_parser.h"
#include "engine/format/json.h"
#include "engine/format/tokenizer/folder_tokens.h"
#include "engine/format/tokenizer/prefix_space.h"

namespace ultrasketch {

using chat_internal::Body;
using chat_internal::MakeDict;
using chat_internal::MakeList;
using chat_internal::MakeLiteral;
using chat_internal::MakeText;
using chat_internal::Source;
using chat_internal::Text;
using chat_internal::Value;

struct ChatTemplate::Program {
  Source source;
  Body body;
  std::map<std::string, std::string> special_tokens;
};

namespace {

constexpr int64_t kMaxTemplateBytes = int64_t{1} << 20;

absl::StatusOr<nlohmann::json> ReadOptionalJson(const std::string& path) {
  absl::StatusOr<nlohmann::json> json = ReadJsonFile(path);
  if (absl::IsNotFound(json.status())) return nlohmann::json::object();
  return json;
}

std::string StringMember(const nlohmann::json& object, std::string_view key) {
  const nlohmann::json* value = FindMember(object, key);
  return value != nullptr && value->is_string() ? value->get<std::string>() : std::string();
}

// The named tokens, "bos_token" and the like; whoever loads the tokenizer says what is wrong with
// them.
absl::StatusOr<std::map<std::string, std::string>> ReadSpecialTokens(
    const std::string& folder, const nlohmann::json& config, const std::string& config_path) {
  const std::string map_path = absl::StrCat(folder, "/special_tokens_map.json");
  nlohmann::json map;
  if (!config.contains("added_tokens_decoder")) {
    US_ASSIGN_OR_RETURN(map, ReadOptionalJson(map_path));
  }
  const absl::StatusOr<nlohmann::json> model_config = ReadJsonFile(folder + "/config.json");
  const nlohmann::json& model = model_config.ok() ? *model_config : config;
  std::string stated_class = StringMember(config, "tokenizer_class");
  if (stated_class.empty()) stated_class = StringMember(model, "tokenizer_class");
  const absl::StatusOr<std::string> tokenizer =
      ReadFile(folder + "/tokenizer.json", kMaxTokenizerFileBytes);
  const bool is_byte_level =
      tokenizer.ok() && tokenizer->find("\"ByteLevel\"") != std::string::npos;
  const auto* const rebuilding = tokenizer_internal::FindRebuildingClass(
      stated_class, StringMember(model, "model_type"), is_byte_level);
  const std::string_view class_name =
      rebuilding != nullptr ? tokenizer_internal::ClassName(*rebuilding) : std::string_view();
  std::vector<std::string> ignored;
  const auto stated = tokenizer_internal::ReadStatedTokens({config_path, config}, {map_path, map},
                                                           {}, class_name, &ignored);
  std::map<std::string, std::string> tokens;
  for (const auto& [name, token] : stated.named) {
    if (token.has_value()) tokens.emplace(name, token->content);
  }
  return tokens;
}

absl::Status NoDefaultTemplate(const std::string& path, const std::string& names) {
  return absl::UnimplementedError(
      absl::StrCat(path, ": chat_template: expected a template named \"default\", found ",
                   names.empty() ? "none" : names));
}

// The template in a tokenizer_config.json; nullopt when there is none.
absl::StatusOr<std::optional<std::string>> TemplateOfConfig(const nlohmann::json& config,
                                                            const std::string& path) {
  const nlohmann::json* member = FindMember(config, "chat_template");
  if (member == nullptr) return std::nullopt;
  if (member->is_string()) return member->get<std::string>();
  std::string names;
  if (member->is_object()) {  // name to template
    for (const auto& [name, text] : member->items()) {
      if (!text.is_string()) {
        return absl::DataLossError(absl::StrCat(path, ": chat_template: ", Quoted(name),
                                                ": expected a template, found ",
                                                DescribeJson(&text)));
      }
      if (name == "default") return text.get<std::string>();
      absl::StrAppend(&names, names.empty() ? "" : ", ", Quoted(name));
    }
    return NoDefaultTemplate(path, names);
  }
  if (!member->is_array()) {
    return absl::DataLossError(
        absl::StrCat(path, ": chat_template: expected a string or named templates, found ",
                     DescribeJson(member)));
  }
  for (const nlohmann::json& entry : *member) {
    const nlohmann::json* name = FindMember(entry, "name");
    const nlohmann::json* text = FindMember(entry, "template");
    if (name == nullptr || !name->is_string() || text == nullptr || !text->is_string()) {
      return absl::DataLossError(
          absl::StrCat(path, ": chat_template: expected objects with \"name\" and \"template\""));
    }
    if (*name == "default") return text->get<std::string>();
    absl::StrAppend(&names, names.empty() ? "" : ", ", Quoted(name->get<std::string>()));
  }
  return NoDefaultTemplate(path, names);
}

std::tm LocalTime() {
  const std::time_t now = std::time(nullptr);
  std::tm local = {};
  localtime_r(&now, &local);
  return local;
}

}  // namespace

ChatTemplate::ChatTemplate(std::unique_ptr<const Program> program) : program_(std::move(program)) {}
ChatTemplate::~ChatTemplate() = default;

absl::StatusOr<std::unique_ptr<ChatTemplate>> ChatTemplate::Load(const std::string& folder) {
  const std::string config_path = absl::StrCat(folder, "/tokenizer_config.json");
  US_ASSIGN_OR_RETURN(const nlohmann::json config, ReadOptionalJson(config_path));
  US_ASSIGN_OR_RETURN(auto special_tokens, ReadSpecialTokens(folder, config, config_path));
  const std::string path = absl::StrCat(folder, "/chat_template.jinja");
  const absl::StatusOr<std::string> file = ReadFile(path, kMaxTemplateBytes);
  if (file.ok()) return Parse(*file, path, std::move(special_tokens));
  if (!absl::IsNotFound(file.status())) return file.status();
  US_ASSIGN_OR_RETURN(const std::optional<std::string> source,
                      TemplateOfConfig(config, config_path));
  if (!source.has_value()) return nullptr;
  return Parse(*source, absl::StrCat(config_path, ": chat_template"), std::move(special_tokens));
}

absl::StatusOr<std::unique_ptr<ChatTemplate>> ChatTemplate::Parse(
    std::string_view source, std::string_view name,
    std::map<std::string, std::string> special_tokens) {
  if (source.size() > kMaxTemplateBytes) {
    return absl::ResourceExhaustedError(absl::StrCat(A(name), ": a chat template of ",
                                                     HumanBytes(source.size()), "; at most ",
                                                     HumanBytes(kMaxTemplateBytes)));
  }
  if (!IsValidUtf8(source)) {
    return absl::DataLossError(absl::StrCat(A(name), ": the chat template is not UTF-8"));
  }
  auto program = std::make_unique<Program>();
  program->source = chat_internal::MakeSource(source, name);
  US_ASSIGN_OR_RETURN(program->body, chat_internal::ParseTemplate(program->source));
  program->special_tokens = std::move(special_tokens);
  return std::unique_ptr<ChatTemplate>(new ChatTemplate(std::move(program)));
}

absl::StatusOr<RenderedChat> ChatTemplate::Render(absl::Span<const ChatMessage> messages,
                                                  const ChatOptions& options) const {
  if (messages.empty()) return absl::InvalidArgumentError("expected at least one message");
  std::vector<Value> list;
  for (size_t i = 0; i < messages.size(); ++i) {
    for (const std::string* part : {&messages[i].role, &messages[i].content}) {
      if (!IsValidUtf8(*part)) {
        return absl::InvalidArgumentError(absl::StrCat("message ", i, " is not UTF-8"));
      }
    }
    US_ASSIGN_OR_RETURN(
        Value message,
        MakeDict({{MakeLiteral("role"), MakeText(Text::Plain(messages[i].role))},
                  {MakeLiteral("content"), MakeText(Text::Plain(messages[i].content))}}));
    list.push_back(std::move(message));
  }
  std::vector<std::pair<std::string_view, Value>> variables;
  US_ASSIGN_OR_RETURN(Value all, MakeList(chat_internal::List::Kind::kList, std::move(list)));
  variables.emplace_back("messages", std::move(all));
  variables.emplace_back("add_generation_prompt", options.add_generation_prompt);
  variables.emplace_back("tools", chat_internal::None());
  variables.emplace_back("documents", chat_internal::None());
  for (const auto& [name, token] : program_->special_tokens) {
    variables.emplace_back(name, MakeLiteral(token));
  }
  US_ASSIGN_OR_RETURN(Text text,
                      chat_internal::Render(program_->source, program_->body, std::move(variables),
                                            options.now.value_or(LocalTime())));
  return RenderedChat{std::move(text.bytes), std::move(text.plain_ranges)};
}

absl::StatusOr<std::vector<int32_t>> EncodeChat(const Tokenizer& tokenizer,
                                                const RenderedChat& chat,
                                                const std::atomic<bool>* cancelled) {
  return tokenizer.Encode(
      chat.text,
      {.add_special_tokens = false, .plain_ranges = chat.plain_ranges, .cancelled = cancelled});
}

}  // namespace ultrasketch
