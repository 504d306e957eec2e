#include "engine/format/git_lfs.h"

#include <string>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"

#include "engine/base/strings.h"

namespace ultrasketch {
namespace {

// The first is the specification's, the second that of the program's first versions.
constexpr std::string_view kBeginnings[] = {"version https://git-lfs.github.com/spec/",
                                            "version https://hawser.github.com/spec/"};

// ", which has 123 bytes" where the pointer says so.
std::string SizeOfTheFile(std::string_view pointer) {
  constexpr std::string_view kKey = "\nsize ";
  const size_t begin = pointer.find(kKey);
  if (begin == std::string_view::npos) return "";
  std::string_view digits = pointer.substr(begin + kKey.size());
  digits = digits.substr(0, digits.find_first_not_of("0123456789"));
  int64_t size = 0;
  if (!absl::SimpleAtoi(A(digits), &size)) return "";
  return absl::StrCat(", which has ", size, " bytes");
}

}  // namespace

absl::Status RefuseGitLfsPointer(std::string_view contents, std::string_view path) {
  for (const std::string_view beginning : kBeginnings) {
    if (!contents.starts_with(beginning)) continue;
    return absl::DataLossError(absl::StrCat(
        A(path), ": found a Git LFS pointer in the place of the file", SizeOfTheFile(contents),
        "; run 'git lfs pull' in the model's repository to fetch it"));
  }
  return absl::OkStatus();
}

}  // namespace ultrasketch
