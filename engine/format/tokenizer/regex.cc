#include "engine/format/tokenizer/regex.h"

#include <cstdint>
#include <optional>

#include "absl/strings/str_cat.h"

#include "engine/base/status.h"
#include "engine/format/tokenizer/cancellation.h"
#include "engine/format/tokenizer/utf8.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

namespace ultrasketch::tokenizer_internal {
namespace {

constexpr size_t kMaxPatternBytes = 64 << 10;
constexpr size_t kInitialJitStackBytes = 32 << 10;
constexpr size_t kMaxJitStackBytes = 8 << 20;
constexpr uint32_t kMaxHeapKibibytes = 256 << 10;

// PCRE2 counts backtracking steps. A run of white space is scanned a few times over by the usual
// expressions, so the bound grows with the text; what exceeds it is an expression gone exponential.
uint32_t MatchLimit(size_t text_bytes) {
  const uint64_t limit = 10'000'000 + uint64_t{64} * text_bytes;
  return static_cast<uint32_t>(std::min<uint64_t>(limit, UINT32_MAX));
}

std::string_view AsView(const PCRE2_UCHAR* text) {
  return std::string_view(reinterpret_cast<const char*>(text));
}

std::string ErrorText(int code) {
  PCRE2_UCHAR text[256];
  if (pcre2_get_error_message(code, text, sizeof(text)) < 0) return absl::StrCat("error ", code);
  return std::string(AsView(text));
}

// What a match needs besides the expression. One per thread: creating it costs more than a short
// match.
class MatchScratch {
 public:
  MatchScratch()
      : data_(pcre2_match_data_create(1, nullptr)),
        context_(pcre2_match_context_create(nullptr)),
        jit_stack_(pcre2_jit_stack_create(kInitialJitStackBytes, kMaxJitStackBytes, nullptr)) {
    if (context_ == nullptr) return;
    pcre2_set_heap_limit(context_, kMaxHeapKibibytes);
    // Without a stack of its own, JIT code falls back to 32 KiB of the machine's.
    if (jit_stack_ != nullptr) pcre2_jit_stack_assign(context_, nullptr, jit_stack_);
  }
  ~MatchScratch() {
    pcre2_jit_stack_free(jit_stack_);
    pcre2_match_context_free(context_);
    pcre2_match_data_free(data_);
  }
  MatchScratch(const MatchScratch&) = delete;
  MatchScratch& operator=(const MatchScratch&) = delete;

  bool ok() const { return data_ != nullptr && context_ != nullptr; }
  pcre2_match_data* data() { return data_; }
  pcre2_match_context* context() { return context_; }

 private:
  pcre2_match_data* data_;
  pcre2_match_context* context_;
  pcre2_jit_stack* jit_stack_;
};

MatchScratch& ThreadScratch() {
  static thread_local MatchScratch scratch;
  return scratch;
}

}  // namespace

struct Regex::Code {
  explicit Code(pcre2_code* compiled) : code(compiled) {}
  ~Code() { pcre2_code_free(code); }
  Code(const Code&) = delete;
  Code& operator=(const Code&) = delete;

  pcre2_code* code;
};

Regex::Regex(std::unique_ptr<Code> code) : code_(std::move(code)) {}
Regex::~Regex() = default;

absl::StatusOr<std::unique_ptr<Regex>> Regex::Compile(std::string_view oniguruma) {
  const auto unsupported = [&](std::string_view reason) {
    return absl::UnimplementedError(
        absl::StrCat("regular expression ", Quoted(oniguruma, 200), ": ", A(reason)));
  };
  if (oniguruma.size() > kMaxPatternBytes) return unsupported("longer than 64 KiB");
  const absl::StatusOr<std::string> pattern = TranslateRegex(oniguruma);
  if (!pattern.ok()) return unsupported(S(pattern.status().message()));

  const std::unique_ptr<pcre2_compile_context, decltype(&pcre2_compile_context_free)> context(
      pcre2_compile_context_create(nullptr), &pcre2_compile_context_free);
  if (context == nullptr) return absl::ResourceExhaustedError("out of memory");
  // Fixed here because they otherwise depend on how the library was built.
  pcre2_set_newline(context.get(), PCRE2_NEWLINE_LF);
  pcre2_set_bsr(context.get(), PCRE2_BSR_UNICODE);
  int error = 0;
  PCRE2_SIZE error_offset = 0;
  pcre2_code* compiled =
      pcre2_compile(reinterpret_cast<PCRE2_SPTR>(pattern->data()), pattern->size(),
                    PCRE2_UTF | PCRE2_UCP | PCRE2_MULTILINE, &error, &error_offset, context.get());
  if (compiled == nullptr) return unsupported(ErrorText(error));
  auto code = std::make_unique<Code>(compiled);
  // Where there is no JIT, pcre2_match interprets.
  pcre2_jit_compile(compiled, PCRE2_JIT_COMPLETE);
  return std::unique_ptr<Regex>(new Regex(std::move(code)));
}

absl::Status Regex::FindAll(std::string_view text, std::vector<TextRange>* matches,
                            const std::atomic<bool>* cancelled) const {
  MatchScratch& scratch = ThreadScratch();
  if (!scratch.ok()) return absl::ResourceExhaustedError("out of memory");
  pcre2_set_match_limit(scratch.context(), MatchLimit(text.size()));
  const auto match = [&](size_t from, uint32_t options) {
    return pcre2_match(code_->code, reinterpret_cast<PCRE2_SPTR>(text.data()), text.size(), from,
                       // The check would cost the whole text for every match.
                       options | PCRE2_NO_UTF_CHECK, scratch.data(), scratch.context());
  };
  std::optional<size_t> last_match_end;
  size_t from = 0;
  while (from <= text.size()) {
    US_RETURN_IF_ERROR(CheckNotCancelled(cancelled));
    int result = match(from, 0);
    if (result == PCRE2_ERROR_JIT_STACKLIMIT) result = match(from, PCRE2_NO_JIT);
    if (result == PCRE2_ERROR_NOMATCH) break;
    if (result < 0) {
      return absl::ResourceExhaustedError(
          absl::StrCat("regular expression at byte ", from, " of the text: ", ErrorText(result)));
    }
    const PCRE2_SIZE* bounds = pcre2_get_ovector_pointer(scratch.data());
    const TextRange range{bounds[0], bounds[1]};
    if (range.begin == range.end && range.end == last_match_end) {
      from += from < text.size() ? Utf8Length(text[from]) : 1;
      continue;
    }
    matches->push_back(range);
    from = range.end;
    last_match_end = range.end;
  }
  return absl::OkStatus();
}

}  // namespace ultrasketch::tokenizer_internal
