#include "engine/format/tokenizer/prefix_space.h"

#include <string>
#include <utility>

#include "engine/format/json.h"

namespace ultrasketch::tokenizer_internal {

using nlohmann::json;

enum class Family {
  kMetaspace,
  kSplitByteLevel,  // a regular expression splits, ByteLevel spells bytes
  kByteLevel,       // ByteLevel does both
};

struct RebuildingClass {
  const char* name;
  Family family;
  bool has_nfc;
  bool has_legacy;  // kMetaspace: whether the key "legacy" counts
};

namespace {

constexpr RebuildingClass kClasses[] = {
    {"LlamaTokenizer", Family::kMetaspace, false, true},
    {"CodeLlamaTokenizer", Family::kMetaspace, false, false},
    {"Qwen2Tokenizer", Family::kSplitByteLevel, true, false},
    {"GPT2Tokenizer", Family::kByteLevel, false, false},
    {"GPTNeoXTokenizer", Family::kByteLevel, true, false},
    {"CodeGenTokenizer", Family::kByteLevel, false, false},
};

// Of Qwen2Tokenizer.
constexpr char kSplitPattern[] = R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}|)"
                                 R"( ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";

const RebuildingClass* FindClass(std::string_view name) {
  for (const RebuildingClass& rebuilding : kClasses) {
    if (name == rebuilding.name) return &rebuilding;
  }
  return nullptr;
}

std::string TypeOf(const json& component) {
  const json* type = FindMember(component, "type");
  return type != nullptr && type->is_string() ? type->get<std::string>() : std::string();
}

// Calls `visit` with the component, or with each of those in a Sequence. `list_key` is the
// sequence's member.
template <typename Json, typename Visit>
void ForEach(Json& component, const char* list_key, const Visit& visit) {
  if (TypeOf(component) != "Sequence") {
    if (component.is_object()) visit(component);
    return;
  }
  const auto list = component.find(list_key);
  if (list == component.end() || !list->is_array()) return;
  for (Json& element : *list) ForEach(element, list_key, visit);
}

// The components of a tokenizer one after the other, with what concerns token ids spelled out.
json Components(const json& tokenizer) {
  json components = json::array();
  if (const json* normalizer = FindMember(tokenizer, "normalizer")) {
    ForEach(*normalizer, "normalizers",
            [&](const json& component) { components.push_back(component); });
  }
  if (const json* pre_tokenizer = FindMember(tokenizer, "pre_tokenizer")) {
    ForEach(*pre_tokenizer, "pretokenizers", [&](json component) {
      component.erase("trim_offsets");
      if (TypeOf(component) == "ByteLevel" && !component.contains("use_regex")) {
        component["use_regex"] = true;
      }
      if (TypeOf(component) == "Metaspace") {
        if (!component.contains("split")) component["split"] = true;
        if (FindMember(component, "prepend_scheme") == nullptr) {
          const bool prepends = component.value("add_prefix_space", json(true)) != false;
          component["prepend_scheme"] = prepends ? "always" : "never";
        }
        component.erase("add_prefix_space");  // the older spelling of the same
      }
      components.push_back(std::move(component));
    });
  }
  return components;
}

json ByteLevel(bool add_prefix_space, bool use_regex) {
  return {{"type", "ByteLevel"}, {"add_prefix_space", add_prefix_space}, {"use_regex", use_regex}};
}

json PreTokenizerOfClass(const RebuildingClass& rebuilding, const PrefixSpaceSettings& settings) {
  const bool is_metaspace = rebuilding.family == Family::kMetaspace;
  const bool add_prefix_space = settings.add_prefix_space.value_or(is_metaspace);
  if (is_metaspace) {
    const bool always = settings.legacy && rebuilding.has_legacy;
    const char* scheme = !add_prefix_space ? "never" : (always ? "always" : "first");
    return {
        {"type", "Metaspace"}, {"replacement", "▁"}, {"prepend_scheme", scheme}, {"split", false}};
  }
  if (rebuilding.family == Family::kByteLevel) return ByteLevel(add_prefix_space, true);
  json split = {{"type", "Split"},
                {"pattern", {{"Regex", kSplitPattern}}},
                {"behavior", "Isolated"},
                {"invert", false}};
  return {{"type", "Sequence"},
          {"pretokenizers",
           json::array({std::move(split), ByteLevel(add_prefix_space, /*use_regex=*/false)})}};
}

json DecoderOfMetaspaceClass(bool add_prefix_space) {
  json decoders =
      json::array({{{"type", "Replace"}, {"pattern", {{"String", "▁"}}}, {"content", " "}},
                   {{"type", "ByteFallback"}},
                   {{"type", "Fuse"}}});
  if (add_prefix_space) {
    decoders.push_back({{"type", "Strip"}, {"content", " "}, {"start", 1}, {"stop", 0}});
  }
  return {{"type", "Sequence"}, {"decoders", std::move(decoders)}};
}

}  // namespace

const RebuildingClass* FindRebuildingClass(std::string_view stated_class,
                                           std::string_view model_type, bool is_byte_level) {
  if (model_type == "mistral") return nullptr;
  if (model_type == "qwen2") return FindClass("Qwen2Tokenizer");
  if (stated_class.ends_with("Fast")) stated_class.remove_suffix(4);
  if (stated_class == "LlamaTokenizer" && is_byte_level) return nullptr;
  return FindClass(stated_class);
}

std::string_view ClassName(const RebuildingClass& rebuilding) { return rebuilding.name; }

void SetPrefixSpace(const RebuildingClass& rebuilding, const PrefixSpaceSettings& settings,
                    json* tokenizer) {
  if (!settings.add_prefix_space.has_value() || !tokenizer->is_object()) return;
  const bool add_prefix_space = *settings.add_prefix_space;
  if (rebuilding.family == Family::kMetaspace) {
    (*tokenizer)["normalizer"] = nullptr;
    (*tokenizer)["pre_tokenizer"] = PreTokenizerOfClass(rebuilding, settings);
    (*tokenizer)["decoder"] = DecoderOfMetaspaceClass(add_prefix_space);
    return;
  }
  json& pre_tokenizer = (*tokenizer)["pre_tokenizer"];
  if (rebuilding.family == Family::kByteLevel && TypeOf(pre_tokenizer) == "Sequence" &&
      add_prefix_space) {
    // In a sequence every piece would get the space, not the text.
    pre_tokenizer = PreTokenizerOfClass(rebuilding, settings);
    return;
  }
  ForEach(pre_tokenizer, "pretokenizers", [&](json& component) {
    if (TypeOf(component) == "ByteLevel") component["add_prefix_space"] = add_prefix_space;
  });
}

bool HasComponentsOfClass(const RebuildingClass& rebuilding, const PrefixSpaceSettings& settings,
                          const json& tokenizer) {
  json expected = {{"pre_tokenizer", PreTokenizerOfClass(rebuilding, settings)}};
  if (rebuilding.has_nfc) expected["normalizer"] = {{"type", "NFC"}};
  return Components(tokenizer) == Components(expected);
}

}  // namespace ultrasketch::tokenizer_internal
