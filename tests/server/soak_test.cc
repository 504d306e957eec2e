// A live server under requests of all kinds with random fields, deadlines and cancellations. Runs
// for two seconds, or as many as ULTRASKETCH_TEST_SECONDS says; ULTRASKETCH_TEST_SEED repeats a
// run's requests.
#include <atomic>
#include <cmath>
#include <cstdlib>
#include <limits>
#include <memory>
#include <random>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "inference/inference_service.grpc.pb.h"
#include <google/protobuf/descriptor.h>
#include <google/protobuf/message.h>

#include "server/process_stats.h"
#include "tests/server/test_server.h"

namespace ultrasketch {
namespace {

using google::protobuf::FieldDescriptor;
using google::protobuf::Message;
using google::protobuf::Reflection;
using ::testing::AnyOf;

int64_t FromEnvironment(const char* name, int64_t otherwise) {
  const char* text = std::getenv(name);
  int64_t value = 0;
  return text != nullptr && absl::SimpleAtoi(text, &value) ? value : otherwise;
}

// Draws what a careless or a hostile client might send.
class Hostile {
 public:
  explicit Hostile(uint64_t seed) : random_(seed) {}

  int Below(int end) { return static_cast<int>(random_() % static_cast<uint64_t>(end)); }
  bool OneIn(int n) { return Below(n) == 0; }

  template <typename Number>
  Number Integer() {
    constexpr Number kValues[] = {0,
                                  1,
                                  2,
                                  static_cast<Number>(-1),
                                  20,
                                  255,
                                  300,
                                  std::numeric_limits<Number>::min(),
                                  std::numeric_limits<Number>::max()};
    return OneIn(4) ? static_cast<Number>(random_()) : kValues[Below(std::size(kValues))];
  }

  double Real() {
    constexpr double kValues[] = {0,
                                  1,
                                  0.5,
                                  -1,
                                  2,
                                  100,
                                  1e38,
                                  1e-45,
                                  -0.0,
                                  1e300,
                                  std::numeric_limits<double>::infinity(),
                                  std::numeric_limits<double>::quiet_NaN()};
    return kValues[Below(std::size(kValues))];
  }

