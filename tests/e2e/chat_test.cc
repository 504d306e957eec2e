// `ultrasketch chat` and `generate --messages`.
#include <filesystem>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/clock.h"
#include <gmock/gmock.h>
#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>

#include "engine/base/file.h"
#include "tests/e2e/server.h"
#include "tests/e2e/terminal.h"
#include "tests/e2e/tool.h"
#include "ultrasketch/v1/generation.grpc.pb.h"
#include "ultrasketch/v1/model.grpc.pb.h"

namespace ultrasketch {
namespace {

using ::testing::ElementsAre;
using ::testing::EndsWith;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;
using ::testing::StartsWith;

// "role: content" of each message.
std::vector<std::string> Lines(const v1::ChatInput& chat) {
  std::vector<std::string> lines;
  for (const v1::ChatMessage& message : chat.messages()) {
    lines.push_back(absl::StrCat(message.role(), ": ", message.content()));
  }
  return lines;
}

// A server that answers "answer to QUESTION", and the question "wait" by the beginning of an answer
// that goes on until it is cancelled. A token is a byte.
class FakeServer : public v1::GenerationService::Service, public v1::ModelService::Service {
 public:
  explicit FakeServer(int max_context_tokens = 4096, bool chat = true)
      : max_context_tokens_(max_context_tokens), chat_(chat) {
    int port = 0;
    grpc::ServerBuilder builder;
    builder.AddListeningPort("127.0.0.1:0", grpc::InsecureServerCredentials(), &port);
    builder.RegisterService(static_cast<v1::GenerationService::Service*>(this));
    builder.RegisterService(static_cast<v1::ModelService::Service*>(this));
    server_ = builder.BuildAndStart();
    address = absl::StrCat("127.0.0.1:", port);
  }
  ~FakeServer() override { server_->Shutdown(std::chrono::system_clock::now()); }

  grpc::Status ListModels(grpc::ServerContext*, const v1::ListModelsRequest*,
                          v1::ListModelsResponse* response) override {
    v1::Model& model = *response->add_models();
    model.set_name("talker");
    model.set_state(v1::MODEL_STATE_READY);
    model.set_max_context_tokens(max_context_tokens_);
    model.set_chat(chat_);
    return grpc::Status::OK;
  }

  grpc::Status Tokenize(grpc::ServerContext*, const v1::TokenizeRequest* request,
                        v1::TokenizeResponse* response) override {
    if (!chat_) return {grpc::StatusCode::INVALID_ARGUMENT, "messages: no chat template"};
    for (const std::string& line : Lines(request->messages())) {
      for (size_t i = 0; i < line.size(); ++i) response->add_token_ids(1);
    }
    return grpc::Status::OK;
  }

  grpc::Status GenerateStream(grpc::ServerContext* context, const v1::GenerateRequest* request,
                              grpc::ServerWriter<v1::GenerateStreamResponse>* writer) override {
    {
      absl::MutexLock lock(&mutex_);
      requests_.push_back(*request);
    }
    const auto& messages = request->messages().messages();
    size_t num_tokens = 0;
    for (const std::string& line : Lines(request->messages())) num_tokens += line.size();
    if (num_tokens >= static_cast<size_t>(max_context_tokens_)) {
      return {grpc::StatusCode::INVALID_ARGUMENT, "messages: too long"};
    }
    const std::string question = messages.empty() ? "" : messages.rbegin()->content();
    if (question == "fail") return {grpc::StatusCode::UNAVAILABLE, "out of order"};
    v1::GenerateStreamResponse delta;
    delta.mutable_delta()->set_text(question == "wait" ? "the beginning"
                                                       : absl::StrCat("answer to ", question));
    writer->Write(delta);
    if (question == "wait") {
      while (!context->IsCancelled()) absl::SleepFor(absl::Milliseconds(1));
      return grpc::Status::CANCELLED;
    }
    v1::GenerateStreamResponse end;
    end.mutable_final()->set_finish_reason(v1::FINISH_REASON_STOP);
    end.mutable_final()->mutable_usage()->set_prompt_tokens(7);
    end.mutable_final()->mutable_usage()->set_completion_tokens(2);
    writer->Write(end);
    return grpc::Status::OK;
  }

  std::vector<v1::GenerateRequest> requests() const {
    absl::MutexLock lock(&mutex_);
    return requests_;
  }
  std::vector<std::string> last_messages() const { return Lines(requests().back().messages()); }

