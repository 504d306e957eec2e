// Generate and GenerateStream: what they answer.
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/synchronization/mutex.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "tests/server/test_server.h"
#include "tests/serving/engine_loop/testing.h"

namespace ultrasketch {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::SizeIs;

v1::GenerateResponse Generate(TestServer& server, const v1::GenerateRequest& request) {
  grpc::ClientContext context;
  v1::GenerateResponse response;
  const grpc::Status status = server.generation().Generate(&context, request, &response);
  EXPECT_TRUE(status.ok()) << status.error_message();
  return response;
}

std::vector<int32_t> Ids(const google::protobuf::RepeatedField<int32_t>& field) {
  return {field.begin(), field.end()};
}

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

TEST(GenerateTest, AnswersWithTheWholeCompletion) {
  TestServer server({LetterModel()});
  v1::GenerateRequest request = Request("once", 12);
  request.set_seed(5);
  const v1::GenerateResponse response = Generate(server, request);
  EXPECT_EQ(response.model(), "small");
  EXPECT_EQ(response.seed(), 5u);
  ASSERT_THAT(response.completions(), SizeIs(1));
  const v1::Completion& completion = response.completions(0);
  SamplingParams greedy;
  greedy.temperature = 0;
  const std::vector<int32_t> expected = GenerateAlone(LetterLogits, Bytes("once"), greedy, 12);
  EXPECT_EQ(Ids(completion.token_ids()), expected);
  EXPECT_EQ(completion.text(), std::string(expected.begin(), expected.end()));
  EXPECT_EQ(completion.finish_reason(), v1::FINISH_REASON_LENGTH);
  EXPECT_TRUE(completion.has_index());
  EXPECT_EQ(response.usage().prompt_tokens(), 4);
  EXPECT_EQ(response.usage().completion_tokens(), 12);
  EXPECT_EQ(response.usage().total_tokens(), 16);
  EXPECT_EQ(response.timing().steps(), 12);
  EXPECT_EQ(response.timing().mean_batch_size(), 1);
}

TEST(GenerateTest, StreamedDeltasAddUpToTheUnaryAnswer) {
  TestServer server;  // any byte: characters and parts of characters
  v1::GenerateRequest request = Request("stream", 60);
  request.set_temperature(1);
  request.set_seed(7);
  request.set_n(3);
  request.set_logprobs(2);
  const v1::GenerateResponse whole = Generate(server, request);
  const StreamOutput stream = GenerateStream(server, request);
  ASSERT_TRUE(stream.status.ok()) << stream.status.error_message();
  EXPECT_EQ(stream.model, "small");
  ASSERT_THAT(whole.completions(), SizeIs(3));
  ASSERT_THAT(stream.texts, SizeIs(3));
  for (int i = 0; i < 3; ++i) {
    const v1::Completion& completion = whole.completions(i);
    const size_t index = static_cast<size_t>(i);
    EXPECT_EQ(stream.texts[index], completion.text());
    EXPECT_EQ(stream.token_ids[index], Ids(completion.token_ids()));
    EXPECT_THAT(completion.logprobs(), SizeIs(60));
    ASSERT_TRUE(stream.finals[index].has_value());
    const v1::GenerateFinal& final = *stream.finals[index];
    EXPECT_EQ(final.finish_reason(), completion.finish_reason());
    EXPECT_EQ(final.usage().prompt_tokens(), 6);
    EXPECT_EQ(final.usage().completion_tokens(), 60);
    EXPECT_EQ(final.seed(), 7u);
    EXPECT_TRUE(final.has_timing());
  }
  EXPECT_NE(Ids(whole.completions(0).token_ids()), Ids(whole.completions(1).token_ids()));
  EXPECT_EQ(whole.usage().prompt_tokens(), 6);
  EXPECT_EQ(whole.usage().completion_tokens(), 180);
}

TEST(GenerateTest, AnUnsetSeedIsDrawnAndGivesTheSameTextAgain) {
  TestServer server;
  v1::GenerateRequest request = Request("seed", 20);
  request.set_temperature(1);
  const v1::GenerateResponse first = Generate(server, request);
  ASSERT_TRUE(first.has_seed());
  request.set_seed(first.seed());
  EXPECT_EQ(Ids(Generate(server, request).completions(0).token_ids()),
            Ids(first.completions(0).token_ids()));
}

TEST(GenerateTest, EqualSeedsGiveEqualTextsWhateverElseRuns) {
  TestServer server;
  v1::GenerateRequest request = Request("the same", 40);
  request.set_temperature(1);
  request.set_seed(99);
  const std::vector<int32_t> alone = GenerateStream(server, request).token_ids.at(0);
  std::vector<StreamOutput> outputs(8);
  std::vector<std::thread> threads;
  for (size_t i = 0; i < outputs.size(); ++i) {
    threads.emplace_back([&, i] {
      v1::GenerateRequest mine = request;
      if (i % 2 == 1) mine.set_text("another " + std::to_string(i));
      outputs[i] = GenerateStream(server, mine);
    });
  }
  for (std::thread& thread : threads) thread.join();
  for (size_t i = 0; i < outputs.size(); i += 2) EXPECT_EQ(outputs[i].token_ids.at(0), alone);
}

TEST(GenerateTest, StopStringsEndTheText) {
  TestServer server({LetterModel()});
  const std::string text = Generate(server, Request("stop", 30)).completions(0).text();
  const std::string stop = text.substr(10, 3);
  const std::string expected = text.substr(0, text.find(stop));
  v1::GenerateRequest request = Request("stop", 30);
  request.add_stop(stop);
  const v1::Completion completion = Generate(server, request).completions(0);
  EXPECT_EQ(completion.text(), expected);
  EXPECT_EQ(completion.finish_reason(), v1::FINISH_REASON_STOP);
  EXPECT_EQ(completion.stop_string(), stop);
  const StreamOutput stream = GenerateStream(server, request);
  EXPECT_EQ(stream.texts.at(0), expected);
  EXPECT_EQ(stream.finals.at(0)->stop_string(), stop);
}

TEST(GenerateTest, LogprobsCarryTheTokensText) {
  TestServer server({LetterModel()});
  v1::GenerateRequest request = Request("ab", 3);
  request.set_logprobs(2);
  request.set_prompt_logprobs(1);
  const v1::GenerateResponse response = Generate(server, request);
  const v1::Completion& completion = response.completions(0);
  ASSERT_THAT(completion.logprobs(), SizeIs(3));
  for (int i = 0; i < 3; ++i) {
    const v1::TokenLogprobs& entry = completion.logprobs(i);
    EXPECT_EQ(entry.token().token_id(), completion.token_ids(i));
    EXPECT_EQ(entry.token().text(), completion.text().substr(static_cast<size_t>(i), 1));
    EXPECT_LT(entry.token().logprob(), 0);
    ASSERT_THAT(entry.top(), SizeIs(2));
    EXPECT_EQ(entry.top(0).token_id(), completion.token_ids(i)) << "greedy";
  }
  ASSERT_THAT(response.prompt_logprobs(), SizeIs(1));
  EXPECT_EQ(response.prompt_logprobs(0).token().text(), "b");
  EXPECT_THAT(response.prompt_logprobs(0).top(), SizeIs(1));
}

TEST(GenerateTest, TextsOfTheLogprobsAreTheText) {
  TestModel model;
  // Characters of one to four bytes, over and over.
  const std::string pattern = "a é€ 😀";
  model.model.logits = [pattern](absl::Span<const int32_t> tokens) {
    std::vector<float> logits(300, 0.0f);
    logits[static_cast<unsigned char>(pattern[tokens.size() % pattern.size()])] = 10;
    return logits;
  };
  TestServer server({model});
  v1::GenerateRequest request = Request(pattern, static_cast<int>(2 * pattern.size()));
  request.set_logprobs(3);
  request.set_prompt_logprobs(3);
  const v1::GenerateResponse response = Generate(server, request);
  const auto joined = [](const auto& entries) {
    std::pair<std::string, std::string> result;
    for (const v1::TokenLogprobs& entry : entries) {
      result.first += entry.token().text();
      result.second += entry.token().bytes();
    }
    return result;
  };
  const std::string text = pattern + pattern;
  EXPECT_EQ(response.completions(0).text(), text);
  EXPECT_EQ(joined(response.completions(0).logprobs()), std::make_pair(text, text));
  const std::string prompt = pattern.substr(1);
  EXPECT_EQ(joined(response.prompt_logprobs()), std::make_pair(prompt, prompt));

  grpc::ClientContext context;
  const auto reader = server.generation().GenerateStream(&context, request);
  std::pair<std::string, std::string> streamed;
  v1::GenerateStreamResponse message;
  while (reader->Read(&message)) {
    const auto [delta_text, delta_bytes] = joined(message.delta().logprobs());
    streamed.first += delta_text;
    streamed.second += delta_bytes;
    if (message.has_final()) {
      EXPECT_EQ(joined(message.final().prompt_logprobs()), std::make_pair(prompt, prompt));
    }
  }
  EXPECT_TRUE(reader->Finish().ok());
  EXPECT_EQ(streamed, std::make_pair(text, text));
}

TEST(GenerateTest, TheSpellingOfASpecialTokenStops) {
  TestModel model;
  model.model.logits = [](absl::Span<const int32_t> tokens) {
    std::vector<float> logits(300, 0.0f);
    logits[tokens.size() < 6 ? 'a' : kEndToken] = 10;
    return logits;
  };
  TestServer server({model});
  v1::GenerateRequest request = Request("xyz", 10);
  for (const char* stop : {"<|end|>", "a<|end|>"}) {
    request.clear_stop();
    request.add_stop(stop);
    for (const bool skip : {false, true}) {
      request.set_skip_special_tokens(skip);
      for (const bool include : {false, true}) {
        request.set_include_stop_in_output(include);
        const v1::Completion completion = Generate(server, request).completions(0);
        EXPECT_THAT(completion.token_ids(), ElementsAre('a', 'a', 'a', kEndToken));
        EXPECT_EQ(completion.finish_reason(), v1::FINISH_REASON_STOP);
        EXPECT_EQ(completion.stop_string(), stop);
        const std::string text = "aaa<|end|>";
        EXPECT_EQ(completion.text(), include ? text : text.substr(0, text.find(stop)));
        EXPECT_EQ(GenerateStream(server, request).texts.at(0), completion.text());
      }
    }
  }
}

TEST(GenerateTest, AnAnswerThatIsSurelyTooLargeIsNotComputed) {
  Gate gate;
  gate.Close();
  TestModel model = LetterModel();
  model.model.before_forward = gate.Hook();
  TestServer server({model});
  v1::GenerateRequest request = Request("x", 200);
  request.set_n(128);
  request.set_logprobs(20);
  request.set_ignore_eos(true);
  grpc::ClientContext context;
  v1::GenerateResponse response;
  const grpc::Status status = server.generation().Generate(&context, request, &response);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::OUT_OF_RANGE);
  EXPECT_EQ(DetailsOf(status).reason, "RESPONSE_TOO_LARGE");
  EXPECT_FALSE(DetailsOf(status).retry_delay.has_value());
  EXPECT_THAT(status.error_message(), HasSubstr("grpc.max_receive_message_length"));
  EXPECT_EQ(server.Metric(R"(ultrasketch_requests_total{code="OUT_OF_RANGE",model="small"})"), 1);
  EXPECT_EQ(server.engine_loop().stats().num_waiting, 0);
  gate.Open();
  request.set_n(2);
  EXPECT_THAT(Generate(server, request).completions(), SizeIs(2));
}

