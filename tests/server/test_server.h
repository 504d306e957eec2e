// A whole server in the test's process: gRPC and metrics on free ports, engine loops over fake
// models.
#ifndef ULTRASKETCH_TESTS_SERVER_TEST_SERVER_H_
#define ULTRASKETCH_TESTS_SERVER_TEST_SERVER_H_

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "google/rpc/error_details.pb.h"
#include "google/rpc/status.pb.h"
#include <grpcpp/grpcpp.h>

#include "server/metrics.h"
#include "server/metrics_endpoint.h"
#include "server/model_host.h"
#include "server/server.h"
#include "tests/serving/engine_loop/fake_model.h"
#include "ultrasketch/v1/generation.grpc.pb.h"
#include "ultrasketch/v1/model.grpc.pb.h"

namespace ultrasketch {

// Holds a fake model's steps up. Thread-safe; open at first.
class Gate {
 public:
  void Close();
  void Open();
  // Lets `num_steps` more steps through, then closes.
  void LetThrough(int num_steps);
  // Waits until a step is held up.
  void WaitForStep();

  // For FakeModelOptions::before_forward.
  std::function<absl::Status(int64_t)> Hook();

 private:
  bool Blocks() const ABSL_SHARED_LOCKS_REQUIRED(mutex_) { return num_allowed_ == 0; }
  bool Passes() const ABSL_SHARED_LOCKS_REQUIRED(mutex_) { return num_allowed_ != 0; }
  bool IsWaiting() const ABSL_SHARED_LOCKS_REQUIRED(mutex_) { return is_waiting_; }

  absl::Mutex mutex_;
  int num_allowed_ ABSL_GUARDED_BY(mutex_) = -1;  // -1: any
  bool is_waiting_ ABSL_GUARDED_BY(mutex_) = false;
};

// "[user]hello<|end|>[assistant]": the roles "system", "user" and "assistant" alone.
inline constexpr char kTestChatTemplate[] =
    "{% for message in messages %}"
    "{% if message.role not in ['system', 'user', 'assistant'] %}"
    "{{ raise_exception('no role ' + message.role) }}"
    "{% endif %}"
    "{{ '[' + message.role + ']' + message.content + '<|end|>' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}";

struct TestModel {
  std::string name = "small";
  FakeModelOptions model;
  EngineLoopOptions engine_loop;
  GenerationConfig generation_config;
  std::vector<int32_t> eos_token_ids;
  std::shared_ptr<const Tokenizer> tokenizer;  // null: ByteTokenizer()
  std::string chat_template;                   // Jinja; empty: none
};

// With ByteTokenizer a prompt has as many tokens as bytes.
std::shared_ptr<HostedModel> HostTestModel(const TestModel& options, Metrics& metrics);

class TestServer {
 public:
  explicit TestServer(const std::vector<TestModel>& models = {TestModel()},
                      ServerOptions options = {});
  ~TestServer();

  // A new connection.
  std::shared_ptr<grpc::Channel> NewChannel() const;
  std::string address() const { return server_->address().ToString(); }

  v1::GenerationService::Stub& generation() { return *generation_; }
  v1::ModelService::Stub& models() { return *models_; }

  ModelHost& host() { return host_; }
  Server& server() { return *server_; }
  Metrics& metrics() { return metrics_; }
  EngineLoop& engine_loop(const std::string& name = "small");

  // Waits until the model has no requests, and all its KV blocks are free.
  void WaitUntilIdle(const std::string& name = "small");

  // GET /metrics.
  std::string Scrape() const;
  // The value of a sample such as `ultrasketch_requests_total{model="small",code="OK"}`; nullopt
  // when it is not there.
  std::optional<double> Metric(const std::string& sample) const;

  // Ends everything. Called by the destructor.
  void Stop();

 private:
  Metrics metrics_;
  ModelHost host_;
  std::unique_ptr<MetricsEndpoint> endpoint_;
  std::unique_ptr<Server> server_;
  std::unique_ptr<v1::GenerationService::Stub> generation_;
  std::unique_ptr<v1::ModelService::Stub> models_;
};

// The details of an error.
struct ErrorDetails {
  std::vector<std::string> fields;  // of BadRequest
  std::string reason;               // of ErrorInfo
  std::optional<absl::Duration> retry_delay;
};
ErrorDetails DetailsOf(const grpc::Status& status);

// A request of `prompt`, greedy, with this many tokens.
v1::GenerateRequest Request(const std::string& prompt, int max_tokens = 8);

// A conversation of these messages: role and content.
v1::ChatInput Chat(const std::vector<std::pair<std::string, std::string>>& messages);

// The result of a stream that has been read to its end.
struct StreamOutput {
  std::vector<std::string> texts;  // by completion
  std::vector<std::vector<int32_t>> token_ids;
  std::vector<std::optional<v1::GenerateFinal>> finals;
  int num_deltas = 0;
  std::string model;
  grpc::Status status;
};
StreamOutput ReadAll(grpc::ClientReader<v1::GenerateStreamResponse>& reader);
StreamOutput GenerateStream(TestServer& server, const v1::GenerateRequest& request);

}  // namespace ultrasketch

#endif  // ULTRASKETCH_TESTS_SERVER_TEST_SERVER_H_
