#include "training_block.h"

#include <cmath>

#include "isa.h"
#include "places.h"

namespace fused_resnet {

namespace {

constexpr ActivationArgs kIdentity{Activation::identity, 0};

int64_t pixels(const ConvShape& s) {
  return s.batch * s.out_height * s.out_width;
}

size_t vector_bytes(const ConvArgs& conv) {
  return static_cast<size_t>(conv.shape.out_channels) * (conv.dtype == DType::float64 ? 8 : 4);
}

ChannelView output_view(const ConvShape& s) {
  return {pixels(s), s.out_channels, 1};
}

// As torch.lerp, which does not pass the end.
template <class S>
S moved(S from, S to, S momentum) {
  return std::abs(momentum) < S(0.5) ? from + momentum * (to - from) : to - (to - from) * (S(1) - momentum);
}

// `running` are mean, variance and number of batches.
template <class S>
void move(void* const* running, double by, const ConvShape& shape, const void* mean, const void* var) {
  const auto count = static_cast<double>(pixels(shape));
  const S unbiased = static_cast<S>(count / (count - 1)), momentum = static_cast<S>(by);
  auto *to_mean = static_cast<S*>(running[0]), *to_var = static_cast<S*>(running[1]);
  for (int64_t k = 0; k < shape.out_channels; ++k) {
    if (to_mean) to_mean[k] = moved(to_mean[k], static_cast<const S*>(mean)[k], momentum);
    if (to_var) to_var[k] = moved(to_var[k], static_cast<const S*>(var)[k] * unbiased, momentum);
  }
  if (running[2]) ++*static_cast<int64_t*>(running[2]);
}

}  // namespace

TrainingBlock::TrainingBlock(std::vector<TrainingLayer> layers, int residual)
    : kernels_(&active_kernels()), layers_(std::move(layers)), residual_(residual) {
  lay_out();
}

// Steps of backward(): the tail is step 0, the last layer step 1.
void TrainingBlock::lay_out() {
  const size_t count = layers_.size();
  size_t vectors = 0;
  for (const TrainingLayer& layer : layers_) {
    vectors_.push_back(vectors);
    vectors += vector_bytes(layer.conv);
  }
  Places places;
  const auto add = [&](size_t layer, size_t step, size_t last) {
    const ConvArgs& conv = layers_[layer].conv;
    return places.add(conv.dtype, pixels(conv.shape), conv.shape.out_channels, step, last);
  };
  const auto step_of = [&](int number) { return count + 1 - static_cast<size_t>(number); };
  if (!tail_writes_g_x()) p_ = add(count - 1, 0, residual_ > 0 ? step_of(residual_) : 1);
  gradients_.resize(count);
  for (int number = static_cast<int>(count); number > 0; --number)
    if (const int x = layers_[static_cast<size_t>(number) - 1].x; x > 0)
      gradients_.at(static_cast<size_t>(x) - 1) = add(static_cast<size_t>(x) - 1, step_of(number), step_of(x));
  backward_bytes_ = places.bytes();
}

void* TrainingBlock::mean(const BlockState& state, size_t layer) const {
  return state.statistics + 2 * vectors_[layer];
}

void* TrainingBlock::var(const BlockState& state, size_t layer) const {
  return state.statistics + 2 * vectors_[layer] + vector_bytes(layers_[layer].conv);
}

TrainingBlock::Value TrainingBlock::value(const BlockState& state, int number) const {
  if (number < 0) return {nullptr, {}, kIdentity};
  if (number == 0) return {state.x, {}, kIdentity};
  const size_t layer = static_cast<size_t>(number) - 1;
  const TrainingLayer& l = layers_[layer];
  void* const* parameters = &state.parameters[3 * layer];
  return {state.raw[layer], {mean(state, layer), var(state, layer), parameters[1], parameters[2], l.eps}, l.activation};
}

// p is the residual's gradient, and stays until the last convolution has read it.
bool TrainingBlock::tail_writes_g_x() const {
  return residual_ == 0 && layers_.back().x != 0;
}

bool TrainingBlock::is_current() const {
  return &active_kernels() == kernels_;
}

void TrainingBlock::forward(const BlockState& state, const std::vector<void*>& running, void* out) const {
  for (size_t i = 0; i < layers_.size(); ++i) {
    const TrainingLayer& l = layers_[i];
    const Value x = value(state, l.x);
    kernels_->conv_forward({l.conv, x.activation, x.data, x.bn, state.parameters[3 * i], nullptr, state.raw[i],
                            mean(state, i), var(state, i)});
  }
  const ConvArgs& last = layers_.back().conv;
  const Value x = value(state, static_cast<int>(layers_.size())), residual = value(state, residual_);
  kernels_->bn_add_act(
      {last.dtype, x.activation, output_view(last.shape), last.threads, x.data, x.bn, residual.data, residual.bn, out});
  for (size_t i = 0; i < layers_.size(); ++i) {
    const auto step = layers_[i].conv.dtype == DType::float64 ? move<double> : move<float>;
    step(&running[3 * i], layers_[i].momentum, layers_[i].conv.shape, mean(state, i), var(state, i));
  }
}

void TrainingBlock::backward(const void* g_out, const BlockState& state, char* memory,
                             const BlockGradients& gradients) const {
  const int count = static_cast<int>(layers_.size());
  void* const p = tail_writes_g_x() ? gradients.x : memory + p_;
  const auto g_bn = [&](int number) -> void* {
    return number <= 0 ? nullptr : gradients.bn + 4 * vectors_[static_cast<size_t>(number) - 1];
  };
  const ConvArgs& tail = layers_.back().conv;
  const Value last = value(state, count), residual = value(state, residual_);
  kernels_->bn_add_act_backward({tail.dtype, last.activation, output_view(tail.shape), tail.threads, g_out, last.data,
                                 last.bn, residual.data, residual.bn, p, nullptr, g_bn(count), nullptr,
                                 g_bn(residual_)});
  const void* g_x = residual_ == 0 ? p : nullptr;  // as far as it is computed
  for (int number = count; number > 0; --number) {
    const size_t i = static_cast<size_t>(number) - 1;
    const TrainingLayer& l = layers_[i];
    const bool is_added = number == count || number == residual_;  // by the tail, whose p its norm has still to scale
    auto* const g_statistics = static_cast<char*>(g_bn(number));
    const ConvGradient g{is_added ? p : memory + gradients_[i],
                         state.raw[i],
                         mean(state, i),
                         g_statistics,
                         g_statistics + vector_bytes(l.conv),
                         is_added ? value(state, number).bn : BatchNormArgs{}};
    const Value x = value(state, l.x);
    void* const to = l.x == 0 ? gradients.x : memory + gradients_[static_cast<size_t>(l.x) - 1];
    kernels_->conv_dgrad(
        {l.conv, x.activation, g, x.data, x.bn, state.parameters[3 * i], l.x == 0 ? g_x : nullptr, to, g_bn(l.x)});
    if (l.x == 0) g_x = to;
    ConvArgs conv = l.conv;
    conv.algorithm = l.weight_gradient;
    kernels_->conv_wgrad({conv, x.activation, g, x.data, x.bn, gradients.weight[i]});
  }
}

}  // namespace fused_resnet