TEST(GenerateTest, AnAnswerThatGrowsTooLargeEndsThere) {
  TestServer server({LetterModel()});
  v1::GenerateRequest request = Request("x", 200);
  request.set_logprobs(20);
  request.add_stop("never");  // it might have ended early
  request.set_max_response_bytes(20'000);
  grpc::ClientContext context;
  v1::GenerateResponse response;
  const grpc::Status status = server.generation().Generate(&context, request, &response);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::OUT_OF_RANGE);
  EXPECT_EQ(DetailsOf(status).reason, "RESPONSE_TOO_LARGE");
  EXPECT_EQ(server.Metric(R"(ultrasketch_requests_total{code="OUT_OF_RANGE",model="small"})"), 1);
  server.WaitUntilIdle();

  request.set_max_response_bytes(-1);
  const int64_t size = static_cast<int64_t>(Generate(server, request).ByteSizeLong());
  request.set_max_response_bytes(size + 100);  // times differ in length
  EXPECT_THAT(Generate(server, request).completions(), SizeIs(1));
}

TEST(GenerateTest, MessagesOfAStreamAreOfASizeThatTheClientTakes) {
  Gate gate;
  gate.Close();
  TestModel model = LetterModel();
  model.model.before_forward = gate.Hook();
  TestServer server({model});
  v1::GenerateRequest request = Request("x", 200);
  request.set_logprobs(20);
  request.set_max_response_bytes(5'000);
  grpc::ClientContext context;
  const auto reader = server.generation().GenerateStream(&context, request);
  gate.WaitForStep();
  gate.Open();
  server.WaitUntilIdle();  // nothing was read yet: what did not fit into buffers is merged
  std::string text;
  v1::GenerateStreamResponse message;
  while (reader->Read(&message)) {
    EXPECT_LE(message.ByteSizeLong(), 5'000u);
    text += message.delta().text();
  }
  EXPECT_TRUE(reader->Finish().ok());
  EXPECT_EQ(text.size(), 200u);

  // One token's message, and the last one's prompt, may be too large all the same.
  request.set_max_response_bytes(200);
  EXPECT_EQ(DetailsOf(GenerateStream(server, request).status).reason, "RESPONSE_TOO_LARGE");
  request.clear_logprobs();
  request.set_text(std::string(50, 'x'));
  request.set_prompt_logprobs(20);
  for (const int max_bytes : {10'000, 15'000}) {  // known at once, and when it is there
    request.set_max_response_bytes(max_bytes);
    EXPECT_EQ(DetailsOf(GenerateStream(server, request).status).reason, "RESPONSE_TOO_LARGE");
  }
  server.WaitUntilIdle();
}

TEST(GenerateTest, NoLogprobsUnlessAsked) {
  TestServer server;
  const v1::GenerateResponse response = Generate(server, Request("x"));
  EXPECT_THAT(response.completions(0).logprobs(), IsEmpty());
  EXPECT_THAT(response.prompt_logprobs(), IsEmpty());
}

TEST(GenerateTest, AnEndTokenEndsTheText) {
  TestModel model;
  model.eos_token_ids = {kEndToken};
  model.model.logits = [](absl::Span<const int32_t> tokens) {
    std::vector<float> logits(300, 0.0f);
    logits[tokens.size() < 6 ? 'a' : kEndToken] = 10;
    return logits;
  };
  TestServer server({model});
  v1::GenerateRequest request = Request("xyz", 10);
  v1::Completion completion = Generate(server, request).completions(0);
  EXPECT_EQ(completion.text(), "aaa");
  EXPECT_THAT(completion.token_ids(), ElementsAre('a', 'a', 'a', kEndToken));
  EXPECT_EQ(completion.finish_reason(), v1::FINISH_REASON_STOP);
  request.set_ignore_eos(true);
  completion = Generate(server, request).completions(0);
  EXPECT_EQ(completion.token_ids_size(), 10);
  EXPECT_EQ(completion.finish_reason(), v1::FINISH_REASON_LENGTH);
}

TEST(GenerateTest, LongPromptsAreServed) {
  TestModel model;
  model.model.max_position_embeddings = 20'000;
  model.model.model.kv_cache_tokens = 24'000;
  model.model.model.max_step_tokens = 4096;
  model.model.logits = [](absl::Span<const int32_t> tokens) {
    std::vector<float> logits(300, 0.0f);
    logits['a' + tokens.size() % 2] = 10;
    return logits;
  };
  TestServer server({model});
  const v1::GenerateRequest request = Request(std::string(16'000, 'p'), 3);
  const v1::GenerateResponse response = Generate(server, request);
  EXPECT_EQ(response.completions(0).text(), "aba");
  EXPECT_EQ(response.usage().prompt_tokens(), 16'000);
  EXPECT_EQ(GenerateStream(server, request).texts.at(0), "aba");
}

TEST(GenerateTest, ClientsTakeTurns) {
  Gate gate;
  TestModel model;
  model.model.before_forward = gate.Hook();
  model.engine_loop.max_running_sequences = 1;
  TestServer server({model});
  gate.Close();

  absl::Mutex mutex;
  std::string finished;
  std::vector<std::thread> calls;
  for (const char client : std::string("aaaab")) {
    calls.emplace_back([&, client] {
      grpc::ClientContext context;
      context.AddMetadata("client-id", std::string(1, client));
      v1::GenerateResponse response;
      EXPECT_TRUE(server.generation().Generate(&context, Request("once", 2), &response).ok());
      absl::MutexLock lock(&mutex);
      finished += client;
    });
    // In this order.
    while (server.engine_loop().stats().num_running + server.engine_loop().stats().num_waiting <
           static_cast<int>(calls.size())) {
      std::this_thread::yield();
    }
  }
  // Two steps for each call: the first, and at most one more of its client, go before.
  gate.LetThrough(6);
  {
    absl::MutexLock lock(&mutex);
    const auto three_finished = [&] { return finished.size() >= 3; };
    mutex.Await(absl::Condition(&three_finished));
    EXPECT_NE(finished.find('b'), std::string::npos) << finished;
  }
  gate.Open();
  for (std::thread& call : calls) call.join();
}

}  // namespace
}  // namespace ultrasketch