  // UTF-8, as protobuf wants it; what is not is HostileInputTest's.
  std::string Text() {
    switch (Below(6)) {
      case 0:
        return "";
      case 1:
        return std::string(static_cast<size_t>(Below(20'000)), 'x');
      case 2:
        return std::string("\0<|end|>\xF0\x9F\x98\x80\r\n", 15);
      case 3:
        return "small";  // the model's name
      default:
        return std::string(static_cast<size_t>(1 + Below(40)), 'a');
    }
  }

  // Sets some fields of the message and of those in it, those of oneofs among them.
  void Fill(Message& message, int depth = 0) {
    const Reflection& reflection = *message.GetReflection();
    for (int i = 0; i < message.GetDescriptor()->field_count(); ++i) {
      const FieldDescriptor& field = *message.GetDescriptor()->field(i);
      if (!OneIn(6)) continue;
      const int count = field.is_repeated() ? 1 + Below(OneIn(5) ? 200 : 4) : 1;
      for (int j = 0; j < count; ++j) SetOne(message, reflection, field, depth);
    }
  }

 private:
  void SetOne(Message& message, const Reflection& reflection, const FieldDescriptor& field,
              int depth) {
    const bool repeated = field.is_repeated();
    switch (field.cpp_type()) {
#define ULTRASKETCH_SET(Type, value)               \
  if (repeated) {                                  \
    reflection.Add##Type(&message, &field, value); \
  } else {                                         \
    reflection.Set##Type(&message, &field, value); \
  }                                                \
  break
      case FieldDescriptor::CPPTYPE_INT32:
        ULTRASKETCH_SET(Int32, Integer<int32_t>());
      case FieldDescriptor::CPPTYPE_INT64:
        ULTRASKETCH_SET(Int64, Integer<int64_t>());
      case FieldDescriptor::CPPTYPE_UINT32:
        ULTRASKETCH_SET(UInt32, Integer<uint32_t>());
      case FieldDescriptor::CPPTYPE_UINT64:
        ULTRASKETCH_SET(UInt64, Integer<uint64_t>());
      case FieldDescriptor::CPPTYPE_FLOAT:
        ULTRASKETCH_SET(Float, static_cast<float>(Real()));
      case FieldDescriptor::CPPTYPE_DOUBLE:
        ULTRASKETCH_SET(Double, Real());
      case FieldDescriptor::CPPTYPE_BOOL:
        ULTRASKETCH_SET(Bool, OneIn(2));
      case FieldDescriptor::CPPTYPE_STRING:
        ULTRASKETCH_SET(String, Text());
#undef ULTRASKETCH_SET
      case FieldDescriptor::CPPTYPE_MESSAGE:
        if (depth >= 4) break;
        Fill(repeated ? *reflection.AddMessage(&message, &field)
                      : *reflection.MutableMessage(&message, &field),
             depth + 1);
        break;
      default:
        break;
    }
  }

  std::mt19937_64 random_;
};

// One client: a connection and a thread.
class Client {
 public:
  Client(TestServer& server, uint64_t seed, std::string expected_text)
      : hostile_(seed),
        expected_text_(std::move(expected_text)),
        channel_(server.NewChannel()),
        generation_(v1::GenerationService::NewStub(channel_)),
        inference_(inference::GRPCInferenceService::NewStub(channel_)) {}

  // One call.
  void Step() {
    switch (hostile_.Below(8)) {
      case 0:
        return Check(Generate());
      case 1:
        return Check(Score());
      case 2:
        return Check(Tokenize());
      case 3:
        return Check(Detokenize());
      case 4:
        return Check(Infer());
      case 5:
        return Repeat();
      default:
        return Check(Stream());
    }
  }

  int64_t num_calls() const { return num_calls_; }
  int64_t num_ok() const { return num_ok_; }

 private:
  std::unique_ptr<grpc::ClientContext> NewContext() {
    auto context = std::make_unique<grpc::ClientContext>();
    if (hostile_.OneIn(3)) {
      context->set_deadline(std::chrono::system_clock::now() +
                            std::chrono::microseconds(hostile_.Below(100'000) - 1000));
    }
    if (hostile_.OneIn(2)) {
      context->AddMetadata("client-id", absl::StrCat("client ", hostile_.Below(3)));
    }
    if (hostile_.OneIn(8)) context->AddMetadata("x-request-id", std::string(200, 'i'));
    if (hostile_.OneIn(8)) context->AddMetadata("traceparent", "00-none");
    return context;
  }

  // A request that is often all right.
  v1::GenerateRequest NewRequest() {
    v1::GenerateRequest request =
        Request(std::string(1 + hostile_.Below(60), 'p'), 1 + hostile_.Below(40));
    if (hostile_.OneIn(4)) request.set_n(1 + hostile_.Below(3));
    if (hostile_.OneIn(2)) hostile_.Fill(request);
    // Those of a fake model come at once, and would be all that happens.
    if (request.n() > 4) request.set_n(4);
    return request;
  }

  grpc::Status Generate() {
    const auto context = NewContext();
    v1::GenerateResponse response;
    return generation_->Generate(context.get(), NewRequest(), &response);
  }

  grpc::Status Stream() {
    const auto context = NewContext();
    const auto reader = generation_->GenerateStream(context.get(), NewRequest());
    int reads_left = hostile_.OneIn(3) ? hostile_.Below(10) : -1;
    v1::GenerateStreamResponse message;
    if (reads_left == 0) context->TryCancel();
    while (reader->Read(&message)) {
      if (--reads_left == 0) context->TryCancel();
    }
    return reader->Finish();
  }

  grpc::Status Score() {
    const auto context = NewContext();
    v1::ScoreRequest request;
    request.set_text(std::string(2 + hostile_.Below(60), 's'));
    if (hostile_.OneIn(2)) hostile_.Fill(request);
    v1::ScoreResponse response;
    return generation_->Score(context.get(), request, &response);
  }

  grpc::Status Tokenize() {
    const auto context = NewContext();
    v1::TokenizeRequest request;
    hostile_.Fill(request);
    v1::TokenizeResponse response;
    return generation_->Tokenize(context.get(), request, &response);
  }

  grpc::Status Detokenize() {
    const auto context = NewContext();
    v1::DetokenizeRequest request;
    hostile_.Fill(request);
    v1::DetokenizeResponse response;
    return generation_->Detokenize(context.get(), request, &response);
  }

  grpc::Status Infer() {
    const auto context = NewContext();
    inference::ModelInferRequest request;
    request.set_model_name("small");
    auto& text = *request.add_inputs();
    text.set_name("text_input");
    text.set_datatype("BYTES");
    text.add_shape(1);
    text.mutable_contents()->add_bytes_contents("kserve");
    if (hostile_.OneIn(2)) hostile_.Fill(request);
    inference::ModelInferResponse response;
    return inference_->ModelInfer(context.get(), request, &response);
  }

  // What everybody else does changes nothing in a text.
  void Repeat() {
    grpc::ClientContext context;
    v1::GenerateResponse response;
    const grpc::Status status = generation_->Generate(&context, Request("repeat", 30), &response);
    Check(status);
    if (status.ok()) {
      EXPECT_EQ(response.completions(0).text(), expected_text_);
    }
  }

  void Check(const grpc::Status& status) {
    ++num_calls_;
    if (status.ok()) ++num_ok_;
    EXPECT_THAT(
        status.error_code(),
        AnyOf(grpc::StatusCode::OK, grpc::StatusCode::CANCELLED, grpc::StatusCode::INVALID_ARGUMENT,
              grpc::StatusCode::DEADLINE_EXCEEDED, grpc::StatusCode::NOT_FOUND,
              grpc::StatusCode::RESOURCE_EXHAUSTED, grpc::StatusCode::OUT_OF_RANGE))
        << status.error_message();
  }

  Hostile hostile_;
  const std::string expected_text_;
  const std::shared_ptr<grpc::Channel> channel_;
  const std::unique_ptr<v1::GenerationService::Stub> generation_;
  const std::unique_ptr<inference::GRPCInferenceService::Stub> inference_;
  int64_t num_calls_ = 0;
  int64_t num_ok_ = 0;
};

TEST(SoakTest, RandomRequestsAreAnsweredOrRefusedAndLeaveNothing) {
  const absl::Duration length = absl::Seconds(FromEnvironment("ULTRASKETCH_TEST_SECONDS", 2));
  const auto seed =
      static_cast<uint64_t>(FromEnvironment("ULTRASKETCH_TEST_SEED", absl::GetCurrentTimeNanos()));
  SCOPED_TRACE(absl::StrCat("ULTRASKETCH_TEST_SEED=", seed));
  TestModel model;
  model.model.model.kv_cache_tokens = 512;  // few: requests preempt one another
  model.engine_loop.max_running_sequences = 6;
  model.engine_loop.max_queued_requests = 6;
  model.chat_template = kTestChatTemplate;
  ServerOptions options;
  options.call_limits.max_requests_per_client = 5;
  TestServer server({model}, options);
  const std::string expected = GenerateStream(server, Request("repeat", 30)).texts.at(0);

  constexpr int kNumClients = 8;
  std::vector<std::unique_ptr<Client>> clients;
  for (int i = 0; i < kNumClients; ++i) {
    clients.push_back(std::make_unique<Client>(server, seed + static_cast<uint64_t>(i), expected));
  }
  const absl::Time end = absl::Now() + length;
  std::vector<std::thread> threads;
  for (const auto& client : clients) {
    threads.emplace_back([&client, end] {
      do {
        client->Step();
      } while (absl::Now() < end && !::testing::Test::HasFailure());
    });
  }
  for (std::thread& thread : threads) thread.join();

  int64_t num_calls = 0;
  int64_t num_ok = 0;
  for (const auto& client : clients) {
    num_calls += client->num_calls();
    num_ok += client->num_ok();
  }
  EXPECT_GE(num_calls, kNumClients);
  RecordProperty("calls", absl::StrCat(num_calls));
  RecordProperty("ok", absl::StrCat(num_ok));
  server.WaitUntilIdle();
  for (const char* method : {"Generate", "GenerateStream", "Score", "Tokenize", "Detokenize"}) {
    const std::string open = absl::StrCat(
        "ultrasketch_open_calls{method=\"ultrasketch.v1.GenerationService/", method, "\"}");
    while (server.Metric(open) != 0) std::this_thread::yield();
  }
  EXPECT_EQ(server.Metric("ultrasketch_unread_bytes"), 0);
  EXPECT_EQ(server.Metric(R"(ultrasketch_tokens_waiting{model="small"})"), 0);
  EXPECT_EQ(GenerateStream(server, Request("repeat", 30)).texts.at(0), expected);
}

}  // namespace
}  // namespace ultrasketch
