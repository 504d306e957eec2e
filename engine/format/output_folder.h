// Folders that a model is written to: they appear whole or not at all.
#ifndef ULTRASKETCH_ENGINE_FORMAT_OUTPUT_FOLDER_H_
#define ULTRASKETCH_ENGINE_FORMAT_OUTPUT_FOLDER_H_

#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"

namespace ultrasketch {

// Where a model made from `inputs` (files or folders) may go: `folder` with all links followed.
// Nothing may be there, or an empty folder; with `overwrite` also a compressed model.
//
// ALREADY_EXISTS or FAILED_PRECONDITION when there is something else; INVALID_ARGUMENT for what a
// new folder cannot take the place of (the current folder, one where a file system is mounted) and
// a folder that is, or contains, one of `inputs`.
absl::StatusOr<std::string> ResolveOutputFolder(absl::Span<const std::string> inputs,
                                                const std::string& folder, bool overwrite);

// Whether the folder is a model that this project compressed.
bool IsCompressedModel(const std::string& folder);

// Makes what has been written to a folder's list of files last.
absl::Status SyncFolder(const std::string& folder);

// Moves the complete folder `staged` to `folder`, of the same file system. What was there, an empty
// folder or one to replace, is then at `staged`, if anywhere. Both changes are one where the file
// system can exchange folders.
absl::Status PublishFolder(const std::string& staged, const std::string& folder);

}  // namespace ultrasketch

#endif  // ULTRASKETCH_ENGINE_FORMAT_OUTPUT_FOLDER_H_
