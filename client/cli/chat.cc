#include <unistd.h>

#include <algorithm>
#include <functional>
#include <iostream>
#include <iterator>
#include <limits>
#include <memory>
#include <optional>
#include <stop_token>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"

#include "client/cli/chat_backend.h"
#include "client/cli/command.h"
#include "client/cli/connection.h"
#include "client/cli/generation_flags.h"
#include "client/cli/line_reader.h"
#include "client/cli/output.h"
#include "engine/base/mutex.h"
#include "engine/base/status.h"
#include "engine/base/strings.h"

namespace ultrasketch::cli {
namespace {

// What an answer should have room for when --max-tokens does not say it.
constexpr int64_t kAnswerTokens = 128;

constexpr char kCommands[] =
    "  /system TEXT  set the system message; without TEXT, show it\n"
    "  /reset        forget the conversation, but for the system message\n"
    "  /help         list the commands\n"
    "  /quit         leave, as Ctrl-D does\n"
    "A line that ends with \\ goes on in the next one; //TEXT says /TEXT.\n"
    "Ctrl-C ends the answer; once more, it leaves.\n"
    "rlwrap ultrasketch chat ... lets you edit lines, and go back to earlier ones.\n";

// What was said.
class Conversation {
 public:
  explicit Conversation(std::string system) : system_(std::move(system)) {}

  const std::string& system() const { return system_; }
  void set_system(std::string text) { system_ = std::move(text); }

  void Add(const char* role, std::string content) { turns_.push_back({role, std::move(content)}); }
  void Clear() { turns_.clear(); }

  // Forgets the oldest question and its answer, never the last question. The number of messages.
  int DropOldest() {
    const auto next =
        std::find_if(turns_.begin() + std::min<ptrdiff_t>(1, std::ssize(turns_)), turns_.end(),
                     [](const client::ChatMessage& turn) { return turn.role == "user"; });
    if (next == turns_.end()) return 0;
    const auto count = static_cast<int>(next - turns_.begin());
    turns_.erase(turns_.begin(), next);
    return count;
  }

  client::Chat ToChat() const {
    client::Chat chat;
    if (!system_.empty()) chat.messages.push_back({"system", system_});
    chat.messages.insert(chat.messages.end(), turns_.begin(), turns_.end());
    return chat;
  }

 private:
  std::string system_;
  std::vector<client::ChatMessage> turns_;
};

// Questions from standard input, answers to standard output. On a terminal errors are shown and the
// session goes on; otherwise they end it.
class ChatSession {
 public:
  ChatSession(const Environment& environment, ChatBackend& backend, client::GenerateRequest request,
              absl::Duration timeout, std::string system)
      : environment_(environment),
        backend_(backend),
        request_(std::move(request)),
        timeout_(timeout),
        is_interactive_(!environment.json && isatty(STDIN_FILENO) != 0 &&
                        isatty(STDOUT_FILENO) != 0),
        conversation_(std::move(system)),
        reader_(STDIN_FILENO),
        on_stop_(environment.stop, [this] { reader_.Wake(); }) {
    if (is_interactive_) environment_.interrupt->HandleInterrupts([this] { OnInterrupt(); });
  }
  ~ChatSession() {
    if (is_interactive_) environment_.interrupt->HandleInterrupts(nullptr);
  }

  absl::Status Run() {
    if (is_interactive_) {
      Notice(absl::StrCat("Chatting with ", backend_.name(),
                          ". /help lists the commands, Ctrl-D leaves."));
    }
    std::string question;
    while (true) {
      if (is_interactive_) US_RETURN_IF_ERROR(WriteOutput(question.empty() ? "> " : ". "));
      std::string line;
      US_ASSIGN_OR_RETURN(const LineReader::Event event, reader_.Next(&line));
      if (event == LineReader::Event::kEnd) {
        if (!question.empty()) US_RETURN_IF_ERROR(Say(std::exchange(question, "")));
        if (is_interactive_) US_RETURN_IF_ERROR(WriteOutput("\n"));
        break;
      }
      if (event == LineReader::Event::kWoken) {
        if (environment_.stop.stop_requested()) return absl::CancelledError("the chat was stopped");
        US_RETURN_IF_ERROR(WriteOutput("\n"));
        if (NumInterrupts() > 1) break;
        Notice("(Ctrl-C again, Ctrl-D or /quit leaves)");
        reader_.DropPartialLine();
        question.clear();
        continue;
      }
      ForgetInterrupts();
      if (is_interactive_ && line.find('\x1b') != std::string::npos) {
        Notice(
            "(not sent: the line has the codes of keys that move the cursor; for editing and a "
            "history of lines: rlwrap ultrasketch chat ...)");
        question.clear();
        continue;
      }
      if (absl::EndsWith(line, "\\")) {
        line.back() = '\n';
        question += line;
        continue;
      }
      question += line;
      bool leaves = false;
      US_RETURN_IF_ERROR(Handle(std::exchange(question, ""), &leaves));
      if (leaves) break;
    }
    return environment_.json ? WriteJson(ToJson()) : absl::OkStatus();
  }

