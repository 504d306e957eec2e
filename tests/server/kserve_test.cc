// The Open Inference Protocol, against a live server.
#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/synchronization/notification.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "inference/inference_service.grpc.pb.h"

#include "tests/server/test_server.h"
#include "tests/serving/engine_loop/testing.h"

namespace ultrasketch {
namespace {

using inference::ModelInferRequest;
using inference::ModelInferResponse;
using inference::ModelStreamInferResponse;
using ::testing::AllOf;
using ::testing::Contains;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::SizeIs;
using ::testing::StartsWith;

// Letters alone, so that the text has as many bytes as tokens.
std::vector<float> LetterLogits(absl::Span<const int32_t> tokens) {
  std::vector<float> logits = HashLogits(tokens, 300);
  for (size_t id = 0; id < logits.size(); ++id) {
    if (id < 'a' || id > 'z') logits[id] = -100;
  }
  return logits;
}

TestModel LetterModel() {
  TestModel model;
  model.model.logits = LetterLogits;
  return model;
}

// The elements of a BYTES tensor.
std::string RawStrings(const std::vector<std::string>& texts) {
  std::string raw;
  for (const std::string& text : texts) {
    const auto size = static_cast<uint32_t>(text.size());
    raw.append(reinterpret_cast<const char*>(&size), sizeof(size));
    raw += text;
  }
  return raw;
}

std::vector<std::string> ParseStrings(const std::string& raw) {
  std::vector<std::string> texts;
  for (size_t at = 0; at < raw.size();) {
    uint32_t size = 0;
    std::memcpy(&size, raw.data() + at, sizeof(size));
    texts.push_back(raw.substr(at + sizeof(size), size));
    at += sizeof(size) + size;
  }
  return texts;
}

ModelInferRequest::InferInputTensor& AddInput(ModelInferRequest& request, const std::string& name,
                                              const std::string& datatype, int64_t size = 1) {
  auto& input = *request.add_inputs();
  input.set_name(name);
  input.set_datatype(datatype);
  input.add_shape(size);
  return input;
}

void AddBool(ModelInferRequest& request, const std::string& name, bool value) {
  AddInput(request, name, "BOOL").mutable_contents()->add_bool_contents(value);
}

void AddText(ModelInferRequest& request, const std::string& name, const std::string& value) {
  AddInput(request, name, "BYTES").mutable_contents()->add_bytes_contents(value);
}

// Greedy.
ModelInferRequest Infer(const std::string& text, int max_tokens = 8) {
  ModelInferRequest request;
  request.set_model_name("small");
  request.set_id("some id");
  AddText(request, "text_input", text);
  (*request.mutable_parameters())["max_tokens"].set_int64_param(max_tokens);
  (*request.mutable_parameters())["temperature"].set_double_param(0);
  return request;
}

// An output's bytes; fails the test when there is none.
std::string RawOutput(const ModelInferResponse& response, const std::string& name) {
  EXPECT_EQ(response.outputs_size(), response.raw_output_contents_size());
  for (int i = 0; i < response.outputs_size(); ++i) {
    if (response.outputs(i).name() == name) return response.raw_output_contents(i);
  }
  ADD_FAILURE() << "no output " << name;
  return "";
}

std::string TextOutput(const ModelInferResponse& response) {
  const std::vector<std::string> texts = ParseStrings(RawOutput(response, "text_output"));
  EXPECT_THAT(texts, SizeIs(1));
  return texts.empty() ? "" : texts.front();
}

std::vector<std::string> OutputNames(const ModelInferResponse& response) {
  std::vector<std::string> names;
  for (const auto& output : response.outputs()) names.push_back(output.name());
  return names;
}

class KserveTest : public ::testing::Test {
 protected:
  explicit KserveTest(TestModel model = LetterModel())
      : server_({std::move(model)}),
        stub_(inference::GRPCInferenceService::NewStub(server_.NewChannel())) {}

  grpc::Status Call(const ModelInferRequest& request, ModelInferResponse* response) {
    grpc::ClientContext context;
    return stub_->ModelInfer(&context, request, response);
  }

  ModelInferResponse Answer(const ModelInferRequest& request) {
    ModelInferResponse response;
    const grpc::Status status = Call(request, &response);
    EXPECT_TRUE(status.ok()) << status.error_message();
    return response;
  }

