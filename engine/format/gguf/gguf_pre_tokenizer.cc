#include "engine/format/gguf/gguf_pre_tokenizer.h"

#include <array>
#include <vector>

#include "absl/strings/str_join.h"

#include "engine/base/strings.h"

namespace ultrasketch {
namespace {

using nlohmann::json;

// The expressions are those of the models' own tokenizer.json files. llama.cpp's are rewritten
// for its engine, and equal to them but for oddities such as a long s after an apostrophe.
constexpr std::string_view kGpt2 =
    R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S))";
constexpr std::string_view kLlama3 =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*)"
    R"(|\s*[\r\n]+|\s+(?!\S)|\s+)";
constexpr std::string_view kQwen2 =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*)"
    R"(|\s*[\r\n]+|\s+(?!\S)|\s+)";
constexpr std::string_view kTekken =
    R"([^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+)"
    R"(|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*)"
    R"(|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+)";

// DeepSeek's letters with case, punctuation, and Chinese, Japanese and Korean characters.
constexpr std::string_view kDeepSeekCased =
    R"(\s?[)"
    R"(A-Za-z\x{b5}\x{c0}-\x{d6}\x{d8}-\x{f6}\x{f8}-\x{1ba}\x{1bc}-\x{1bf}\x{1c4}-\x{293}\x{295}-)"
    R"(\x{2af}\x{370}-\x{373}\x{376}\x{377}\x{37b}-\x{37d}\x{37f}\x{386}\x{388}-\x{38a}\x{38c})"
    R"(\x{38e}-\x{3a1}\x{3a3}-\x{3f5}\x{3f7}-\x{481}\x{48a}-\x{52f}\x{531}-\x{556}\x{10a0}-\x{10c5})"
    R"(\x{13a0}-\x{13f5}\x{13f8}-\x{13fd}\x{1c90}-\x{1cba}\x{1cbd}-\x{1cbf}\x{1d00}-\x{1d2b})"
    R"(\x{1d6b}-\x{1d77}\x{1d79}-\x{1d9a}\x{1e00}-\x{1f15}\x{1f18}-\x{1f1d}\x{1f20}-\x{1f45})"
    R"(\x{1f48}-\x{1f4d}\x{1f50}-\x{1f57}\x{1f59}\x{1f5b}\x{1f5d}\x{1f5f}-\x{1f7d}\x{1f80}-\x{1fb4})"
    R"(\x{1fb6}-\x{1fbc}\x{1fbe}\x{1fc2}-\x{1fc4}\x{1fc6}-\x{1fcc}\x{1fd0}-\x{1fd3}\x{1fd6}-)"
    R"(\x{1fdb}\x{1fe0}-\x{1fec}\x{1ff2}-\x{1ff4}\x{1ff6}-\x{1ffc}\x{2102}\x{2107}\x{210a}-\x{2113})"
    R"(\x{2115}\x{2119}-\x{211d}\x{2124}\x{2126}\x{2128}\x{212a}-\x{212d}\x{212f}-\x{2134}\x{2139})"
    R"(\x{213c}-\x{213f}\x{2145}-\x{2149}\x{214e}\x{2183}\x{2184}\x{2c00}-\x{2c7b}\x{2c7e}-\x{2ce4})"
    R"(\x{2ceb}-\x{2cee}\x{2cf2}\x{2cf3}\x{a640}-\x{a66d}\x{a680}-\x{a69b}\x{a722}-\x{a76f}\x{a771})"
    R"(-\x{a787}\x{a78b}-\x{a78e}\x{ab70}-\x{abbf}\x{fb00}-\x{fb06}\x{fb13}-\x{fb17}\x{ff21}-)"
    R"(\x{ff3a}\x{ff41}-\x{ff5a}\x{10400}-\x{1044f}\x{104b0}-\x{104d3}\x{104d8}-\x{104fb}\x{10c80}-)"
    R"(\x{10cb2}\x{10cc0}-\x{10cf2}\x{118a0}-\x{118df}\x{1e900}-\x{1e943})"
    R"(]+)";
constexpr std::string_view kDeepSeekPunctuation =
    R"(\s?[)"
    R"(\x{21}-\x{2f}\x{3a}-\x{7e}\x{ff01}-\x{ff0f}\x{ff1a}-\x{ff5e}\x{2018}-\x{201f}\x{3000}-)"
    R"(\x{3002})"
    R"(]+)";