 private:
  // On the thread of the signals.
  void OnInterrupt() {
    MutexLock lock(mutex_);
    ++num_interrupts_;
    if (answer_stop_.has_value()) {
      answer_stop_->request_stop();
    } else {
      reader_.Wake();
    }
  }
  int NumInterrupts() {
    MutexLock lock(mutex_);
    return num_interrupts_;
  }
  void ForgetInterrupts() {
    MutexLock lock(mutex_);
    num_interrupts_ = 0;
  }

  static void Notice(std::string_view text) { std::cerr << text << std::endl; }

  absl::Status Handle(const std::string& line, bool* leaves) {
    absl::string_view text = line;
    if (absl::StripAsciiWhitespace(text).empty()) return absl::OkStatus();
    if (!absl::ConsumePrefix(&text, "/")) return Say(line);
    if (absl::StartsWith(text, "/")) return Say(std::string(text));
    const absl::string_view command = text.substr(0, text.find_first_of(" \t\n"));
    const absl::string_view argument = absl::StripAsciiWhitespace(text.substr(command.size()));
    if (command == "quit" || command == "exit") {
      *leaves = true;
    } else if (command == "reset") {
      conversation_.Clear();
      Notice("(the conversation begins anew)");
    } else if (command == "system") {
      if (!argument.empty()) conversation_.set_system(std::string(argument));
      Notice(conversation_.system().empty()
                 ? "(no system message)"
                 : absl::StrCat("(system: ", ForTerminal(conversation_.system()), ")"));
    } else if (command == "help") {
      std::cerr << kCommands << std::flush;
    } else {
      return Fail(absl::InvalidArgumentError(absl::StrCat(
          "there is no command ", Quoted(absl::StrCat("/", command), 64), "; /help lists them")));
    }
    return absl::OkStatus();
  }

  // An error of one question.
  absl::Status Fail(const absl::Status& status) const {
    if (!is_interactive_ || environment_.stop.stop_requested() || IsBrokenPipe(status)) {
      return status;
    }
    Notice(absl::StrCat("error: ", status.message()));
    return absl::OkStatus();
  }

  absl::Status Say(std::string question) {
    client::CallOptions options;
    options.timeout = timeout_;
    {
      MutexLock lock(mutex_);
      options.stop = answer_stop_.emplace().get_token();
    }
    const std::stop_callback on_stop(environment_.stop, [this] {
      MutexLock lock(mutex_);
      if (answer_stop_.has_value()) answer_stop_->request_stop();
    });
    const Conversation before = conversation_;
    conversation_.Add("user", std::move(question));
    std::string answer;
    const absl::Status status = Answer(options, &answer);
    bool interrupted = false;
    {
      MutexLock lock(mutex_);
      interrupted = absl::IsCancelled(status) && answer_stop_->stop_requested() &&
                    num_interrupts_ > 0 && !environment_.stop.stop_requested();
      answer_stop_.reset();
    }
    if (interrupted && answer.empty()) US_RETURN_IF_ERROR(WriteOutput("\n"));
    // A template may want questions and answers in turn: no question stays without an answer.
    if ((status.ok() || interrupted) && !answer.empty()) {
      conversation_.Add("assistant", std::move(answer));
    } else {
      conversation_ = before;
    }
    if (!interrupted) return status.ok() ? status : Fail(status);
    Notice("(the answer was interrupted; Ctrl-C again leaves)");
    return absl::OkStatus();
  }

  // Streams the answer to the conversation. `answer` gets what has come, also with an error.
  absl::Status Answer(client::CallOptions options, std::string* answer) {
    // `options.stop` ends the call, and so does the loss of the reader.
    std::stop_source stop;
    const std::stop_callback on_stop(options.stop, [&stop] { stop.request_stop(); });
    options.stop = stop.get_token();
    US_RETURN_IF_ERROR(MakeRoom(options));
    request_.prompt = conversation_.ToChat();
    absl::Status written;
    const auto response = backend_.GenerateStream(
        request_,
        [&](const client::GenerateDelta& delta) {
          *answer += delta.text;
          if (environment_.json || !written.ok()) return;
          written = WriteOutput(is_interactive_ ? ForTerminal(delta.text) : delta.text);
          if (!written.ok()) stop.request_stop();
        },
        options);
    US_RETURN_IF_ERROR(written);
    const bool ends_line = !environment_.json && (response.ok() || !answer->empty());
    if (ends_line && !absl::EndsWith(*answer, "\n")) US_RETURN_IF_ERROR(WriteOutput("\n"));
    US_RETURN_IF_ERROR(response.status());
    num_prompt_tokens_ += response->usage.prompt_tokens;
    num_completion_tokens_ += response->usage.completion_tokens;
    if (is_interactive_ &&
        response->completions.front().finish_reason == client::FinishReason::kLength) {
      Notice("(the answer is cut: --max-tokens, or the model's context)");
    }
    return absl::OkStatus();
  }

