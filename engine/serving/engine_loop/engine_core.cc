#include "engine/serving/engine_loop/engine_core.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"

#include "engine/base/check.h"
#include "engine/base/status.h"
#include "engine/serving/engine_loop/token_logprobs.h"
#include "engine/serving/engine_loop/validate_request.h"

namespace ultrasketch {

struct EngineCore::Request {
  RequestId id = 0;
  GenerationRequest request;
  std::shared_ptr<GenerationSink> sink;
  absl::Time arrival;
  std::vector<SequenceId> unfinished;
  bool is_scheduled = false;     // some completion was
  bool has_first_token = false;  // some completion has

  // The prompt is scored and nothing is generated.
  bool scores_only() const { return request.max_tokens == 0; }
};

struct EngineCore::Sequence {
  Sequence(SequenceId sequence_id, Request& owner, const Tokenizer& tokenizer, int32_t index,
           int64_t context_tokens)
      : id(sequence_id),
        request(owner),
        completion(owner.request, tokenizer, index, context_tokens) {}

  bool wants_prompt_logprobs() const {
    return request.request.prompt_logprobs >= 0 && completion.index() == 0;
  }

  SequenceId id;
  Request& request;
  Completion completion;
  std::vector<SampledToken> prompt_logprobs;
  int32_t num_cached_prompt_tokens = 0;

