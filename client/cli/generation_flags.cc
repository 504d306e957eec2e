#include "client/cli/generation_flags.h"

#include <cstdint>
#include <optional>
#include <string_view>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"

#include "client/cli/command.h"
#include "engine/base/strings.h"

namespace ultrasketch::cli {
namespace {

// "ID=BIAS".
std::optional<std::pair<int32_t, float>> ParseBias(std::string_view text) {
  const size_t equals = text.find('=');
  if (equals == std::string_view::npos) return std::nullopt;
  std::pair<int32_t, float> bias;
  if (!absl::SimpleAtoi(A(text.substr(0, equals)), &bias.first) ||
      !absl::SimpleAtof(A(text.substr(equals + 1)), &bias.second)) {
    return std::nullopt;
  }
  return bias;
}

}  // namespace

void GenerationFlags::Declare(CLI::App& app) {
  const char* length = "Length";
  app.add_option("--max-tokens", request_.max_tokens, "Most tokens to generate (default 256)")
      ->group(length);
  app.add_option("--min-tokens", request_.min_tokens, "No end before this many")->group(length);
  // One value each, however many arguments follow.
  app.add_option("--stop", request_.stop,
                 "End before this text, a special token's spelling too; may be repeated")
      ->allow_extra_args(false)
      ->group(length);
  app.add_option("--stop-token-id", request_.stop_token_ids, "End at this token; may be repeated")
      ->allow_extra_args(false)
      ->type_name("ID")
      ->group(length);
  app.add_flag("--ignore-eos", ignore_eos_, "Go on after the model's end token")->group(length);
  app.add_flag("--include-stop", include_stop_,
               "Show the stop string, or the end token if special tokens are shown")
      ->group(length);

  app.add_flag("--no-skip-special-tokens", no_skip_special_tokens_, "Show those that are generated")
      ->group(kSpecialTokensGroup);

  const char* sampling = kSamplingGroup;
  app.add_option("--temperature", request_.temperature, "0: always the most likely token")
      ->group(sampling);
  app.add_option("--top-p", request_.top_p, "Keep the most likely tokens up to this mass")
      ->group(sampling);
  app.add_option("--top-k", request_.top_k, "Keep this many most likely tokens; 0: all")
      ->group(sampling);
  app.add_option("--min-p", request_.min_p, "Drop tokens below this share of the most likely")
      ->group(sampling);
  app.add_option("--repetition-penalty", request_.repetition_penalty, "1: none")->group(sampling);
  app.add_option("--presence-penalty", request_.presence_penalty, "0: none")->group(sampling);
  app.add_option("--frequency-penalty", request_.frequency_penalty, "0: none")->group(sampling);
  app.add_option("--seed", request_.seed, "Same seed and request, same text; drawn when left out")
      ->check(AtLeast<uint64_t>(0))
      ->group(sampling);
  app.add_option("--logit-bias", logit_bias_,
                 "Add a number to a token's logit: 100 all but forces it, -100 all but bans it; "
                 "may be repeated")
      ->allow_extra_args(false)
      ->check(CLI::Validator(
          [](const std::string& text) {
            return ParseBias(text).has_value()
                       ? ""
                       : absl::StrCat("'", text, "' is not a token id, '=' and a number");
          },
          ""))
      ->type_name("ID=BIAS")
      ->group(sampling);
}

void GenerationFlags::Apply(client::GenerateRequest& request) const {
  request.max_tokens = request_.max_tokens;
  request.min_tokens = request_.min_tokens;
  request.stop = request_.stop;
  request.stop_token_ids = request_.stop_token_ids;
  if (ignore_eos_) request.ignore_eos = true;
  if (include_stop_) request.include_stop_in_output = true;
  if (no_skip_special_tokens_) request.skip_special_tokens = false;
  request.temperature = request_.temperature;
  request.top_p = request_.top_p;
  request.top_k = request_.top_k;
  request.min_p = request_.min_p;
  request.repetition_penalty = request_.repetition_penalty;
  request.presence_penalty = request_.presence_penalty;
  request.frequency_penalty = request_.frequency_penalty;
  request.seed = request_.seed;
  for (const std::string& bias : logit_bias_) request.logit_bias.push_back(*ParseBias(bias));
}

}  // namespace ultrasketch::cli