  // Forgets the oldest questions and answers until the prompt and an answer fit the context. What
  // does not fit then is the server's to refuse.
  absl::Status MakeRoom(const client::CallOptions& options) {
    const int64_t context = backend_.max_context_tokens();
    const int64_t wanted = request_.max_tokens.value_or(kAnswerTokens);
    const int64_t most =
        context - std::clamp<int64_t>(wanted, 1, std::max<int64_t>(context / 2, 1));
    int num_dropped = 0;
    int64_t count = 0;
    while (true) {
      US_ASSIGN_OR_RETURN(count, backend_.CountTokens(conversation_.ToChat(), options));
      if (count <= most) break;
      const int dropped = conversation_.DropOldest();
      if (dropped == 0) break;
      num_dropped += dropped;
    }
    if (num_dropped > 0 && count < context) {
      Notice(absl::StrCat("(the oldest ", num_dropped,
                          " messages are forgotten: the model's context is ", context, " tokens)"));
    }
    return absl::OkStatus();
  }

  nlohmann::ordered_json ToJson() const {
    nlohmann::ordered_json messages = nlohmann::ordered_json::array();
    for (const client::ChatMessage& message : conversation_.ToChat().messages) {
      messages.push_back({{"role", message.role}, {"content", message.content}});
    }
    return {{"model", backend_.name()},
            {"messages", messages},
            {"usage",
             {{"prompt_tokens", num_prompt_tokens_},
              {"completion_tokens", num_completion_tokens_},
              {"total_tokens", num_prompt_tokens_ + num_completion_tokens_}}}};
  }

  const Environment& environment_;
  ChatBackend& backend_;
  client::GenerateRequest request_;
  const absl::Duration timeout_;
  const bool is_interactive_;
  Conversation conversation_;
  int64_t num_prompt_tokens_ = 0;  // of all answers
  int64_t num_completion_tokens_ = 0;

  Mutex mutex_;
  int num_interrupts_ ABSL_GUARDED_BY(mutex_) = 0;                       // since the last line
  std::optional<std::stop_source> answer_stop_ ABSL_GUARDED_BY(mutex_);  // while there is one

  LineReader reader_;
  std::stop_callback<std::function<void()>> on_stop_;  // last: it wakes the reader
};

class ChatCommand : public Command {
 public:
  const char* name() const override { return "chat"; }
  const char* summary() const override { return "Talk with a model, here or on a server"; }

  void Declare(CLI::App& app) override {
    app.add_option("--model", model_, "Model folder; with --target the model's name on the server")
        ->type_name("DIR|NAME");
    connection_.Declare(app, "Talk with a model of this server");
    app.add_option("--system", system_, "The system message")->type_name("TEXT");
    generation_.Declare(app);
    DeclareTimeout(app, timeout_seconds_);
    DeclareDeviceOptions(app, local_);
    app.footer(absl::StrCat(
        "Examples:\n"
        "  ultrasketch chat --target localhost:8001 --model NAME --system 'Answer in one line.'\n"
        "  echo 'Who are you?' | ultrasketch chat --model models/smollm2 --temperature 0\n"
        "\n"
        "Each line is a question; those that begin with / are commands:\n",
        kCommands, "\n--timeout is for each answer. With --json nothing is shown until the end."));
  }

  std::string UsageError() const override {
    if (connection_.target().empty() && model_.empty()) {
      return "--model DIR or --target HOST:PORT is required";
    }
    return connection_.UsageError();
  }

  absl::Status Run(const Environment& environment) override {
    const absl::Duration timeout = absl::Seconds(timeout_seconds_);
    local_.folder = model_;
    std::unique_ptr<ChatBackend> backend;
    if (connection_.target().empty()) {
      US_ASSIGN_OR_RETURN(backend, OpenLocalChat(local_));
    } else {
      US_ASSIGN_OR_RETURN(auto client, connection_.Connect(environment.stop));
      US_ASSIGN_OR_RETURN(backend, OpenRemoteChat(std::move(client), model_,
                                                  {.timeout = timeout, .stop = environment.stop}));
    }
    client::GenerateRequest request;
    generation_.Apply(request);
    ChatSession session(environment, *backend, std::move(request), timeout, system_);
    return session.Run();
  }

 private:
  std::string model_;
  Connection connection_;
  std::string system_;
  GenerationFlags generation_;
  double timeout_seconds_ = std::numeric_limits<double>::infinity();
  LocalModelOptions local_;
};

}  // namespace

std::unique_ptr<Command> MakeChatCommand() { return std::make_unique<ChatCommand>(); }

}  // namespace ultrasketch::cli
