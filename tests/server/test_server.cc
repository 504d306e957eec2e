#include "tests/server/test_server.h"

#include <thread>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/time/clock.h"
#include "gtest/gtest.h"

#include "engine/base/check.h"
#include "server/collector.h"
#include "tests/server/raw_grpc.h"
#include "tests/serving/engine_loop/testing.h"

namespace ultrasketch {

void Gate::Close() {
  absl::MutexLock lock(&mutex_);
  num_allowed_ = 0;
}

void Gate::Open() {
  absl::MutexLock lock(&mutex_);
  num_allowed_ = -1;
}

void Gate::LetThrough(int num_steps) {
  absl::MutexLock lock(&mutex_);
  num_allowed_ = num_steps;
}

void Gate::WaitForStep() {
  absl::MutexLock lock(&mutex_);
  mutex_.Await(absl::Condition(this, &Gate::IsWaiting));
}

std::function<absl::Status(int64_t)> Gate::Hook() {
  return [this](int64_t) {
    absl::MutexLock lock(&mutex_);
    if (Blocks()) {
      is_waiting_ = true;
      mutex_.Await(absl::Condition(this, &Gate::Passes));
      is_waiting_ = false;
    }
    if (num_allowed_ > 0) --num_allowed_;
    return absl::OkStatus();
  };
}

std::shared_ptr<HostedModel> HostTestModel(const TestModel& options, Metrics& metrics) {
  auto hosted = std::make_shared<HostedModel>();
  hosted->name = options.name;
  hosted->architecture = "llama";
  hosted->codec = "dense";
  hosted->device = "cpu";
  hosted->num_parameters = 1000;
  hosted->bits_per_weight_linear = 16;
  hosted->bits_per_weight_file = 17.5;
  hosted->max_context_tokens = static_cast<int32_t>(options.model.max_position_embeddings);
  hosted->vocab_size = options.model.vocab_size;
  hosted->generation_config = options.generation_config;
  hosted->eos_token_ids = options.eos_token_ids;
  hosted->tokenizer = options.tokenizer != nullptr ? options.tokenizer : ByteTokenizer();
  if (!options.chat_template.empty()) {
    auto parsed = ChatTemplate::Parse(options.chat_template, "test.jinja", {});
    US_CHECK(parsed.ok());
    hosted->chat_template = std::shared_ptr<const ChatTemplate>(*std::move(parsed));
  }
  hosted->max_token_bytes = LongestTokenBytes(*hosted->tokenizer);
  hosted->metrics = metrics.ForModel(options.name);
  hosted->engine_loop = EngineLoop::Start(std::make_unique<FakeModel>(options.model),
                                          hosted->tokenizer, options.engine_loop, hosted->metrics);
  return hosted;
}

TestServer::TestServer(const std::vector<TestModel>& models, ServerOptions options) {
  for (const TestModel& model : models) {
    const absl::Status status = host_.Add(HostTestModel(model, metrics_));
    EXPECT_TRUE(status.ok()) << status;
  }
  auto endpoint = MetricsEndpoint::Start(
      {"127.0.0.1", 0}, {metrics_.collectable(), std::make_shared<StateCollector>(host_)});
  EXPECT_TRUE(endpoint.ok()) << endpoint.status();
  endpoint_ = *std::move(endpoint);
  options.listen = {"127.0.0.1", 0};
  auto server = Server::Start(options, host_, metrics_);
  EXPECT_TRUE(server.ok()) << server.status();
  server_ = *std::move(server);
  generation_ = v1::GenerationService::NewStub(NewChannel());
  models_ = v1::ModelService::NewStub(NewChannel());
}

TestServer::~TestServer() { Stop(); }

void TestServer::Stop() {
  if (server_ == nullptr) return;
  host_.Drain(absl::InfinitePast());
  server_->Shutdown(absl::Now() + absl::Seconds(5));
  server_.reset();
}

std::shared_ptr<grpc::Channel> TestServer::NewChannel() const {
  grpc::ChannelArguments arguments;
  arguments.SetMaxReceiveMessageSize(-1);
  arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
  arguments.SetInt(GRPC_ARG_ENABLE_HTTP_PROXY, 0);
  return grpc::CreateCustomChannel(address(), grpc::InsecureChannelCredentials(), arguments);
}

EngineLoop& TestServer::engine_loop(const std::string& name) {
  return *host_.Get(name)->model->engine_loop;
}

void TestServer::WaitUntilIdle(const std::string& name) {
  EngineLoop& loop = engine_loop(name);
  while (true) {
    const EngineLoopStats stats = loop.stats();
    if (stats.num_running == 0 && stats.num_waiting == 0 && stats.kv_blocks_used == 0) return;
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
}

std::string TestServer::Scrape() const {
  return ExchangeBytes(endpoint_->address().port,
                       "GET /metrics HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n");
}

std::optional<double> TestServer::Metric(const std::string& sample) const {
  for (const absl::string_view line : absl::StrSplit(Scrape(), '\n')) {
    double value = 0;
    const std::pair<absl::string_view, absl::string_view> parts =
        absl::StrSplit(line, absl::MaxSplits(' ', 1));
    if (parts.first == sample && absl::SimpleAtod(parts.second, &value)) return value;
  }
  return std::nullopt;
}

ErrorDetails DetailsOf(const grpc::Status& status) {
  ErrorDetails result;
  google::rpc::Status details;
  EXPECT_TRUE(details.ParseFromString(status.error_details()));
  EXPECT_EQ(details.code(), status.error_code());
  EXPECT_EQ(details.message(), status.error_message());
  for (const google::protobuf::Any& detail : details.details()) {
    google::rpc::BadRequest bad_request;
    google::rpc::ErrorInfo info;
    google::rpc::RetryInfo retry;
    if (detail.UnpackTo(&bad_request)) {
      for (const auto& violation : bad_request.field_violations()) {
        EXPECT_FALSE(violation.description().empty());
        result.fields.push_back(violation.field());
      }
    } else if (detail.UnpackTo(&info)) {
      EXPECT_EQ(info.domain(), "ultrasketch.v1");
      result.reason = info.reason();
    } else if (detail.UnpackTo(&retry)) {
      result.retry_delay = absl::Seconds(retry.retry_delay().seconds()) +
                           absl::Nanoseconds(retry.retry_delay().nanos());
    } else {
      ADD_FAILURE() << "unexpected detail " << detail.type_url();
    }
  }
  return result;
}

v1::GenerateRequest Request(const std::string& prompt, int max_tokens) {
  v1::GenerateRequest request;
  request.set_text(prompt);
  request.set_max_tokens(max_tokens);
  request.set_temperature(0);
  return request;
}

v1::ChatInput Chat(const std::vector<std::pair<std::string, std::string>>& messages) {
  v1::ChatInput chat;
  for (const auto& [role, content] : messages) {
    v1::ChatMessage& message = *chat.add_messages();
    message.set_role(role);
    message.set_content(content);
  }
  return chat;
}

StreamOutput ReadAll(grpc::ClientReader<v1::GenerateStreamResponse>& reader) {
  StreamOutput output;
  const auto grow = [&output](int index) {
    const size_t size = std::max(output.texts.size(), static_cast<size_t>(index) + 1);
    output.texts.resize(size);
    output.token_ids.resize(size);
    output.finals.resize(size);
    return static_cast<size_t>(index);
  };
  v1::GenerateStreamResponse message;
  while (reader.Read(&message)) {
    if (message.has_model()) output.model = message.model();
    if (message.has_delta()) {
      const v1::GenerateDelta& delta = message.delta();
      const size_t index = grow(delta.index());
      EXPECT_FALSE(output.finals[index].has_value()) << "a delta after the end";
      output.texts[index] += delta.text();
      output.token_ids[index].insert(output.token_ids[index].end(), delta.token_ids().begin(),
                                     delta.token_ids().end());
      ++output.num_deltas;
    } else if (message.has_final()) {
      const size_t index = grow(message.final().index());
      EXPECT_FALSE(output.finals[index].has_value()) << "a second end";
      output.finals[index] = message.final();
    } else {
      ADD_FAILURE() << "a message without an event";
    }
  }
  output.status = reader.Finish();
  return output;
}

StreamOutput GenerateStream(TestServer& server, const v1::GenerateRequest& request) {
  grpc::ClientContext context;
  return ReadAll(*server.generation().GenerateStream(&context, request));
}

}  // namespace ultrasketch
