// A residual block in training, forward and backward as one call each, with everything that does not change from call
// to call made ready.
#pragma once

#include <cstddef>
#include <vector>

#include "kernels.h"

namespace fused_resnet {

// raw = conv(act(norm(value))), then a batch norm by its statistics and an activation, which whoever reads it applies.
// Values are numbered: the block's input is 0, and layer i has value i + 1. float and double alone.
struct TrainingLayer {
  ConvArgs conv;
  ConvAlgorithm weight_gradient;
  ActivationArgs activation;
  double eps, momentum;
  int x;  // number of a value
};

// What a training step reads of a block, and keeps. Statistics are [2, K] for each layer: mean and biased variance.
struct BlockState {
  const void* x;                  // [N, H, W, C], the block's input
  std::vector<void*> parameters;  // of each layer: weight [K, C / groups, R, S], weight [K] and bias [K] of its norm
  std::vector<void*> raw;         // [N, OH, OW, K] of each layer
  char* statistics;
};

struct BlockGradients {
  void* x;                    // [N, H, W, C]
  std::vector<void*> weight;  // [K, C / groups, R, S] of each layer
  char* bn;                   // [4, K] for each layer: of mean, var, weight and bias
};

// out = act(norm(raw of the last layer) + residual), the residual being the block's input or the raw output of a layer
// with its norm. Each layer's value is read once.
class TrainingBlock {
 public:
  // residual: number of a value, -1 for none.
  TrainingBlock(std::vector<TrainingLayer> layers, int residual);

  // Whether the instruction set is the one that the algorithms were chosen for.
  bool is_current() const;

  // Writes raw outputs and statistics too. `running` are mean [K], variance [K] and number of batches (int64) of each
  // layer, or null: running += momentum (batch - running), with the unbiased variance of the batch.
  void forward(const BlockState& state, const std::vector<void*>& running, void* out) const;

  // Memory that backward() works in.
  size_t backward_bytes() const { return backward_bytes_; }
  void backward(const void* g_out, const BlockState& state, char* memory, const BlockGradients& gradients) const;

 private:
  // What a kernel reads for a value: the tensor, and the norm and activation to apply to it.
  struct Value {
    const void* data;
    BatchNormArgs bn;
    ActivationArgs activation;
  };

  Value value(const BlockState& state, int number) const;
  void* mean(const BlockState& state, size_t layer) const;
  void* var(const BlockState& state, size_t layer) const;
  bool tail_writes_g_x() const;
  void lay_out();

  const Kernels* kernels_;
  std::vector<TrainingLayer> layers_;
  int residual_;
  std::vector<size_t> vectors_;    // of each layer, in bytes for one [K], where those of the layers before it end
  size_t p_ = 0;                   // places in backward's memory: of what the tail writes, unless into g_x,
  std::vector<size_t> gradients_;  // and of the gradients of the layers' raw outputs
  size_t backward_bytes_ = 0;
};

}  // namespace fused_resnet