  std::string address;

 private:
  const int max_context_tokens_;
  const bool chat_;
  mutable absl::Mutex mutex_;
  std::vector<v1::GenerateRequest> requests_ ABSL_GUARDED_BY(mutex_);
  std::unique_ptr<grpc::Server> server_;
};

std::vector<std::string> ChatLine(const FakeServer& server,
                                  const std::vector<std::string>& more = {}) {
  std::vector<std::string> line = {ULTRASKETCH_BINARY, "chat", "--target", server.address};
  line.insert(line.end(), more.begin(), more.end());
  return line;
}

TEST(ChatTest, LinesFromAPipeAreAnsweredInOneConversation) {
  FakeServer server;
  const Completed run =
      RunProgram(ChatLine(server, {"--system", "Be brief.", "--temperature", "0.5", "--seed", "3"}),
                 "one\n\ntwo");
  EXPECT_EQ(run.exit_code, 0) << run.err;
  EXPECT_EQ(run.out, "answer to one\nanswer to two\n");
  EXPECT_THAT(run.err, IsEmpty());
  EXPECT_THAT(server.last_messages(), ElementsAre("system: Be brief.", "user: one",
                                                  "assistant: answer to one", "user: two"));
  const v1::GenerateRequest request = server.requests().back();
  EXPECT_EQ(request.model(), "talker");
  EXPECT_EQ(request.temperature(), 0.5f);
  EXPECT_EQ(request.seed(), 3u);
  EXPECT_FALSE(request.has_max_tokens());
}

TEST(ChatTest, JsonIsOneObjectAtTheEnd) {
  FakeServer server;
  const Completed run = RunProgram(ChatLine(server, {"--json"}), "one\ntwo\n");
  EXPECT_EQ(run.exit_code, 0) << run.err;
  const nlohmann::json json = ParseOutput(run);
  EXPECT_EQ(json["messages"].size(), 4u);
  EXPECT_EQ(json["messages"][3],
            nlohmann::json({{"role", "assistant"}, {"content", "answer to two"}}));
  EXPECT_EQ(json["usage"]["prompt_tokens"], 14);
  EXPECT_EQ(json["usage"]["completion_tokens"], 4);
}

TEST(ChatTest, CommandsChangeTheConversation) {
  FakeServer server;
  const Completed run = RunProgram(ChatLine(server),
                                   "one\n/system Be kind.\n/reset\ntwo \\\nlines\n//quit\n/help\n"
                                   "/quit\nthree\n");
  EXPECT_EQ(run.exit_code, 0) << run.err;
  EXPECT_EQ(run.out, "answer to one\nanswer to two \nlines\nanswer to /quit\n");
  EXPECT_THAT(run.err, HasSubstr("/system TEXT"));
  EXPECT_THAT(server.last_messages(),
              ElementsAre("system: Be kind.", "user: two \nlines",
                          "assistant: answer to two \nlines", "user: /quit"));
}

TEST(ChatTest, ErrorsEndAPipe) {
  FakeServer server;
  const Completed failed = RunProgram(ChatLine(server), "one\nfail\ntwo\n");
  EXPECT_EQ(failed.exit_code, 1);
  EXPECT_EQ(failed.out, "answer to one\n");
  EXPECT_THAT(failed.err, HasSubstr("out of order"));
  const Completed unknown = RunProgram(ChatLine(server), "/frobnicate\n");
  EXPECT_EQ(unknown.exit_code, 1);
  EXPECT_THAT(unknown.err, HasSubstr("there is no command \"/frobnicate\""));
}

TEST(ChatTest, AModelWithoutATemplateIsRefusedAtOnce) {
  FakeServer server(4096, /*chat=*/false);
  const Completed run = RunProgram(ChatLine(server), "one\n");
  EXPECT_EQ(run.exit_code, 1);
  EXPECT_THAT(run.err, HasSubstr("messages: no chat template"));
  EXPECT_THAT(server.requests(), IsEmpty());
}

TEST(ChatTest, TheOldestQuestionsAreForgottenWhereTheContextIsFull) {
  FakeServer server(150);
  const std::string long_question(30, 'x');
  const Completed run =
      RunProgram(ChatLine(server, {"--system", "Be brief.", "--max-tokens", "10"}),
                 absl::StrCat("one\n", long_question, "\n", "two\n"));
  EXPECT_EQ(run.exit_code, 0) << run.err;
  EXPECT_THAT(run.err,
              HasSubstr("the oldest 2 messages are forgotten: the model's context is 150"));
  EXPECT_THAT(server.last_messages().front(), "system: Be brief.");
  EXPECT_THAT(server.last_messages(), Not(::testing::Contains("user: one")));
  EXPECT_THAT(server.last_messages().back(), "user: two");
}

TEST(ChatTest, AQuestionThatNeverFitsForgetsNothing) {
  FakeServer server(150);
  Terminal terminal(ChatLine(server, {"--max-tokens", "10"}));
  terminal.Await("> ");
  terminal.Type("one\n");
  terminal.Await("answer to one");
  terminal.Await("> ");
  terminal.Type(absl::StrCat(std::string(200, 'x'), "\n"));
  terminal.Await("error: messages: too long");
  terminal.Await("> ");
  terminal.Type("two\n");
  terminal.Await("answer to two");
  EXPECT_THAT(server.last_messages(),
              ElementsAre("user: one", "assistant: answer to one", "user: two"));
  terminal.Await("> ");
  terminal.Type("\x04");
  EXPECT_EQ(terminal.Wait(), 0);
}

TEST(ChatTest, CodesOfCursorKeysAreNotSent) {
  FakeServer server;
  Terminal terminal(ChatLine(server));
  terminal.Await("> ");
  terminal.Type("\x1b[Aone\n");
  terminal.Await("not sent");
  terminal.Await("> ");
  terminal.Type("two\n");
  terminal.Await("answer to two");
  EXPECT_THAT(server.last_messages(), ElementsAre("user: two"));
  terminal.Await("> ");
  terminal.Type("\x04");
  EXPECT_EQ(terminal.Wait(), 0);
}

TEST(ChatTest, CtrlCEndsTheAnswerAndNotTheSession) {
  FakeServer server;
  Terminal terminal(ChatLine(server));
  terminal.Await("Chatting with talker");
  terminal.Await("> ");
  terminal.Type("wait\n");
  terminal.Await("the beginning");
  terminal.Type("\x03");
  terminal.Await("the answer was interrupted");
  terminal.Await("> ");
  terminal.Type("one\n");
  terminal.Await("answer to one");
  terminal.Await("> ");
  // What there was of the answer stays in the conversation.
  EXPECT_THAT(server.last_messages(),
              ElementsAre("user: wait", "assistant: the beginning", "user: one"));
  terminal.Type("\x04");
  EXPECT_EQ(terminal.Wait(), 0);
}

TEST(ChatTest, ASecondCtrlCLeaves) {
  FakeServer server;
  Terminal terminal(ChatLine(server));
  terminal.Await("> ");
  terminal.Type("half a quest\x03");
  terminal.Await("Ctrl-C again");
  terminal.Await("> ");
  terminal.Type("one\n");
  terminal.Await("answer to one");
  EXPECT_THAT(server.last_messages(), ElementsAre("user: one"));
  terminal.Await("> ");
  terminal.Type("\x03");
  terminal.Await("Ctrl-C again");
  terminal.Await("> ");
  terminal.Type("\x03");
  EXPECT_EQ(terminal.Wait(), 0);
}

TEST(ChatTest, OnATerminalAnErrorEndsNothing) {
  FakeServer server;
  Terminal terminal(ChatLine(server));
  terminal.Await("> ");
  terminal.Type("fail\n");
  terminal.Await("error: out of order");
  terminal.Await("> ");
  terminal.Type("/frobnicate\n");
  terminal.Await("there is no command");
  terminal.Await("> ");
  terminal.Type("one\n");
  terminal.Await("answer to one");
  EXPECT_THAT(server.last_messages(), ElementsAre("user: one"));
  terminal.Await("> ");
  terminal.Type("/quit\n");
  EXPECT_EQ(terminal.Wait(), 0);
}

TEST(ChatTest, SigtermEndsTheSession) {
  FakeServer server;
  Process process(ChatLine(server), "wait\n");
  ASSERT_TRUE(process.WaitFor(
      [](const std::string& out, const std::string&) { return out == "the beginning"; },
      absl::Minutes(1)));
  process.Signal(SIGTERM);
  EXPECT_EQ(process.Wait(absl::Minutes(1)), 1);
  EXPECT_THAT(process.err(), HasSubstr("interrupted"));
}

// A folder with a model and a chat template.
class ChatModel {
 public:
  ChatModel() {
    for (const auto& entry : std::filesystem::directory_iterator(SAMPLE_MODEL_DIR)) {
      std::filesystem::create_symlink(
          std::filesystem::absolute(entry.path()),
          std::filesystem::path(folder_.path()) / entry.path().filename());
    }
    const absl::Status written = WriteFileAtomically(
        absl::StrCat(folder_.path(), "/chat_template.jinja"),
        "{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}"
        "{% if add_generation_prompt %}assistant:{% endif %}");
    EXPECT_TRUE(written.ok()) << written;
  }
  const std::string& path() const { return folder_.path(); }