  // The message of the INVALID_ARGUMENT that a request is answered with, which names a field.
  std::string ErrorOf(const ModelInferRequest& request) {
    ModelInferResponse response;
    const grpc::Status status = Call(request, &response);
    EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT) << status.error_message();
    EXPECT_THAT(DetailsOf(status).fields, SizeIs(1)) << status.error_message();
    return status.error_message();
  }

  std::string Generated(const v1::GenerateRequest& request) {
    grpc::ClientContext context;
    v1::GenerateResponse response;
    const grpc::Status status = server_.generation().Generate(&context, request, &response);
    EXPECT_TRUE(status.ok()) << status.error_message();
    return response.completions(0).text();
  }

  TestServer server_;
  const std::unique_ptr<inference::GRPCInferenceService::Stub> stub_;
};

TEST_F(KserveTest, ServerAndModelsSayWhetherTheyAreReady) {
  const auto is_live = [&] {
    grpc::ClientContext context;
    inference::ServerLiveResponse response;
    return stub_->ServerLive(&context, {}, &response).ok() && response.live();
  };
  const auto is_ready = [&] {
    grpc::ClientContext context;
    inference::ServerReadyResponse response;
    return stub_->ServerReady(&context, {}, &response).ok() && response.ready();
  };
  const auto is_model_ready = [&](const std::string& name, const std::string& version) {
    grpc::ClientContext context;
    inference::ModelReadyRequest request;
    request.set_name(name);
    request.set_version(version);
    inference::ModelReadyResponse response;
    EXPECT_TRUE(stub_->ModelReady(&context, request, &response).ok());
    return response.ready();
  };
  EXPECT_TRUE(is_live());
  EXPECT_TRUE(is_ready());
  EXPECT_TRUE(is_model_ready("small", ""));
  EXPECT_TRUE(is_model_ready("small", "1"));
  EXPECT_FALSE(is_model_ready("small", "2"));
  EXPECT_FALSE(is_model_ready("other", ""));
  server_.server().SetReady(false);
  EXPECT_FALSE(is_ready());
  server_.server().SetReady(true);
  EXPECT_TRUE(is_ready());
  server_.server().SetNotServing();
  EXPECT_FALSE(is_ready());
  EXPECT_TRUE(is_live());
}

TEST_F(KserveTest, MetadataNamesInputsAndOutputs) {
  grpc::ClientContext server_context;
  inference::ServerMetadataResponse server;
  ASSERT_TRUE(stub_->ServerMetadata(&server_context, {}, &server).ok());
  EXPECT_EQ(server.name(), "ultrasketch");
  EXPECT_FALSE(server.version().empty());
  EXPECT_THAT(server.extensions(), Contains("model_repository"));

  grpc::ClientContext context;
  inference::ModelMetadataRequest request;
  request.set_name("small");
  inference::ModelMetadataResponse model;
  ASSERT_TRUE(stub_->ModelMetadata(&context, request, &model).ok());
  EXPECT_EQ(model.name(), "small");
  EXPECT_THAT(model.versions(), ElementsAre("1"));
  EXPECT_EQ(model.platform(), "ultrasketch_dense");
  std::map<std::string, std::string> inputs;
  for (const auto& input : model.inputs()) inputs[input.name()] = input.datatype();
  EXPECT_EQ(inputs["text_input"], "BYTES");
  EXPECT_EQ(inputs["max_tokens"], "INT32");
  EXPECT_EQ(inputs["temperature"], "FP32");
  EXPECT_EQ(inputs["seed"], "UINT64");
  EXPECT_EQ(model.outputs(0).name(), "text_output");
  EXPECT_THAT(model.outputs(0).shape(), ElementsAre(-1));

  grpc::ClientContext unknown_context;
  request.set_name("other");
  EXPECT_EQ(stub_->ModelMetadata(&unknown_context, request, &model).error_code(),
            grpc::StatusCode::NOT_FOUND);
}

TEST_F(KserveTest, AnswersWithTheTextThatGenerateGives) {
  const ModelInferResponse response = Answer(Infer("once", 12));
  EXPECT_EQ(response.model_name(), "small");
  EXPECT_EQ(response.model_version(), "1");
  EXPECT_EQ(response.id(), "some id");
  ASSERT_THAT(OutputNames(response), ElementsAre("text_output"));
  EXPECT_EQ(response.outputs(0).datatype(), "BYTES");
  EXPECT_THAT(response.outputs(0).shape(), ElementsAre(1));
  EXPECT_FALSE(response.outputs(0).has_contents());
  EXPECT_EQ(TextOutput(response), Generated(Request("once", 12)));
  EXPECT_EQ(server_.Metric(R"(ultrasketch_requests_total{code="OK",model="small"})"), 2);
}

TEST_F(KserveTest, RawContentsAreReadAsContentsAre) {
  ModelInferRequest request;
  request.set_model_name("small");
  AddInput(request, "text_input", "BYTES");
  request.add_raw_input_contents(RawStrings({"once"}));
  const int32_t max_tokens = 5;
  AddInput(request, "max_tokens", "INT32");
  request.add_raw_input_contents(std::string(reinterpret_cast<const char*>(&max_tokens), 4));
  const float temperature = 0;
  AddInput(request, "temperature", "FP32");
  request.add_raw_input_contents(std::string(reinterpret_cast<const char*>(&temperature), 4));
  AddInput(request, "stop", "BYTES", 2);
  request.add_raw_input_contents(RawStrings({"!", "?"}));
  AddInput(request, "return_finish_reason", "BOOL");
  request.add_raw_input_contents(std::string(1, '\1'));
  const ModelInferResponse response = Answer(request);
  EXPECT_EQ(TextOutput(response), Generated(Request("once", 5)));
  EXPECT_THAT(ParseStrings(RawOutput(response, "finish_reason")), ElementsAre("length"));
}

TEST_F(KserveTest, OptionsComeAsParametersOrJsonOrTensors) {
  v1::GenerateRequest generate = Request("once", 20);
  generate.set_temperature(1.5);
  generate.set_top_k(5);
  generate.set_seed(uint64_t{1} << 63);
  const std::string expected = Generated(generate);

  ModelInferRequest parameters;
  parameters.set_model_name("small");
  AddText(parameters, "text_input", "once");
  ModelInferRequest json = parameters;
  ModelInferRequest tensors = parameters;
  ModelInferRequest texts = parameters;

  auto& map = *parameters.mutable_parameters();
  map["max_tokens"].set_int64_param(20);
  map["temperature"].set_double_param(1.5);
  map["top_k"].set_int64_param(5);
  map["seed"].set_uint64_param(uint64_t{1} << 63);
  EXPECT_EQ(TextOutput(Answer(parameters)), expected);

  AddText(json, "sampling_parameters",
          R"({"max_tokens": 20, "temperature": 1.5, "top_k": 5.0, "seed": 9223372036854775808,
              "stop": null})");
  EXPECT_EQ(TextOutput(Answer(json)), expected);

