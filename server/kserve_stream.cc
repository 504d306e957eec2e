#include "server/kserve_stream.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"

#include "engine/base/status.h"
#include "server/engine_call.h"
#include "server/kserve_request.h"
#include "server/kserve_response.h"
#include "server/request_translation.h"
#include "server/response_limit.h"
#include "server/response_translation.h"
#include "server/status.h"

namespace ultrasketch {
namespace {

// A piece of this size takes no more: enough that their number does not matter.
constexpr int64_t kMergedBytes = int64_t{1} << 20;

constexpr char kFinalResponse[] = "triton_final_response";

}  // namespace

// One request of the stream. What is guarded is so by the stream's mutex.
class KserveStream::Request final : public GenerationSink, public EngineCall {
 public:
  Request(std::shared_ptr<KserveStream> stream, const inference::ModelInferRequest& message)
      : EngineCall(stream->environment_, "ModelStreamInfer", stream->context_),
        stream_(std::move(stream)),
        invalid_(TranslateInferRequest(message, &infer_)),
        outputs_(infer_.request.has_n()
                     ? static_cast<size_t>(std::clamp(infer_.request.n(), 1, 1024))
                     : 1) {
    model_call().record().set_is_part_of_call();
    model_call().record().SetPrompt(infer_.request.text());
  }
  ~Request() override {
    model_call().open_calls().AddUnreadBytes(-num_unread_bytes_);
    model_call().OnDone();
  }

  void Start() { EngineCall::Start(InputBytes(infer_.request)); }

  void OnDelta(GenerationDelta delta) override {
    model_call().CountDelta(delta, num_prompt_tokens_);
    absl::MutexLock lock(&stream_->mutex_);
    if (!stream_->client_reads_ || !status_.ok() || is_answered_) return;
    std::deque<Piece>& pieces = outputs_[static_cast<size_t>(delta.completion)].pieces;
    if (pieces.empty() || (infer_.stream && static_cast<int64_t>(pieces.back().text.size()) >=
                                                std::min(kMergedBytes, max_response_bytes_ / 2))) {
      pieces.emplace_back();
    }
    pieces.back().text += delta.text;
    pieces.back().num_tokens += static_cast<uint32_t>(delta.token_ids.size());
    AddUnread(static_cast<int64_t>(delta.text.size()));
    status_ =
        infer_.stream ? CheckUnread() : CheckResponseBytes(num_unread_bytes_, max_response_bytes_);
    if (!status_.ok()) {
      model_call().CancelRequest();
    } else if (infer_.stream) {
      stream_->Enqueue(Share<Request>(this));
      stream_->Advance();
    }
  }

  void OnFinish(GenerationResult result) override {
    absl::Status status;
    {
      absl::MutexLock lock(&stream_->mutex_);
      if (status_.ok()) status_ = result.status;
      outputs_[static_cast<size_t>(result.completion)].finish_reason = ToMessage(result.reason);
      if (--num_unfinished_ > 0) return;
      status = status_;
    }
    status = model_call().End(std::move(status));
    absl::MutexLock lock(&stream_->mutex_);
    End(status);
  }

  // The next response. True when it is the last.
  bool TakeResponse(inference::ModelStreamInferResponse* response)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(stream_->mutex_) {
    response->Clear();
    if (status_.ok()) {
      InferOutputs next;
      bool is_last = has_ended_;
      for (Output& output : outputs_) {
        Piece piece;
        if (!output.pieces.empty()) {
          piece = std::move(output.pieces.front());
          output.pieces.pop_front();
        }
        is_last = is_last && output.pieces.empty();
        AddUnread(-static_cast<int64_t>(piece.text.size()));
        next.texts.push_back(std::move(piece.text));
        next.num_output_tokens.push_back(piece.num_tokens);
      }
      for (const Output& output : outputs_) {
        next.finish_reasons.push_back(is_last ? FinishReasonText(output.finish_reason) : "");
      }
      next.num_input_tokens = static_cast<uint32_t>(num_prompt_tokens_);
      inference::ModelInferResponse& message = *response->mutable_infer_response();
      FillInferResponse(infer_, next, &message);
      (*message.mutable_parameters())[kFinalResponse].set_bool_param(is_last);
      status_ =
          CheckResponseBytes(static_cast<int64_t>(response->ByteSizeLong()), max_response_bytes_);
      if (status_.ok()) return is_last;
      model_call().CancelRequest();
    }
    response->Clear();
    response->set_error_message(
        absl::StrCat(absl::StatusCodeToString(status_.code()), ": ", status_.message()));
    inference::ModelInferResponse& message = *response->mutable_infer_response();
    message.set_model_name(infer_.model_name);
    message.set_id(infer_.id);
    (*message.mutable_parameters())[kFinalResponse].set_bool_param(true);
    is_answered_ = true;
    return true;
  }

  // Whether there is something to write.
  bool has_more() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(stream_->mutex_) {
    return has_ended_ || (infer_.stream && !outputs_.front().pieces.empty());
  }
  // Whether the engine, or what comes before it, is done with the request.
  bool has_ended() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(stream_->mutex_) { return has_ended_; }

  // While a response is with gRPC, the client has it to read.
  void BeginUnread() {
    if (model_call().limits().before_write != nullptr) model_call().limits().before_write();
    model_call().BeginUnread();
  }
  void EndUnread() { model_call().EndUnread(); }

  bool is_queued = false;  // guarded

 private:
  struct Piece {
    std::string text;
    uint32_t num_tokens = 0;
  };
  // One completion's, as far as it is not written.
  struct Output {
    std::deque<Piece> pieces;
    v1::FinishReason finish_reason = v1::FINISH_REASON_UNSPECIFIED;
  };

