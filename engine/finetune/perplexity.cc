#include "engine/finetune/perplexity.h"

#include <algorithm>
#include <cmath>

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>

#include "engine/finetune/distillation.h"

namespace ultrasketch {

absl::StatusOr<double> Perplexity(const Decoder& decoder, const std::vector<int64_t>& tokens,
                                  const PerplexityOptions& options) {
  const at::NoGradGuard no_gradient;
  const auto total = static_cast<int64_t>(tokens.size()) - 1;
  const int64_t window = options.window_tokens;
  const at::Device device = decoder.options().device;
  const Decoder::Tables tables = decoder.CurrentTables();
  const at::Tensor all =
      at::from_blob(const_cast<int64_t*>(tokens.data()), {total + 1}, at::kLong).to(device);
  at::Tensor sum = at::zeros({1}, at::TensorOptions().dtype(at::kDouble).device(device));
  int64_t done = 0;
  while (done < total) {
    const int64_t left = total - done;
    // Windows of full length together, a shorter last one by itself.
    const int64_t length = std::min(window, left);
    const int64_t count = std::max<int64_t>(1, std::min(options.windows_at_once, left / window));
    const at::Tensor ids = all.narrow(0, done, count * length).view({count, length});
    const at::Tensor labels = all.narrow(0, done + 1, count * length);
    const at::Tensor hidden = decoder.Run(tables, ids, decoder.MakeRotaryTables(length));
    sum.add_(SumOfNegativeLogLikelihoods(hidden, tables.head, labels));
    done += count * length;
    if (options.progress && !options.progress(done, total)) {
      return absl::CancelledError("the evaluation was cancelled");
    }
  }
  return std::exp(sum.item<double>() / static_cast<double>(total));
}

}  // namespace ultrasketch