 private:
  TemporaryFolder folder_;
};

TEST(ChatTest, AModelHereAndOnAServerGiveTheSameAnswers) {
  const ChatModel model;
  const std::vector<std::string> options = {"--temperature", "0", "--max-tokens", "20"};
  const auto chat = [&](std::vector<std::string> line) {
    line.insert(line.begin(), "chat");
    line.insert(line.end(), options.begin(), options.end());
    return RunTool(line, "Who are you?\nWhere is the ship?\n");
  };
  const Completed here = chat({"--model", model.path()});
  EXPECT_EQ(here.exit_code, 0) << here.err;
  EXPECT_THAT(here.out, Not(IsEmpty()));
  TestServer server({absl::StrCat("m=", model.path())});
  const Completed there = chat({"--target", server.address(), "--model", "m"});
  EXPECT_EQ(there.exit_code, 0) << there.err;
  EXPECT_EQ(there.out, here.out);
  const Completed models = RunTool({"models", "list", "--target", server.address(), "--json"});
  EXPECT_EQ(ParseOutput(models)["models"][0]["chat"], true);
}

TEST(ChatTest, GenerateContinuesAConversation) {
  const ChatModel model;
  const std::string messages = R"([{"role": "user", "content": "Who are you?"}])";
  const std::string file = absl::StrCat(model.path(), "/messages.json");
  ASSERT_TRUE(WriteFileAtomically(file, messages).ok());
  const auto generate = [&](std::vector<std::string> line, const std::string& input = "") {
    line.insert(line.begin(), "generate");
    line.insert(line.end(), {"--temperature", "0", "--max-tokens", "20", "--json"});
    return RunTool(line, input);
  };
  const nlohmann::json by_text =
      ParseOutput(generate({"--model", model.path(), "--no-add-special-tokens", "--prompt",
                            "user: Who are you?\nassistant:"}));
  const nlohmann::json by_file =
      ParseOutput(generate({"--model", model.path(), "--messages", file}));
  EXPECT_EQ(by_file["token_ids"], by_text["token_ids"]);
  EXPECT_EQ(by_file["usage"], by_text["usage"]);
  TestServer server({absl::StrCat("m=", model.path())});
  const nlohmann::json by_server =
      ParseOutput(generate({"--target", server.address(), "--messages", "-"}, messages));
  EXPECT_EQ(by_server["token_ids"], by_text["token_ids"]);
}

TEST(ChatTest, MessagesThatAreNoneAreNamed) {
  const auto error_of = [](const std::string& input) {
    const Completed run =
        RunTool({"generate", "--model", SAMPLE_MODEL_DIR, "--messages", "-"}, input);
    EXPECT_EQ(run.exit_code, 1);
    return run.err;
  };
  EXPECT_THAT(error_of("{}"), HasSubstr("standard input: expected an array of messages"));
  EXPECT_THAT(error_of("["), HasSubstr("standard input"));
  EXPECT_THAT(error_of("[1]"), HasSubstr("message 0: expected an object"));
  EXPECT_THAT(error_of(R"([{"role": "user"}])"), HasSubstr("message 0 has no content"));
  EXPECT_THAT(error_of(R"([{"role": "user", "content": 5}])"),
              HasSubstr("message 0: content: expected a string"));
  EXPECT_THAT(error_of(R"([{"role": "user", "content": "x", "name": "y"}])"),
              HasSubstr("message 0: expected role and content alone, found \"name\""));
  // The sample model has no template.
  EXPECT_THAT(error_of(R"([{"role": "user", "content": "x"}])"),
              HasSubstr("messages: the model has no chat template"));
}

}  // namespace
}  // namespace ultrasketch