  AddText(texts, "sampling_parameters",
          R"({"max_tokens": "20", "temperature": "1.5", "top_k": "5",
              "seed": "9223372036854775808"})");
  EXPECT_EQ(TextOutput(Answer(texts)), expected);

  AddInput(tensors, "max_tokens", "INT32").mutable_contents()->add_int_contents(20);
  AddInput(tensors, "temperature", "FP64").mutable_contents()->add_fp64_contents(1.5);
  AddInput(tensors, "top_k", "INT64").mutable_contents()->add_int64_contents(5);
  AddInput(tensors, "seed", "UINT64").mutable_contents()->add_uint64_contents(uint64_t{1} << 63);
  EXPECT_EQ(TextOutput(Answer(tensors)), expected);

  // A tensor counts more than the JSON, and that more than a parameter.
  (*tensors.mutable_parameters())["max_tokens"].set_int64_param(3);
  (*tensors.mutable_parameters())["top_k"].set_int64_param(1);
  AddText(tensors, "sampling_parameters", R"({"max_tokens": 4})");
  EXPECT_EQ(TextOutput(Answer(tensors)), expected);
}

TEST_F(KserveTest, StopStringsMayBeOneOrSeveral) {
  const std::string whole = Generated(Request("once", 20));
  const std::string stop = whole.substr(10, 3);
  const std::string expected = whole.substr(0, whole.find(stop));
  ModelInferRequest one = Infer("once", 20);
  (*one.mutable_parameters())["stop"].set_string_param(stop);
  EXPECT_EQ(TextOutput(Answer(one)), expected);
  ModelInferRequest several = Infer("once", 20);
  AddText(several, "sampling_parameters", absl::StrCat(R"({"stop": ["?!", ")", stop, R"("]})"));
  EXPECT_EQ(TextOutput(Answer(several)), expected);
}