  const std::string& model_name() const override { return infer_.request.model(); }
  Demand demand() const override {
    return {CompletionsOf(infer_.request), EstimateTokens(infer_.request)};
  }
  absl::Status CheckForm() const override { return invalid_; }

  void Refuse(const absl::Status& status) override {
    const absl::Status error = model_call().EndRejected(ForKserve(status));
    absl::MutexLock lock(&stream_->mutex_);
    End(error);
  }

  void AddUnread(int64_t num_bytes) ABSL_EXCLUSIVE_LOCKS_REQUIRED(stream_->mutex_) {
    num_unread_bytes_ += num_bytes;
    model_call().open_calls().AddUnreadBytes(num_bytes);
  }

  // Whether too much waits to be read.
  absl::Status CheckUnread() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(stream_->mutex_) {
    const int64_t most = model_call().limits().max_unread_bytes;
    if (stream_->writing_ == nullptr || num_unread_bytes_ <= most) return absl::OkStatus();
    return WithReason(absl::ResourceExhaustedError(absl::StrCat(
                          "the client has not read ", num_unread_bytes_,
                          " bytes of this request's answer, more than ", most, " may wait")),
                      kSlowReaderReason);
  }

  absl::Status Submit(const HostedModel& model) override {
    US_ASSIGN_OR_RETURN(max_response_bytes_, MaxResponseBytes(infer_.request));
    US_ASSIGN_OR_RETURN(GenerationRequest request,
                        TranslateGenerateRequest(infer_.request, model, model_call().deadline(),
                                                 &model_call().client_gone()));
    Sign(request);
    num_prompt_tokens_ = static_cast<int64_t>(request.prompt_ids.size());
    {
      absl::MutexLock lock(&stream_->mutex_);
      num_unfinished_ = request.num_completions;
    }
    return model_call().OnSubmitted(
        model.engine_loop->Submit(std::move(request), Share<GenerationSink>(this)));
  }

  void End(const absl::Status& status) ABSL_EXCLUSIVE_LOCKS_REQUIRED(stream_->mutex_) {
    status_ = status;
    has_ended_ = true;
    if (stream_->client_reads_ && !is_answered_) {
      stream_->Enqueue(Share<Request>(this));
    } else {
      stream_->open_.erase(Share<Request>(this));
    }
    stream_->Advance();
  }

  const std::shared_ptr<KserveStream> stream_;
  InferCall infer_;
  const absl::Status invalid_;

  // Set before the request is submitted, then only read.
  int64_t num_prompt_tokens_ = 0;
  int64_t max_response_bytes_ = 0;

  // Guarded.
  std::vector<Output> outputs_;
  int64_t num_unread_bytes_ = 0;  // of text
  int32_t num_unfinished_ = 1;
  absl::Status status_;  // the first that went wrong
  bool has_ended_ = false;
  bool is_answered_ = false;  // by an error, though the engine has not ended
};

std::shared_ptr<KserveStream> KserveStream::Create(const CallEnvironment& environment,
                                                   grpc::CallbackServerContext* context) {
  std::shared_ptr<KserveStream> stream(new KserveStream(environment, context));
  stream->self_ = stream;
  absl::MutexLock lock(&stream->mutex_);
  stream->Advance();
  return stream;
}

void KserveStream::OnReadDone(bool ok) {
  // Until is_reading_ is false, the message is ours.
  std::shared_ptr<Request> request;
  if (ok) request = std::make_shared<Request>(shared_from_this(), incoming_);
  {
    absl::MutexLock lock(&mutex_);
    is_reading_ = false;
    if (!ok) has_read_all_ = true;
    if (!client_reads_) request = nullptr;
    if (request != nullptr) open_.insert(request);
  }
  if (request != nullptr) request->Start();
  absl::MutexLock lock(&mutex_);
  Advance();
}

void KserveStream::OnWriteDone(bool ok) {
  if (!ok) GiveUp();
  absl::MutexLock lock(&mutex_);
  const std::shared_ptr<Request> written = std::exchange(writing_, nullptr);
  written->EndUnread();
  if (is_last_response_ && written->has_ended()) {
    open_.erase(written);
  } else if (client_reads_ && !is_last_response_ && written->has_more()) {
    Enqueue(written);
  }
  Advance();
}

void KserveStream::OnCancel() { GiveUp(); }

void KserveStream::GiveUp() {
  std::vector<std::shared_ptr<Request>> open;
  {
    absl::MutexLock lock(&mutex_);
    client_reads_ = false;
    writable_.clear();
    open.assign(open_.begin(), open_.end());
    for (const std::shared_ptr<Request>& request : open) {
      if (request->has_ended()) open_.erase(request);
    }
  }
  for (const std::shared_ptr<Request>& request : open) request->model_call().OnClientGone();
  absl::MutexLock lock(&mutex_);
  Advance();
}

void KserveStream::Enqueue(std::shared_ptr<Request> request) {
  if (std::exchange(request->is_queued, true)) return;
  writable_.push_back(std::move(request));
}

void KserveStream::Advance() {
  if (is_finished_) return;
  if (writing_ == nullptr && !writable_.empty()) {
    writing_ = std::move(writable_.front());
    writable_.pop_front();
    writing_->is_queued = false;
    is_last_response_ = writing_->TakeResponse(&outgoing_);
    writing_->BeginUnread();
    StartWrite(&outgoing_);
  }
  if (!is_reading_ && !has_read_all_ && client_reads_ && open_.size() < kMaxOpenRequests) {
    is_reading_ = true;
    StartRead(&incoming_);
  }
  const bool has_all_requests = has_read_all_ || !client_reads_;
  if (has_all_requests && !is_reading_ && writing_ == nullptr && open_.empty()) {
    is_finished_ = true;
    Finish(grpc::Status::OK);
  }
}

}  // namespace ultrasketch
