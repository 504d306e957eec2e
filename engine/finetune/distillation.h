// How far a student's predictions are from its teacher's, and which way is down.
#ifndef ULTRASKETCH_ENGINE_FINETUNE_DISTILLATION_H_
#define ULTRASKETCH_ENGINE_FINETUNE_DISTILLATION_H_

#include <cstdint>
#include <vector>

#include <ATen/core/Tensor.h>

#include "engine/finetune/decoder.h"
#include "engine/finetune/student.h"

namespace ultrasketch {

// The sum over tokens of KL(teacher || student) over the vocabulary, in nats, and its gradients
// times `gradient_scale`.
struct DivergenceResult {
  at::Tensor sum;              // [1], float
  at::Tensor hidden_gradient;  // [num_tokens, hidden_size], in the compute type
  at::Tensor head_gradient;    // [vocab_size, hidden_size], float; undefined unless asked for
};

// Hidden states [num_tokens, hidden_size] and heads [vocab_size, hidden_size], all of one type.
// Logits exist for a few tokens at a time; no graph is recorded.
DivergenceResult Divergence(const at::Tensor& student_hidden, const at::Tensor& student_head,
                            const at::Tensor& teacher_hidden, const at::Tensor& teacher_head,
                            double gradient_scale, bool with_head_gradient);

// The sum of the negative log-likelihoods, in nats, of `labels` [num_tokens] (int64): [1], double.
at::Tensor SumOfNegativeLogLikelihoods(const at::Tensor& hidden, const at::Tensor& head,
                                       const at::Tensor& labels);

struct DistillationOptions {
  // Weight of the hidden states' loss: the mean over layers of |student - teacher|^2 / |teacher|^2,
  // both the residual stream after the layer. 0: none.
  double hidden_loss = 0;
  // Keeps only what enters each layer, and computes the rest anew on the way back: memory of one
  // layer instead of all, for a third more work.
  bool checkpoint_activations = false;
};

// Adds to the student's gradients those of the mean over tokens of the divergence plus the weighted
// hidden loss, times `weight`, for ids [num_windows, window_tokens] (int64, on the device). Returns
// [2], float, on the device: mean divergence and hidden loss, unweighted.
at::Tensor AddDistillationGradients(const Decoder& teacher, Student& student,
                                    const RotaryTables& rotary, const at::Tensor& ids,
                                    double weight, const DistillationOptions& options);

}  // namespace ultrasketch

#endif  // ULTRASKETCH_ENGINE_FINETUNE_DISTILLATION_H_