TEST_F(KserveTest, AllIsMinusOneInTopKAsForVllm) {
  ModelInferRequest request = Infer("once");
  (*request.mutable_parameters())["top_k"].set_int64_param(-1);
  EXPECT_EQ(TextOutput(Answer(request)), Generated(Request("once")));
}

TEST_F(KserveTest, OutputsAreThoseAskedFor) {
  ModelInferRequest request = Infer("once", 5);
  AddBool(request, "return_finish_reason", true);
  AddBool(request, "return_num_input_tokens", true);
  AddBool(request, "return_num_output_tokens", true);
  AddInput(request, "n", "INT32").mutable_contents()->add_int_contents(2);
  const ModelInferResponse response = Answer(request);
  EXPECT_THAT(OutputNames(response),
              ElementsAre("text_output", "finish_reason", "num_input_tokens", "num_output_tokens"));
  EXPECT_THAT(ParseStrings(RawOutput(response, "text_output")), SizeIs(2));
  EXPECT_THAT(ParseStrings(RawOutput(response, "finish_reason")), ElementsAre("length", "length"));
  const uint32_t counts[] = {4, 5, 5};
  EXPECT_EQ(RawOutput(response, "num_input_tokens") + RawOutput(response, "num_output_tokens"),
            std::string(reinterpret_cast<const char*>(counts), sizeof(counts)));
  EXPECT_EQ(response.outputs(3).datatype(), "UINT32");
  EXPECT_THAT(response.outputs(3).shape(), ElementsAre(2));

  ModelInferRequest chosen = Infer("once", 5);
  chosen.add_outputs()->set_name("finish_reason");
  EXPECT_THAT(OutputNames(Answer(chosen)), ElementsAre("finish_reason"));
}

TEST_F(KserveTest, TheInputStandsInFrontWhenAskedFor) {
  ModelInferRequest request = Infer("once", 5);
  AddBool(request, "exclude_input_in_output", false);
  EXPECT_EQ(TextOutput(Answer(request)), absl::StrCat("once", Generated(Request("once", 5))));
}

