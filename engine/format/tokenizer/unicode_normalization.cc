#include "engine/format/tokenizer/unicode_normalization.h"

#include <algorithm>
#include <cstdint>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "unicode/bytestream.h"
#include "unicode/normalizer2.h"
#include "unicode/unistr.h"

#include "engine/base/status.h"
#include "engine/format/tokenizer/utf8.h"

namespace ultrasketch::tokenizer_internal {
namespace {

// Marks in a row that ICU may order by itself.
constexpr size_t kMaxUnsortedMarks = 32;
constexpr uint32_t kFirstMark = 0x300;

const icu::Normalizer2* Instance(NormalizationForm form, UErrorCode* error) {
  switch (form) {
    case NormalizationForm::kNfc:
      return icu::Normalizer2::getNFCInstance(*error);
    case NormalizationForm::kNfd:
      return icu::Normalizer2::getNFDInstance(*error);
    case NormalizationForm::kNfkc:
      return icu::Normalizer2::getNFKCInstance(*error);
    case NormalizationForm::kNfkd:
      return icu::Normalizer2::getNFKDInstance(*error);
  }
  return nullptr;
}

// ICU puts combining marks into canonical order by insertion: quadratic in the length of a run of
// marks, which is seconds for a hostile megabyte. Long runs are decomposed and sorted here; the
// result is canonically equivalent, so that its normal forms are those of the original.
class MarkSorter {
 public:
  explicit MarkSorter(const icu::Normalizer2& normalizer) : normalizer_(normalizer) {}

  std::string Sort(std::string_view text) {
    out_.reserve(text.size());
    size_t run_begin = 0;
    size_t position = 0;
    while (position < text.size()) {
      const size_t begin = position;
      const uint32_t code_point = NextCodePoint(text, &position);
      const size_t num_marks = marks_.size();
      if (MayBeMark(code_point) && AppendMarks(code_point)) continue;
      marks_.resize(num_marks);
      EndRun(text.substr(run_begin, begin - run_begin));
      out_ += text.substr(begin, position - begin);
      run_begin = position;
    }
    EndRun(text.substr(run_begin));
    return std::move(out_);
  }

 private:
  struct Mark {
    uint8_t combining_class;
    uint32_t code_point;
  };

  // False for what begins something new whatever comes before it, which is most of any text.
  bool MayBeMark(uint32_t code_point) const {
    return code_point >= kFirstMark &&
           !normalizer_.hasBoundaryBefore(static_cast<UChar32>(code_point));
  }

  // Appends the decomposition of `code_point`; false when it has a character that is no mark.
  bool AppendMarks(uint32_t code_point) {
    const auto append = [this](UChar32 mark) {
      const uint8_t combining_class = normalizer_.getCombiningClass(mark);
      marks_.push_back({combining_class, static_cast<uint32_t>(mark)});
      return combining_class != 0;
    };
    if (!normalizer_.getDecomposition(static_cast<UChar32>(code_point), decomposition_)) {
      return append(static_cast<UChar32>(code_point));
    }
    for (int32_t i = 0; i < decomposition_.length();) {
      const UChar32 part = decomposition_.char32At(i);
      if (!append(part)) return false;
      i += U16_LENGTH(part);
    }
    return true;
  }

  void EndRun(std::string_view run) {
    if (marks_.size() <= kMaxUnsortedMarks) {
      out_ += run;
    } else {
      std::stable_sort(marks_.begin(), marks_.end(), [](const Mark& a, const Mark& b) {
        return a.combining_class < b.combining_class;
      });
      for (const Mark& mark : marks_) AppendUtf8(mark.code_point, &out_);
    }
    marks_.clear();
  }

  const icu::Normalizer2& normalizer_;
  std::string out_;
  std::vector<Mark> marks_;
  icu::UnicodeString decomposition_;
};

// Appends the normal form of `text`.
absl::Status AppendNormalized(const icu::Normalizer2& normalizer, std::string_view text,
                              std::string* out) {
  UErrorCode error = U_ZERO_ERROR;
  const std::string sorted = MarkSorter(normalizer).Sort(text);
  icu::StringByteSink<std::string> sink(out);
  normalizer.normalizeUTF8(0, icu::StringPiece(sorted.data(), static_cast<int32_t>(sorted.size())),
                           sink, nullptr, error);
  if (U_SUCCESS(error)) return absl::OkStatus();
  return absl::InternalError(absl::StrCat("Unicode normalization: ", u_errorName(error)));
}

// Whether the text can be cut before the character at `position`: both parts are normalized as the
// whole is.
bool IsBoundary(const icu::Normalizer2& normalizer, std::string_view text, size_t position) {
  if (position == 0 || position >= text.size()) return true;
  if ((static_cast<uint8_t>(text[position]) & 0xc0) == 0x80) return false;  // inside a character
  return normalizer.hasBoundaryBefore(static_cast<UChar32>(NextCodePoint(text, &position)));
}

}  // namespace

absl::Status NormalizeUnicode(NormalizationForm form, std::string* text,
                              std::vector<ByteRange>* ranges) {
  UErrorCode error = U_ZERO_ERROR;
  const icu::Normalizer2* normalizer = Instance(form, &error);
  if (U_FAILURE(error)) {
    return absl::InternalError(absl::StrCat("Unicode normalization: ", u_errorName(error)));
  }
  const std::string_view all = *text;
  std::string normalized;
  normalized.reserve(all.size());
  std::vector<ByteRange> moved;
  size_t done = 0;  // a boundary
  for (const ByteRange& range : *ranges) {
    if (range.end <= done) continue;  // in the widened range before it
    size_t begin = std::max(range.begin, done);
    while (begin > done && !IsBoundary(*normalizer, all, begin)) --begin;
    size_t end = range.end;
    while (!IsBoundary(*normalizer, all, end)) ++end;
    US_RETURN_IF_ERROR(AppendNormalized(*normalizer, all.substr(done, begin - done), &normalized));
    const size_t moved_begin = normalized.size();
    US_RETURN_IF_ERROR(AppendNormalized(*normalizer, all.substr(begin, end - begin), &normalized));
    moved.push_back({moved_begin, normalized.size()});
    done = end;
  }
  US_RETURN_IF_ERROR(AppendNormalized(*normalizer, all.substr(done), &normalized));
  *text = std::move(normalized);
  *ranges = std::move(moved);
  return absl::OkStatus();
}

}  // namespace ultrasketch::tokenizer_internal
