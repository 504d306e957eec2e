#include <unistd.h>

#include <algorithm>
#include <iostream>
#include <limits>
#include <optional>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/time/clock.h"

#include "client/cli/chat_messages.h"
#include "client/cli/command.h"
#include "client/cli/connection.h"
#include "client/cli/generation_flags.h"
#include "client/cli/input.h"
#include "client/cli/local_generation.h"
#include "client/cli/local_model.h"
#include "client/cli/output.h"
#include "client/client.h"
#include "engine/base/status.h"
#include "engine/base/strings.h"

namespace ultrasketch::cli {
namespace {

nlohmann::ordered_json ToJson(const std::vector<client::TokenLogprobs>& logprobs) {
  const auto entry = [](const client::TokenLogprob& token) {
    return nlohmann::ordered_json{
        {"token_id", token.token_id},
        {"logprob", token.logprob},
        {"text", token.text},
        {"bytes", std::vector<uint8_t>(token.bytes.begin(), token.bytes.end())}};
  };
  nlohmann::ordered_json list = nlohmann::ordered_json::array();
  for (const client::TokenLogprobs& token : logprobs) {
    nlohmann::ordered_json json = entry(token.token);
    json["top"] = nlohmann::ordered_json::array();
    for (const client::TokenLogprob& top : token.top) json["top"].push_back(entry(top));
    list.push_back(std::move(json));
  }
  return list;
}

nlohmann::ordered_json ToJson(const client::Completion& completion) {
  nlohmann::ordered_json json = {
      {"text", completion.text},
      {"token_ids", completion.token_ids},
      {"finish_reason", client::FinishReasonName(completion.finish_reason)},
  };
  if (!completion.stop_string.empty()) json["stop_string"] = completion.stop_string;
  if (!completion.logprobs.empty()) json["logprobs"] = ToJson(completion.logprobs);
  return json;
}

// Tokens after the first of each completion, over the time that they took; 0 when there are none.
double TokensPerSecond(const client::GenerateResponse& response) {
  const double seconds = absl::ToDoubleSeconds(response.timing.decode);
  const auto later_tokens = static_cast<double>(response.usage.completion_tokens) -
                            static_cast<double>(response.completions.size());
  return seconds > 0 && later_tokens > 0 ? later_tokens / seconds : 0;
}

class GenerateCommand : public Command {
 public:
  const char* name() const override { return "generate"; }
  const char* summary() const override { return "Continue a text, here or on a server"; }

  void Declare(CLI::App& app) override {
    app.add_option("--model", model_, "Model folder; with --target the model's name on the server")
        ->type_name("DIR|NAME");
    connection_.Declare(app, "Generate on this server");
    app.add_option("--prompt", prompt_, "The text to continue; - for standard input, byte for byte")
        ->type_name("TEXT");
    app.add_option("--prompt-file", prompt_file_, "The text to continue, from a file or a pipe")
        ->type_name("FILE");
    app.add_option("--messages", messages_,
                   "The conversation to continue, from a file; - for standard input: a JSON array "
                   "of objects with role and content")
        ->type_name("FILE");

    generation_.Declare(app);
    const char* special = kSpecialTokensGroup;
    app.add_flag("--split-special-tokens", split_special_tokens_,
                 "Take spellings of special tokens in the prompt for ordinary text")
        ->group(special);
    app.add_flag("--no-add-special-tokens,--no-special-tokens", no_add_special_tokens_,
                 "Do not add the tokens that the model expects around a text")
        ->group(special);
    const char* sampling = kSamplingGroup;
    app.add_option("--n", request_.num_completions, "Completions of the prompt")->group(sampling);
    app.add_option("--logprobs", request_.logprobs,
                   "Log-probabilities of the tokens and of this many alternatives (with --json)")
        ->group(sampling);

    DeclareTimeout(app, timeout_seconds_);
    DeclareDeviceOptions(app, local_);
    app.footer(
        "Examples:\n"
        "  ultrasketch generate --model models/classics-6m --prompt 'It was' --max-tokens 40\n"
        "  ultrasketch generate --target localhost:8001 --prompt 'It was' --seed 7 --json\n"
        "  echo '[{\"role\": \"user\", \"content\": \"Hello\"}]' |\n"
        "    ultrasketch generate --target localhost:8001 --messages -\n"
        "\n"
        "Without --json the text comes as it is generated, and a summary on standard error.");
  }

  std::string UsageError() const override {
    if (connection_.target().empty() && model_.empty()) {
      return "--model DIR or --target HOST:PORT is required";
    }
    if (prompt_.has_value() + prompt_file_.has_value() + messages_.has_value() != 1) {
      return "one of --prompt, --prompt-file and --messages is required";
    }
    if (messages_.has_value() && (split_special_tokens_ || no_add_special_tokens_)) {
      return "--split-special-tokens and --no-add-special-tokens are about a text, not --messages: "
             "the model's template adds all there is to add";
    }
    return connection_.UsageError();
  }