constexpr std::string_view kDeepSeekCjk =
    R"([\x{4e00}-\x{9fa5}\x{800}-\x{4e00}\x{ac00}-\x{d7ff}]+)";

json ByteLevel(bool use_regex) {
  return {{"type", "ByteLevel"},
          {"add_prefix_space", false},
          {"trim_offsets", true},
          {"use_regex", use_regex}};
}

json Sequence(std::vector<json> parts) {
  return {{"type", "Sequence"}, {"pretokenizers", std::move(parts)}};
}

json Split(std::string_view expression) {
  return {{"type", "Split"},
          {"pattern", {{"Regex", expression}}},
          {"behavior", "Isolated"},
          {"invert", false}};
}

json Digits() { return {{"type", "Digits"}, {"individual_digits", true}}; }

// One expression after the other cuts the pieces of the one before.
json Splits(std::initializer_list<std::string_view> expressions) {
  std::vector<json> parts;
  for (const std::string_view expression : expressions) parts.push_back(Split(expression));
  parts.push_back(ByteLevel(/*use_regex=*/false));
  return Sequence(std::move(parts));
}

// What llama.cpp does where the file names nothing.
GgufPreTokenizer Default() {
  return {.pre_tokenizer =
              Splits({R"([\p{P}\$\+<=>\^~\|]+)", kGpt2, R"(\p{N}+)", "[0-9][0-9][0-9]"})};
}

GgufPreTokenizer Gpt2() { return {.pre_tokenizer = ByteLevel(/*use_regex=*/true)}; }

GgufPreTokenizer DigitsAndGpt2() {
  return {.pre_tokenizer = Sequence({Digits(), ByteLevel(/*use_regex=*/true)})};
}

GgufPreTokenizer Llama3() {
  return {.pre_tokenizer = Splits({kLlama3}), .ignore_merges = true, .adds_bos = true};
}

GgufPreTokenizer Smaug() { return {.pre_tokenizer = Splits({kLlama3})}; }

// The models' tokenizers normalize, llama.cpp does not: the ids of text that is not in form NFC
// are those that the model was trained with.
GgufPreTokenizer Qwen2() {
  return {.normalizer = {{"type", "NFC"}}, .pre_tokenizer = Splits({kQwen2})};
}

GgufPreTokenizer Tekken() {
  return {.pre_tokenizer = Splits({kTekken}), .ignore_merges = true, .adds_bos = true};
}

GgufPreTokenizer DeepSeekLlm() {
  return {.pre_tokenizer = Splits({R"([\r\n])", kDeepSeekCased, kDeepSeekPunctuation, R"(\s+$)",
                                   kDeepSeekCjk, R"(\p{N}+)"})};
}

GgufPreTokenizer DeepSeekCoder() {
  return {.pre_tokenizer =
              Splits({R"([\r\n])", R"(\s?\p{L}+)", R"(\s?\p{P}+)", kDeepSeekCjk, R"(\p{N})"})};
}

struct Entry {
  std::string_view name;
  GgufPreTokenizer (*make)();
};

constexpr std::array kEntries = {
    Entry{"default", Default},
    Entry{"gpt-2", Gpt2},
    Entry{"smollm", DigitsAndGpt2},
    Entry{"starcoder", DigitsAndGpt2},
    Entry{"refact", DigitsAndGpt2},
    Entry{"llama-bpe", Llama3},
    Entry{"llama3", Llama3},
    Entry{"llama-v3", Llama3},
    Entry{"falcon3", Llama3},
    Entry{"smaug-bpe", Smaug},
    Entry{"qwen2", Qwen2},
    Entry{"deepseek-r1-qwen", Qwen2},
    Entry{"tekken", Tekken},
    Entry{"deepseek-llm", DeepSeekLlm},
    Entry{"deepseek-coder", DeepSeekCoder},
};

}  // namespace

std::optional<GgufPreTokenizer> FindGgufPreTokenizer(std::string_view name) {
  for (const Entry& entry : kEntries) {
    if (entry.name == name) return entry.make();
  }
  return std::nullopt;
}

std::string SupportedGgufPreTokenizers() {
  std::vector<std::string> names;
  for (const Entry& entry : kEntries) names.emplace_back(entry.name);
  return absl::StrJoin(names, ", ");
}

}  // namespace ultrasketch