TEST_F(KserveTest, WhatIsWrongIsNamed) {
  const auto error_of = [&](const std::function<void(ModelInferRequest&)>& change) {
    ModelInferRequest request = Infer("once");
    change(request);
    return ErrorOf(request);
  };
  EXPECT_EQ(error_of([](auto& request) { request.clear_inputs(); }), "text_input: required");
  EXPECT_THAT(error_of([](auto& request) { AddText(request, "image", "x"); }),
              AllOf(StartsWith("inputs: \"image\" is not supported"), HasSubstr("text_input")));
  EXPECT_THAT(error_of([](auto& request) { AddText(request, "text_input", "x"); }),
              StartsWith("inputs: \"text_input\" is there twice"));
  EXPECT_THAT(error_of([](auto& request) { request.mutable_inputs(0)->set_datatype("INT32"); }),
              StartsWith("text_input: datatype \"INT32\"; expected BYTES"));
  EXPECT_THAT(error_of([](auto& request) { request.mutable_inputs(0)->set_shape(0, 2); }),
              StartsWith("text_input: shape [2]; expected [1]"));
  EXPECT_THAT(error_of([](auto& request) { request.mutable_inputs(0)->set_shape(0, -1); }),
              StartsWith("text_input: shape [-1]; at most"));
  EXPECT_THAT(error_of([](auto& request) { request.mutable_inputs(0)->clear_contents(); }),
              StartsWith("text_input: 0 elements in contents.bytes_contents; the shape has 1"));
  EXPECT_THAT(error_of([](auto& request) {
                request.mutable_inputs(0)->clear_contents();
                request.add_raw_input_contents(std::string("\5\0\0\0abc", 7));
              }),
              StartsWith("text_input: raw_input_contents ends within element 0"));
  EXPECT_THAT(error_of([](auto& request) {
                request.mutable_inputs(0)->clear_contents();
                request.add_raw_input_contents(RawStrings({"a", "b"}));
              }),
              StartsWith("text_input: 5 bytes of raw_input_contents are left"));
  EXPECT_THAT(error_of([](auto& request) {
                request.add_raw_input_contents("");
                request.add_raw_input_contents("");
              }),
              StartsWith("raw_input_contents: 2 elements for 1 inputs"));
  EXPECT_THAT(error_of([](auto& request) { request.add_raw_input_contents(RawStrings({"a"})); }),
              StartsWith("text_input: has contents, and raw_input_contents as well"));
  EXPECT_THAT(
      error_of([](auto& request) {
        (*request.mutable_inputs(0)->mutable_parameters())["shared_memory_region"].set_string_param(
            "x");
      }),
      AllOf(StartsWith("text_input: "), HasSubstr("shared_memory_region")));
  EXPECT_THAT(error_of([](auto& request) {
                AddInput(request, "max_tokens", "FP32").mutable_contents()->add_fp32_contents(5);
              }),
              StartsWith("max_tokens: datatype \"FP32\"; expected INT32 or INT64"));
  EXPECT_THAT(error_of([](auto& request) {
                (*request.mutable_parameters())["best_of"].set_int64_param(1);
              }),
              AllOf(StartsWith("parameters: \"best_of\" is not supported"), HasSubstr("top_p")));
  EXPECT_THAT(error_of([](auto& request) {
                (*request.mutable_parameters())["max_tokens"].set_string_param("many");
              }),
              StartsWith("max_tokens: expected a whole number of 32 bits, found \"many\""));
  EXPECT_THAT(error_of([](auto& request) {
                (*request.mutable_parameters())["max_tokens"].set_int64_param(int64_t{1} << 40);
              }),
              StartsWith("max_tokens: expected a whole number of 32 bits"));
  EXPECT_THAT(
      error_of([](auto& request) { AddText(request, "sampling_parameters", "{\"top_k\": "); }),
      StartsWith("sampling_parameters: "));
  EXPECT_THAT(error_of([](auto& request) { AddText(request, "sampling_parameters", "[]"); }),
              StartsWith("sampling_parameters: expected a JSON object"));
  EXPECT_THAT(error_of([](auto& request) {
                AddText(request, "sampling_parameters", "{\"use_beam_search\": true}");
              }),
              StartsWith("sampling_parameters: \"use_beam_search\" is not supported"));
  EXPECT_THAT(error_of([](auto& request) { request.add_outputs()->set_name("logits"); }),
              StartsWith("outputs: \"logits\" is not supported; there are text_output"));
  EXPECT_THAT(error_of([](auto& request) { AddBool(request, "stream", true); }),
              AllOf(StartsWith("stream: "), HasSubstr("ModelStreamInfer")));
  // What the values mean is checked as for Generate.
  EXPECT_THAT(
      error_of([](auto& request) { (*request.mutable_parameters())["top_p"].set_double_param(2); }),
      StartsWith("top_p: "));
  EXPECT_THAT(ErrorOf(Infer(std::string(300, 'x'))),
              AllOf(StartsWith("text_input: "), HasSubstr("context")));
  EXPECT_GT(server_
                .Metric("ultrasketch_rejected_requests_total{model=\"small\","
                        "reason=\"invalid_argument\"}")
                .value_or(0),
            20);
}

TEST_F(KserveTest, UnknownModelsAndVersionsAreNotFound) {
  ModelInferResponse response;
  ModelInferRequest request = Infer("once");
  request.set_model_name("other");
  EXPECT_EQ(Call(request, &response).error_code(), grpc::StatusCode::NOT_FOUND);
  request = Infer("once");
  request.set_model_version("2");
  const grpc::Status status = Call(request, &response);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::NOT_FOUND);
  EXPECT_THAT(status.error_message(), HasSubstr("\"small\" has no version \"2\""));
  request.set_model_version("1");
  EXPECT_TRUE(Call(request, &response).ok());
}

TEST_F(KserveTest, AnAnswerThatTheClientDoesNotTakeIsRefused) {
  ModelInferRequest request = Infer("once", 100);
  (*request.mutable_parameters())["max_response_bytes"].set_int64_param(50);
  ModelInferResponse response;
  const grpc::Status status = Call(request, &response);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::OUT_OF_RANGE);
  EXPECT_EQ(DetailsOf(status).reason, "RESPONSE_TOO_LARGE");
}