  absl::Status Run(const Environment& environment) override {
    US_ASSIGN_OR_RETURN(request_.prompt, ReadPrompt(environment));
    generation_.Apply(request_);
    if (split_special_tokens_) request_.split_special_tokens = true;
    if (no_add_special_tokens_) request_.add_special_tokens = false;
    const bool stream_text = !environment.json && request_.num_completions.value_or(1) == 1;
    const bool on_terminal = isatty(STDOUT_FILENO) != 0;

    // The environment's stop and the loss of the reader both end the generation.
    std::stop_source stop;
    const std::stop_callback on_interrupt(environment.stop, [&stop] { stop.request_stop(); });
    client::CallOptions options;
    options.stop = stop.get_token();
    options.timeout = absl::Seconds(timeout_seconds_);

    absl::Status written;
    bool at_line_start = true;
    absl::Time first_token = absl::InfiniteFuture();
    const auto on_delta = [&](const client::GenerateDelta& delta) {
      if (!delta.token_ids.empty()) first_token = std::min(first_token, absl::Now());
      if (!stream_text || delta.text.empty() || !written.ok()) return;
      written = WriteOutput(on_terminal ? ForTerminal(delta.text) : delta.text);
      if (!written.ok()) stop.request_stop();
      at_line_start = delta.text.back() == '\n';
    };

    absl::Time start;
    absl::StatusOr<client::GenerateResponse> response;
    if (connection_.target().empty()) {
      local_.folder = model_;
      US_ASSIGN_OR_RETURN(const auto generation, LocalGeneration::Prepare(local_, request_));
      start = absl::Now();
      response = generation->Run(on_delta, options);
    } else {
      request_.model = model_;
      US_ASSIGN_OR_RETURN(const auto client, connection_.Connect(environment.stop));
      start = absl::Now();
      response = client->GenerateStream(request_, on_delta, options);
    }
    US_RETURN_IF_ERROR(written);
    if (stream_text && !at_line_start) US_RETURN_IF_ERROR(WriteOutput("\n"));
    US_RETURN_IF_ERROR(response.status());

    const absl::Duration time_to_first_token =
        first_token == absl::InfiniteFuture() ? absl::ZeroDuration() : first_token - start;
    if (environment.json) return WriteJson(ToJson(*response, time_to_first_token));
    if (!stream_text) {
      for (size_t i = 0; i < response->completions.size(); ++i) {
        const std::string& text = response->completions[i].text;
        US_RETURN_IF_ERROR(WriteOutput(
            absl::StrCat("--- ", i, "\n", on_terminal ? ForTerminal(text) : text, "\n")));
      }
    }
    std::cerr << Summary(*response, time_to_first_token) << "\n";
    return absl::OkStatus();
  }

 private:
  absl::StatusOr<client::Prompt> ReadPrompt(const Environment& environment) const {
    if (messages_.has_value()) return ReadMessages(*messages_, environment.stop);
    if (prompt_.has_value() && *prompt_ != "-") return *prompt_;
    US_ASSIGN_OR_RETURN(std::string text, prompt_file_.has_value()
                                              ? ReadInput(*prompt_file_, environment.stop)
                                              : ReadStandardInput(environment.stop));
    return text;
  }

  static nlohmann::ordered_json ToJson(const client::GenerateResponse& response,
                                       absl::Duration time_to_first_token) {
    nlohmann::ordered_json json = cli::ToJson(response.completions.front());
    if (response.completions.size() > 1) {
      json["completions"] = nlohmann::ordered_json::array();
      for (const auto& completion : response.completions) {
        json["completions"].push_back(cli::ToJson(completion));
      }
    }
    json["usage"] = {{"prompt_tokens", response.usage.prompt_tokens},
                     {"completion_tokens", response.usage.completion_tokens},
                     {"total_tokens", response.usage.total_tokens}};
    const client::Timing& timing = response.timing;
    json["timing"] = {{"queue_seconds", absl::ToDoubleSeconds(timing.queue)},
                      {"prefill_seconds", absl::ToDoubleSeconds(timing.prefill)},
                      {"decode_seconds", absl::ToDoubleSeconds(timing.decode)},
                      {"time_to_first_token_seconds", absl::ToDoubleSeconds(time_to_first_token)},
                      {"tokens_per_second", TokensPerSecond(response)},
                      {"steps", timing.steps},
                      {"mean_batch_size", timing.mean_batch_size}};
    json["seed"] = response.seed;
    return json;
  }

  static std::string Summary(const client::GenerateResponse& response,
                             absl::Duration time_to_first_token) {
    return absl::StrFormat(
        "[%d prompt + %d new tokens, first after %.1f ms, then %.1f tokens/s; %s; seed %d]",
        response.usage.prompt_tokens, response.usage.completion_tokens,
        absl::ToDoubleMilliseconds(time_to_first_token), TokensPerSecond(response),
        std::string(client::FinishReasonName(response.completions.front().finish_reason)),
        response.seed);
  }

  std::string model_;
  Connection connection_;
  std::optional<std::string> prompt_;
  std::optional<std::string> prompt_file_;
  std::optional<std::string> messages_;
  GenerationFlags generation_;
  bool split_special_tokens_ = false;
  bool no_add_special_tokens_ = false;
  double timeout_seconds_ = std::numeric_limits<double>::infinity();
  LocalModelOptions local_;
  client::GenerateRequest request_;
};

}  // namespace

std::unique_ptr<Command> MakeGenerateCommand() { return std::make_unique<GenerateCommand>(); }

}  // namespace ultrasketch::cli
