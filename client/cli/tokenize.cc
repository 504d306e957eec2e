#include <iostream>
#include <optional>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"

#include "client/cli/command.h"
#include "client/cli/input.h"
#include "client/cli/output.h"
#include "engine/base/status.h"
#include "engine/base/strings.h"
#include "engine/format/tokenizer/tokenizer_folder.h"

namespace ultrasketch::cli {
namespace {

absl::StatusOr<std::unique_ptr<Tokenizer>> LoadTokenizer(const std::string& folder) {
  US_ASSIGN_OR_RETURN(FolderTokenizer loaded, LoadFolderTokenizer(folder));
  for (const std::string& warning : loaded.warnings) std::cerr << "warning: " << warning << "\n";
  return std::move(loaded.tokenizer);
}

class TokenizeCommand : public Command {
 public:
  const char* name() const override { return "tokenize"; }
  const char* summary() const override { return "Turn text into token ids"; }

  void Declare(CLI::App& app) override {
    app.add_option("--model", model_, "Folder with a tokenizer.json")->required()->type_name("DIR");
    app.add_option("--text", text_, "The text; standard input, byte for byte, when left out");
    app.add_flag("--no-special-tokens,--no-add-special-tokens", no_special_tokens_,
                 "Do not add the tokens that the model expects around a text");
    app.add_flag("--split-special-tokens", split_special_tokens_,
                 "Take spellings of special tokens in the text for ordinary text");
    app.footer(
        "Example:\n"
        "  ultrasketch tokenize --model models/classics-6m --text 'Call me Ishmael.'");
  }

  absl::Status Run(const Environment& environment) override {
    US_ASSIGN_OR_RETURN(const auto tokenizer, LoadTokenizer(model_));
    if (!text_.has_value()) {
      US_ASSIGN_OR_RETURN(text_, ReadStandardInput(environment.stop));
    }
    US_ASSIGN_OR_RETURN(
        const std::vector<int32_t> ids,
        tokenizer->Encode(*text_, {.add_special_tokens = !no_special_tokens_,
                                   .parse_special_tokens = !split_special_tokens_}));
    if (!environment.json) return WriteOutput(absl::StrCat(absl::StrJoin(ids, " "), "\n"));
    std::vector<std::string> tokens;
    tokens.reserve(ids.size());
    for (const int32_t id : ids) tokens.push_back(tokenizer->IdToToken(id).value_or(""));
    return WriteJson({{"token_ids", ids}, {"tokens", tokens}});
  }

 private:
  std::string model_;
  std::optional<std::string> text_;
  bool no_special_tokens_ = false;
  bool split_special_tokens_ = false;
};

class DetokenizeCommand : public Command {
 public:
  const char* name() const override { return "detokenize"; }
  const char* summary() const override { return "Turn token ids into text"; }

  void Declare(CLI::App& app) override {
    app.add_option("--model", model_, "Folder with a tokenizer.json")->required()->type_name("DIR");
    app.add_option("ids", ids_,
                   "Token ids; standard input, separated by white space, when left out")
        ->type_name("ID...");
    app.add_flag("--skip-special-tokens", skip_special_tokens_,
                 "Leave special tokens out of the text");
    app.footer("Example:\n  ultrasketch detokenize --model models/classics-6m 4307 521 13");
  }

  absl::Status Run(const Environment& environment) override {
    US_ASSIGN_OR_RETURN(const auto tokenizer, LoadTokenizer(model_));
    std::vector<int32_t> ids = ids_;
    if (ids.empty()) {
      US_ASSIGN_OR_RETURN(const std::string input, ReadStandardInput(environment.stop));
      for (const absl::string_view word :
           absl::StrSplit(input, absl::ByAnyChar(" \t\r\n,"), absl::SkipEmpty())) {
        int32_t id;
        if (!absl::SimpleAtoi(word, &id)) {
          return absl::InvalidArgumentError(
              absl::StrCat("standard input: expected a token id, found ", Quoted(S(word))));
        }
        ids.push_back(id);
      }
    }
    for (const int32_t id : ids) {
      if (!tokenizer->IdToToken(id).has_value()) {
        return absl::InvalidArgumentError(absl::StrCat(
            "the vocabulary has no token ", id, ": ids go up to ", tokenizer->vocab_size() - 1));
      }
    }
    const std::string text = tokenizer->Decode(ids, skip_special_tokens_);
    return environment.json ? WriteJson({{"text", text}}) : WriteOutput(absl::StrCat(text, "\n"));
  }

 private:
  std::string model_;
  std::vector<int32_t> ids_;
  bool skip_special_tokens_ = false;
};

}  // namespace

std::unique_ptr<Command> MakeTokenizeCommand() { return std::make_unique<TokenizeCommand>(); }
std::unique_ptr<Command> MakeDetokenizeCommand() { return std::make_unique<DetokenizeCommand>(); }

}  // namespace ultrasketch::cli