TEST_F(KserveTest, TheRepositoryIsListedAndModelsUnload) {
  const auto index = [&](bool only_ready) {
    grpc::ClientContext context;
    inference::RepositoryIndexRequest request;
    request.set_ready(only_ready);
    inference::RepositoryIndexResponse response;
    EXPECT_TRUE(stub_->RepositoryIndex(&context, request, &response).ok());
    std::vector<std::string> lines;
    for (const auto& model : response.models()) {
      lines.push_back(absl::StrCat(model.name(), " ", model.version(), " ", model.state()));
    }
    return lines;
  };
  EXPECT_THAT(index(true), ElementsAre("small 1 READY"));

  inference::RepositoryModelUnloadRequest request;
  inference::RepositoryModelUnloadResponse response;
  const auto unload = [&] {
    grpc::ClientContext context;
    return stub_->RepositoryModelUnload(&context, request, &response);
  };
  EXPECT_EQ(unload().error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  request.set_model_name("small");
  request.set_repository_name("elsewhere");
  EXPECT_EQ(unload().error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  request.clear_repository_name();
  (*request.mutable_parameters())["unload_dependents"].set_bool_param(false);
  const grpc::Status status = unload();
  EXPECT_TRUE(status.ok()) << status.error_message();
  EXPECT_THAT(index(false), IsEmpty());
  EXPECT_EQ(unload().error_code(), grpc::StatusCode::NOT_FOUND);

  grpc::ClientContext context;
  inference::RepositoryModelLoadRequest load;
  load.set_model_name("small");
  (*load.mutable_parameters())["config"].set_string_param("{}");
  inference::RepositoryModelLoadResponse loaded;
  EXPECT_THAT(stub_->RepositoryModelLoad(&context, load, &loaded).error_message(),
              HasSubstr("\"config\" is not supported"));
}

TEST(KserveOptionTest, TheProtocolCanBeOff) {
  ServerOptions options;
  options.kserve = false;
  TestServer server({TestModel()}, options);
  const auto stub = inference::GRPCInferenceService::NewStub(server.NewChannel());
  grpc::ClientContext context;
  inference::ServerLiveResponse response;
  EXPECT_EQ(stub->ServerLive(&context, {}, &response).error_code(),
            grpc::StatusCode::UNIMPLEMENTED);
}

TEST(KserveLimitsTest, AFullQueueIsRefusedAsForGenerate) {
  Gate gate;
  gate.Close();
  TestModel model = LetterModel();
  model.model.before_forward = gate.Hook();
  model.engine_loop.max_queued_requests = 1;
  model.engine_loop.max_running_sequences = 1;
  TestServer server({model});
  const auto stub = inference::GRPCInferenceService::NewStub(server.NewChannel());
  std::vector<std::thread> threads;
  const auto infer = [&](const std::string& text) {
    grpc::ClientContext context;
    ModelInferResponse response;
    return stub->ModelInfer(&context, Infer(text), &response);
  };
  threads.emplace_back([&] { EXPECT_TRUE(infer("first").ok()); });
  gate.WaitForStep();
  threads.emplace_back([&] { EXPECT_TRUE(infer("second").ok()); });
  while (server.engine_loop().stats().num_waiting < 1) {
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  grpc::ClientContext context;
  ModelInferResponse response;
  const grpc::Status status = stub->ModelInfer(&context, Infer("third"), &response);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_EQ(DetailsOf(status).reason, "QUEUE_FULL");
  EXPECT_EQ(context.GetServerTrailingMetadata().count("grpc-retry-pushback-ms"), 1u);
  gate.Open();
  for (std::thread& thread : threads) thread.join();
}

TEST(KserveLimitsTest, CancellingReturnsTheBlocks) {
  Gate gate;
  gate.Close();
  TestModel model = LetterModel();
  model.model.before_forward = gate.Hook();
  TestServer server({model});
  const auto stub = inference::GRPCInferenceService::NewStub(server.NewChannel());
  grpc::ClientContext context;
  std::thread caller([&] {
    ModelInferResponse response;
    EXPECT_EQ(stub->ModelInfer(&context, Infer("once", 100), &response).error_code(),
              grpc::StatusCode::CANCELLED);
  });
  gate.WaitForStep();
  context.TryCancel();
  caller.join();
  gate.Open();
  server.WaitUntilIdle();
}

// One stream, its responses by the requests' ids.
class Stream {
 public:
  explicit Stream(inference::GRPCInferenceService::Stub& stub)
      : stream_(stub.ModelStreamInfer(&context_)) {}

  void Send(const ModelInferRequest& request) { EXPECT_TRUE(stream_->Write(request)); }
  grpc::ClientContext& context() { return context_; }

  struct Result {
    std::string text;
    std::string error;
    std::string finish_reason;
    int num_responses = 0;
    bool is_final = false;
  };

  // Reads until this many requests have had their final response, or the stream has ended.
  void ReadFinals(int count) {
    ModelStreamInferResponse message;
    while (count > 0 && stream_->Read(&message)) {
      const ModelInferResponse& response = message.infer_response();
      Result& result = results[response.id()];
      EXPECT_FALSE(result.is_final) << "a response after the final one";
      ++result.num_responses;
      result.error = message.error_message();
      if (message.error_message().empty()) result.text += TextOutput(response);
      for (int i = 0; i < response.outputs_size(); ++i) {
        if (response.outputs(i).name() != "finish_reason") continue;
        result.finish_reason = ParseStrings(response.raw_output_contents(i)).front();
      }
      const auto final_flag = response.parameters().find("triton_final_response");
      ASSERT_NE(final_flag, response.parameters().end());
      result.is_final = final_flag->second.bool_param();
      if (result.is_final) --count;
    }
    EXPECT_EQ(count, 0) << "the stream ended";
  }

  // Ends the requests; nothing more comes.
  grpc::Status Finish() {
    stream_->WritesDone();
    ModelStreamInferResponse message;
    EXPECT_FALSE(stream_->Read(&message)) << message.DebugString();
    return stream_->Finish();
  }
  grpc::Status FinishAfterCancel() {
    ModelStreamInferResponse message;
    while (stream_->Read(&message)) {
    }
    return stream_->Finish();
  }

  std::map<std::string, Result> results;

 private:
  grpc::ClientContext context_;
  const std::unique_ptr<grpc::ClientReaderWriter<ModelInferRequest, ModelStreamInferResponse>>
      stream_;
};

ModelInferRequest StreamedInfer(const std::string& id, const std::string& text,
                                int max_tokens = 8) {
  ModelInferRequest request = Infer(text, max_tokens);
  request.set_id(id);
  AddBool(request, "stream", true);
  return request;
}

TEST_F(KserveTest, PiecesOfAStreamAddUpToTheText) {
  Stream stream(*stub_);
  ModelInferRequest request = StreamedInfer("a", "once", 30);
  AddBool(request, "return_finish_reason", true);
  (*request.mutable_parameters())["triton_enable_empty_final_response"].set_bool_param(true);
  stream.Send(request);
  stream.ReadFinals(1);
  EXPECT_EQ(stream.results["a"].text, Generated(Request("once", 30)));
  EXPECT_EQ(stream.results["a"].finish_reason, "length");
  EXPECT_TRUE(stream.Finish().ok());
}

TEST_F(KserveTest, WithoutStreamThereIsOneResponse) {
  Stream stream(*stub_);
  ModelInferRequest request = Infer("once", 30);
  request.set_id("a");
  AddBool(request, "exclude_input_in_output", false);
  stream.Send(request);
  stream.ReadFinals(1);
  EXPECT_EQ(stream.results["a"].text, absl::StrCat("once", Generated(Request("once", 30))));
  EXPECT_EQ(stream.results["a"].num_responses, 1);
  EXPECT_TRUE(stream.Finish().ok());
}

TEST_F(KserveTest, WhatIsWrongWithARequestEndsNoOther) {
  Stream stream(*stub_);
  ModelInferRequest unknown = StreamedInfer("unknown", "x");
  unknown.set_model_name("other");
  ModelInferRequest bad = StreamedInfer("bad", "x");
  (*bad.mutable_parameters())["top_p"].set_double_param(2);
  ModelInferRequest several = StreamedInfer("several", "x");
  (*several.mutable_parameters())["n"].set_int64_param(2);
  stream.Send(unknown);
  stream.Send(bad);
  stream.Send(several);
  stream.Send(StreamedInfer("good", "once", 5));
  stream.ReadFinals(4);
  EXPECT_THAT(stream.results["unknown"].error, StartsWith("NOT_FOUND: "));
  EXPECT_THAT(stream.results["bad"].error, StartsWith("INVALID_ARGUMENT: top_p: "));
  EXPECT_THAT(stream.results["several"].error, StartsWith("INVALID_ARGUMENT: n: "));
  EXPECT_EQ(stream.results["good"].text, Generated(Request("once", 5)));
  EXPECT_TRUE(stream.Finish().ok());
}

TEST_F(KserveTest, RequestsOfAStreamRunTogetherAndMoreThanMayBeOpenAreAnswered) {
  constexpr int kNumRequests = 150;  // above KserveStream::kMaxOpenRequests
  Stream stream(*stub_);
  std::thread sender([&] {
    for (int i = 0; i < kNumRequests; ++i) {
      stream.Send(StreamedInfer(absl::StrCat(i), absl::StrCat("text ", i), 5));
    }
  });
  stream.ReadFinals(kNumRequests);
  sender.join();
  EXPECT_EQ(stream.results.size(), static_cast<size_t>(kNumRequests));
  EXPECT_EQ(stream.results["149"].text, Generated(Request("text 149", 5)));
  EXPECT_TRUE(stream.Finish().ok());
  server_.WaitUntilIdle();
}

TEST_F(KserveTest, RequestsAreAnsweredAfterTheClientHasSentItsLast) {
  grpc::ClientContext context;
  const auto stream = stub_->ModelStreamInfer(&context);
  EXPECT_TRUE(stream->Write(StreamedInfer("a", "once", 20)));
  stream->WritesDone();
  ModelStreamInferResponse message;
  std::string text;
  while (stream->Read(&message)) text += TextOutput(message.infer_response());
  EXPECT_TRUE(stream->Finish().ok());
  EXPECT_EQ(text, Generated(Request("once", 20)));
}

TEST(KserveStreamTest, CancellingTheStreamEndsItsRequests) {
  Gate gate;
  gate.Close();
  TestModel model = LetterModel();
  model.model.before_forward = gate.Hook();
  TestServer server({model});
  const auto stub = inference::GRPCInferenceService::NewStub(server.NewChannel());
  Stream stream(*stub);
  for (int i = 0; i < 5; ++i) stream.Send(StreamedInfer(absl::StrCat(i), "once", 200));
  gate.WaitForStep();
  stream.context().TryCancel();
  EXPECT_EQ(stream.FinishAfterCancel().error_code(), grpc::StatusCode::CANCELLED);
  gate.Open();
  server.WaitUntilIdle();
  // Nothing is left that a drain would wait for.
  server.host().Drain(absl::InfiniteFuture());
  server.server().Shutdown(absl::InfiniteFuture());
}

TEST(KserveStreamTest, AnIdleStreamIsNotWaitedForAndLearnsThatTheModelDrains) {
  TestServer server({LetterModel()});
  const auto stub = inference::GRPCInferenceService::NewStub(server.NewChannel());
  Stream stream(*stub);
  stream.Send(StreamedInfer("before", "once", 5));
  stream.ReadFinals(1);
  server.host().Drain(absl::InfiniteFuture());
  stream.Send(StreamedInfer("after", "once", 5));
  stream.ReadFinals(1);
  EXPECT_THAT(stream.results["after"].error, StartsWith("UNAVAILABLE: "));
  server.server().Shutdown(absl::InfiniteFuture());
  EXPECT_FALSE(stream.FinishAfterCancel().ok());
}

TEST(KserveStreamTest, APieceLargerThanTheClientTakesEndsTheRequest) {
  TestServer server({LetterModel()});
  const auto stub = inference::GRPCInferenceService::NewStub(server.NewChannel());
  Stream stream(*stub);
  ModelInferRequest request = StreamedInfer("a", "once", 100);
  (*request.mutable_parameters())["max_response_bytes"].set_int64_param(20);
  stream.Send(request);
  stream.Send(StreamedInfer("b", "once", 5));
  stream.ReadFinals(2);
  EXPECT_THAT(stream.results["a"].error, StartsWith("OUT_OF_RANGE: "));
  EXPECT_EQ(stream.results["b"].error, "");
  EXPECT_TRUE(stream.Finish().ok());
  server.WaitUntilIdle();
}

}  // namespace
}  // namespace ultrasketch