  absl::Time first_scheduled = absl::InfiniteFuture();
  absl::Time first_token = absl::InfiniteFuture();
  absl::Time last_token = absl::InfiniteFuture();
  int32_t num_steps = 0;
  int64_t sum_batch_sizes = 0;
};

SchedulerOptions MakeSchedulerOptions(const Model& model, const EngineLoopOptions& options) {
  SchedulerOptions scheduler;
  scheduler.num_blocks = model.cache_layout().num_blocks;
  scheduler.block_size = model.cache_layout().block_size;
  scheduler.max_context_tokens = model.config().max_position_embeddings;
  scheduler.max_step_tokens =
      std::min<int64_t>(options.max_step_tokens, model.options().max_step_tokens);
  scheduler.max_step_logits = model.options().max_step_logits;
  scheduler.max_running_sequences = options.max_running_sequences;
  scheduler.prefix_cache = options.prefix_cache;
  return scheduler;
}

EngineCore::EngineCore(std::unique_ptr<Model> model, std::shared_ptr<const Tokenizer> tokenizer,
                       const EngineLoopOptions& options, std::shared_ptr<EngineObserver> observer)
    : model_(std::move(model)),
      tokenizer_(std::move(tokenizer)),
      observer_(std::move(observer)),
      scheduler_(MakeSchedulerOptions(*model_, options)),
      logits_row_(static_cast<size_t>(model_->config().vocab_size)) {}

EngineCore::~EngineCore() = default;

void EngineCore::Add(QueuedRequest queued) {
  auto owned = std::make_unique<Request>();
  Request& request = *owned;
  request.id = queued.id;
  request.request = std::move(queued.request);
  request.sink = std::move(queued.sink);
  request.arrival = queued.arrival;
  const bool is_new = requests_.emplace(request.id, std::move(owned)).second;
  US_CHECK(is_new);

  const GenerationRequest& wanted = request.request;
  const int64_t context_tokens = scheduler_.options().max_context_tokens;
  // A score needs no logits of the last token, so the token is not computed at all.
  const size_t num_computed = wanted.prompt_ids.size() - (request.scores_only() ? 1 : 0);
  for (int32_t index = 0; index < wanted.num_completions; ++index) {
    const SequenceId id = next_sequence_id_++;
    auto sequence = std::make_unique<Sequence>(id, request, *tokenizer_, index, context_tokens);
    SequenceSpec spec;
    spec.id = id;
    spec.token_ids.assign(wanted.prompt_ids.begin(),
                          wanted.prompt_ids.begin() + static_cast<std::ptrdiff_t>(num_computed));
    spec.max_num_tokens = MaxCachedTokens(wanted, context_tokens);
    spec.priority = wanted.priority;
    spec.client = wanted.client;
    if (sequence->wants_prompt_logprobs()) spec.first_logit_position = 0;
    const absl::Status submitted = scheduler_.Submit(std::move(spec));
    US_CHECK(submitted.ok());  // ValidateRequest has asked CheckFits
    request.unfinished.push_back(id);
    sequences_.emplace(id, std::move(sequence));
  }
  num_waiting_completions_ += wanted.num_completions;
  num_waiting_tokens_ += NumQueuedTokens(wanted);
  ++num_waiting_requests_;
}

void EngineCore::End(RequestId id, FinishReason reason, const absl::Status& status) {
  const auto found = requests_.find(id);
  if (found == requests_.end()) return;
  const absl::Time now = absl::Now();
  // A copy: the request goes with its last sequence.
  const std::vector<SequenceId> unfinished = found->second->unfinished;
  for (const SequenceId sequence : unfinished) {
    scheduler_.Remove(sequence);
    FinishSequence(sequence, reason, status, "", now);
  }
}

void EngineCore::EndAll(FinishReason reason, const absl::Status& status) {
  std::vector<RequestId> ids;
  for (const auto& [id, request] : requests_) ids.push_back(id);
  std::sort(ids.begin(), ids.end());
  for (const RequestId id : ids) End(id, reason, status);
}

void EngineCore::ExpireDeadlines(absl::Time now) {
  std::vector<RequestId> expired;
  for (const auto& [id, request] : requests_) {
    if (request->request.deadline <= now) expired.push_back(id);
  }
  std::sort(expired.begin(), expired.end());
  for (const RequestId id : expired) {
    const Request& request = *requests_.find(id)->second;
    const absl::Status status = absl::DeadlineExceededError(absl::StrCat(
        "the deadline passed ", absl::FormatDuration(now - request.arrival), " after arrival, ",
        request.is_scheduled ? "while the request was served" : "while the request was queued"));
    End(id, FinishReason::kError, status);
  }
}

void EngineCore::BeginStep() {
  US_CHECK(has_requests());
  step_begin_ = absl::Now();
  plan_ = scheduler_.Schedule();
  US_CHECK(!plan_.sequences.empty());
  MarkScheduled(step_begin_);
}

void EngineCore::FinishStep() {
  if (const absl::Status status = model_->Forward(plan_.slices); !status.ok()) {
    FailStep(status);
    return;
  }
  step_computed_ = absl::Now();
  outputs_.clear();
  CollectPromptLogprobs();
  SampleNext();
  scheduler_.Update(plan_, outputs_);
  ReportStep(absl::Now());
}

void EngineCore::MarkScheduled(absl::Time now) {
  for (size_t i = 0; i < plan_.sequences.size(); ++i) {
    Sequence& sequence = *sequences_.find(plan_.sequences[i].id)->second;
    ++sequence.num_steps;
    sequence.sum_batch_sizes += static_cast<int64_t>(plan_.sequences.size());
    if (sequence.first_scheduled != absl::InfiniteFuture()) continue;
    sequence.first_scheduled = now;
    sequence.num_cached_prompt_tokens = static_cast<int32_t>(plan_.slices[i].num_cached);
    --num_waiting_completions_;
    Request& request = sequence.request;
    num_waiting_tokens_ -= static_cast<int64_t>(request.request.prompt_ids.size());
    if (request.is_scheduled) continue;
    request.is_scheduled = true;
    --num_waiting_requests_;
    if (observer_ != nullptr) observer_->OnScheduled(now - request.arrival);
  }
}

void EngineCore::FailStep(const absl::Status& status) {
  for (const ScheduledSequence& scheduled : plan_.sequences) {
    const auto found = sequences_.find(scheduled.id);  // gone with an earlier one of its request
    if (found != sequences_.end()) {
      End(found->second->request.id, FinishReason::kError, status);
    }
  }
}

void EngineCore::CollectPromptLogprobs() {
  for (size_t i = 0; i < plan_.sequences.size(); ++i) {
    const SequenceSlice& slice = plan_.slices[i];
    const auto found = sequences_.find(plan_.sequences[i].id);
    if (found == sequences_.end() || !found->second->wants_prompt_logprobs()) continue;

    Sequence& sequence = *found->second;
    const GenerationRequest& request = sequence.request.request;
    const int64_t num_prompt_tokens = static_cast<int64_t>(request.prompt_ids.size());
    int64_t row = plan_.sequences[i].first_logits_row;
    for (int64_t position = slice.end() - slice.num_logits;
         position < slice.end() && position + 1 < num_prompt_tokens; ++position, ++row) {
      absl::Status status = model_->CopyLogits(row, absl::MakeSpan(logits_row_));
      if (status.ok()) {
        absl::StatusOr<SampledToken> token =
            LogprobsOfToken(logits_row_, request.prompt_ids[static_cast<size_t>(position + 1)],
                            request.prompt_logprobs);
        status = token.status();
        if (status.ok()) sequence.prompt_logprobs.push_back(*std::move(token));
      }
      if (!status.ok()) {
        End(sequence.request.id, FinishReason::kError, status);
        break;
      }
    }
  }
}

void EngineCore::SampleNext() {
  std::vector<SequenceId> ids;
  std::vector<SampleRequest> draws;
  const absl::Time computed = absl::Now();
  for (size_t i = 0; i < plan_.sequences.size(); ++i) {
    const ScheduledSequence& scheduled = plan_.sequences[i];
    const auto found = sequences_.find(scheduled.id);
    if (found == sequences_.end() || !scheduled.is_last_chunk) continue;
    Sequence& sequence = *found->second;
    if (sequence.request.scores_only()) {
      outputs_.push_back({.id = scheduled.id, .token_ids = {}, .ended = true});
      FinishSequence(scheduled.id, FinishReason::kLength, absl::OkStatus(), "", computed);
      continue;
    }
    ids.push_back(scheduled.id);
    draws.push_back(sequence.completion.NextSample(scheduled.first_logits_row +
                                                   plan_.slices[i].num_logits - 1));
  }
  step_sampled_ = computed;
  if (draws.empty()) return;

  std::vector<SampledToken> tokens(draws.size());
  std::vector<absl::Status> statuses(draws.size());
  if (!model_->Sample(draws, absl::MakeSpan(tokens)).ok()) {
    // One request's parameters or logits may leave no token to choose: the others go on.
    for (size_t i = 0; i < draws.size(); ++i) {
      statuses[i] = model_->Sample(absl::MakeConstSpan(draws).subspan(i, 1),
                                   absl::MakeSpan(tokens).subspan(i, 1));
    }
  }

  const absl::Time now = absl::Now();
  step_sampled_ = now;
  for (size_t i = 0; i < ids.size(); ++i) {
    const auto found = sequences_.find(ids[i]);  // gone if another completion of it failed
    if (found == sequences_.end()) continue;
    if (statuses[i].ok()) {
      AcceptToken(*found->second, std::move(tokens[i]), now);
    } else {
      End(found->second->request.id, FinishReason::kError, statuses[i]);
    }
  }
}

void EngineCore::AcceptToken(Sequence& sequence, SampledToken token, absl::Time now) {
  Request& request = sequence.request;
  if (sequence.first_token == absl::InfiniteFuture()) {
    sequence.first_token = now;
  } else if (observer_ != nullptr) {
    observer_->OnInterToken(now - sequence.last_token);
  }
  sequence.last_token = now;
  if (!request.has_first_token) {
    request.has_first_token = true;
    if (observer_ != nullptr) observer_->OnFirstToken(now - request.arrival);
  }

  const int32_t token_id = token.id;
  GenerationDelta delta;
  std::optional<Completion::Ending> ending = sequence.completion.Accept(std::move(token), delta);
  EngineEvent event;
  event.sink = request.sink;
  event.delta = std::move(delta);
  event.is_first = sequence.completion.num_tokens() == 1;
  events_.push_back(std::move(event));
  if (ending.has_value()) {
    outputs_.push_back({.id = sequence.id, .token_ids = {}, .ended = true});
    FinishSequence(sequence.id, ending->reason, absl::OkStatus(), std::move(ending->stop_string),
                   now);
  } else {
    outputs_.push_back({.id = sequence.id, .token_ids = {token_id}, .ended = false});
  }
}

void EngineCore::FinishSequence(SequenceId id, FinishReason reason, const absl::Status& status,
                                std::string stop_string, absl::Time now) {
  const auto found = sequences_.find(id);
  US_CHECK(found != sequences_.end());
  const std::unique_ptr<Sequence> sequence = std::move(found->second);
  sequences_.erase(found);
  Request& request = sequence->request;

  auto owned_result = std::make_unique<GenerationResult>();
  GenerationResult& result = *owned_result;
  result.completion = sequence->completion.index();
  result.reason = reason;
  result.status = status;
  result.stop_string = std::move(stop_string);
  result.num_prompt_tokens = static_cast<int32_t>(request.request.prompt_ids.size());
  result.num_cached_prompt_tokens = sequence->num_cached_prompt_tokens;
  result.num_completion_tokens = sequence->completion.num_tokens();
  result.prompt_logprobs = std::move(sequence->prompt_logprobs);
  const absl::Time scheduled = std::min(sequence->first_scheduled, now);
  const absl::Time first_token = std::min(sequence->first_token, now);
  const absl::Time last_token = std::min(sequence->last_token, now);
  result.timing.queue = scheduled - request.arrival;
  result.timing.prefill = first_token - scheduled;
  result.timing.decode = last_token - first_token;
  result.timing.num_steps = sequence->num_steps;
  if (sequence->num_steps > 0) {
    result.timing.mean_batch_size =
        static_cast<double>(sequence->sum_batch_sizes) / sequence->num_steps;
  }

  if (sequence->first_scheduled == absl::InfiniteFuture()) {
    --num_waiting_completions_;
    num_waiting_tokens_ -= static_cast<int64_t>(request.request.prompt_ids.size());
  }
  std::erase(request.unfinished, id);
  EngineEvent event;
  event.sink = request.sink;
  event.result = std::move(owned_result);
  if (request.unfinished.empty()) {
    event.finished_request = request.id;
    if (!request.is_scheduled) --num_waiting_requests_;
    requests_.erase(request.id);
  }
  events_.push_back(std::move(event));
}

void EngineCore::ReportStep(absl::Time end) {
  if (observer_ == nullptr) return;
  StepReport report;
  report.duration = end - step_begin_;
  report.num_sequences = static_cast<int32_t>(plan_.sequences.size());
  report.num_decode_tokens = static_cast<int32_t>(plan_.num_decode_tokens);
  report.num_prefill_tokens = static_cast<int32_t>(plan_.num_tokens - plan_.num_decode_tokens);
  report.stages = model_->stage_durations();
  if (report.stages.has_value()) {
    StageDurations& stages = *report.stages;
    stages[StepStage::kSampling] += step_sampled_ - step_computed_;
    stages[StepStage::kOther] = std::max(absl::ZeroDuration(), report.duration - stages.total());
  }
  observer_->OnStep(report);
}

void EngineCore::TrimCache() {
  if (model_->can_discard_blocks()) model_->DiscardBlocks(scheduler_.TakeUnusedBlocks());
}

bool EngineCore::has_cache_to_trim() const {
  return model_->can_discard_blocks() && scheduler_.cache().has_unused();
}

std::vector<EngineEvent> EngineCore::TakeEvents() { return std::exchange(events_, {}); }

EngineLoopStats EngineCore::stats() const {
  EngineLoopStats stats;
  stats.num_waiting = num_waiting_requests_;
  stats.num_waiting_tokens = num_waiting_tokens_;
  stats.num_running = static_cast<int32_t>(requests_.size()) - num_waiting_requests_;
  stats.kv_blocks_used = scheduler_.cache().pool().num_used();
  stats.kv_blocks_free = scheduler_.cache().pool().num_free();
  stats.kv_blocks_cached = scheduler_.cache().num_cached();
  stats.num_preemptions = scheduler_.num_preemptions();
  stats.prefix_cache_hit_tokens = scheduler_.prefix_cache_counts().num_hit_tokens;
  stats.prefix_cache_miss_tokens = scheduler_.prefix_cache_counts().num_miss_tokens;
  return stats;
}

}  // namespace ultrasketch
