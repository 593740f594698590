// Runs the CPU kernels without Python: those of one instruction set, on one to three threads, beside the scalar ones on
// one thread. For what Python is in the way of: sanitizers, and processors that are emulated.
#include <cstdio>
#include <functional>

#include "tensors.h"

namespace fused_resnet {

namespace TESTED {
const Kernels& kernels();
}
namespace baseline {
const Kernels& kernels();
}

namespace {

#ifdef FEW_TYPES
constexpr DType kTypes[] = {DType::float32, DType::bfloat16};
constexpr Activation kActivations[] = {Activation::relu, Activation::silu};
#else
constexpr DType kTypes[] = {DType::float32, DType::float64, DType::bfloat16, DType::float16};
constexpr Activation kActivations[] = {Activation::identity, Activation::relu, Activation::leaky_relu,
                                       Activation::relu6,    Activation::silu, Activation::hardswish,
                                       Activation::gelu};
#endif

bool is_exact(ConvAlgorithm a) {
  switch (a) {
    case ConvAlgorithm::direct:
    case ConvAlgorithm::depthwise:
    case ConvAlgorithm::grouped:
    case ConvAlgorithm::bf16x6: return true;
    default: return false;
  }
}

// Relative error allowed. Where sums differ in the last bit, a stored 16-bit number may be its neighbour.
double tolerance(DType dtype, ConvAlgorithm algorithm = ConvAlgorithm::direct) {
  switch (dtype) {
    case DType::float64: return 1e-11;
    case DType::float32: return is_exact(algorithm) ? 4e-6 : 4e-5;
    case DType::bfloat16: return algorithm == ConvAlgorithm::bf16x1 ? 1.6e-2 : 4e-3;
    case DType::float16: return 5e-4;
  }
  return 0;
}

int runs = 0, failures = 0;

using Outputs = std::vector<Tensor>;
using Run = std::function<Outputs(const Kernels&, int threads)>;

void compare(const std::string& name, DType dtype, double allowed, const Run& run) {
  const Outputs want = run(baseline::kernels(), 1);
  for (int threads = 1; threads <= 3; ++threads) {
    const Outputs got = run(TESTED::kernels(), threads);
    for (size_t i = 0; i < want.size(); ++i) {
      const double error = relative_error(got[i], want[i]);
      ++runs;
      if (error <= allowed) continue;
      ++failures;
      std::printf("%s, dtype %d, %d threads, output %zu: error %.3g, allowed %.3g\n", name.c_str(),
                  static_cast<int>(dtype), threads, i, error, allowed);
    }
  }
}

void check_bn_add_act(DType dtype, const ActivationArgs& activation, const ChannelView& view) {
  Tensor x = Tensor::random(dtype, view.elements()), residual = Tensor::random(dtype, view.elements());
  Tensor g = Tensor::random(dtype, view.elements());
  Norms bn(dtype, view.channels), residual_bn(dtype, view.channels);
  compare("bn_add_act", dtype, tolerance(dtype), [&](const Kernels& kernels, int threads) {
    Tensor out(dtype, view.elements());
    kernels.bn_add_act(
        {dtype, activation, view, threads, x.data(), bn.args(), residual.data(), residual_bn.args(), out.data()});
    return Outputs{out};
  });
  for (const bool writes_p : {false, true})
    compare("bn_add_act_backward", dtype, tolerance(dtype), [&](const Kernels& kernels, int threads) {
      Tensor p(dtype, view.elements()), g_x(dtype, view.elements()), g_residual(dtype, view.elements());
      Tensor g_bn(wide(dtype), 4 * view.channels), g_residual_bn(wide(dtype), 4 * view.channels);
      kernels.bn_add_act_backward({dtype, activation, view, threads, g.data(), x.data(), bn.args(), residual.data(),
                                   residual_bn.args(), writes_p ? p.data() : nullptr, g_x.data(), g_bn.data(),
                                   g_residual.data(), g_residual_bn.data()});
      return Outputs{p, g_x, g_bn, g_residual, g_residual_bn};
    });
}

void check_max_pool(DType dtype, const ActivationArgs& activation) {
  const PoolShape s{2, 41, 35, 21, 21, 18, 3, 3, 2, 2, 1, 1};
  const int64_t in = s.batch * s.height * s.width * s.channels;
  const int64_t out_elements = s.batch * s.out_height * s.out_width * s.channels;
  Tensor x = Tensor::random(dtype, in), g = Tensor::random(dtype, out_elements);
  Norms bn(dtype, s.channels);
  compare("bn_act_max_pool and its backward", dtype, tolerance(dtype), [&](const Kernels& kernels, int threads) {
    Tensor out(dtype, out_elements), g_x(dtype, in), g_bn(wide(dtype), 4 * s.channels);
    std::vector<uint8_t> indices(out_elements);
    kernels.bn_act_max_pool({dtype, activation, s, threads, x.data(), bn.args(), out.data(), indices.data()});
    kernels.bn_act_max_pool_backward(
        {dtype, activation, s, threads, g.data(), indices.data(), x.data(), bn.args(), g_x.data(), g_bn.data()});
    return Outputs{out, g_x, g_bn};
  });
}

// [batch, height, width, channels] to out_channels.
ConvShape conv_shape(int64_t batch, int64_t height, int64_t width, int64_t channels, int64_t out_channels,
                     int64_t kernel, int64_t stride, int64_t pad, int64_t dilation = 1, int64_t groups = 1) {
  const auto size = [&](int64_t in) { return (in + 2 * pad - dilation * (kernel - 1) - 1) / stride + 1; };
  return {batch,  height, width,  channels, size(height), size(width), out_channels, kernel,
          kernel, stride, stride, pad,      pad,          dilation,    dilation,     groups};
}

void check_conv(DType dtype, const ActivationArgs& activation, const ConvShape& s, ConvAlgorithm algorithm) {
  const int64_t in = s.batch * s.height * s.width * s.channels, area = s.kernel_h * s.kernel_w;
  const int64_t out = s.batch * s.out_height * s.out_width * s.out_channels, per_group = s.channels / s.groups;
  const int64_t filter = s.out_channels * per_group * area;
  Tensor x = Tensor::random(dtype, in), weight = Tensor::random(wide(dtype), filter);
  Tensor g = Tensor::random(dtype, out), y = Tensor::random(dtype, out), residual = Tensor::random(dtype, out);
  Norms bn(dtype, s.channels), out_bn(dtype, s.out_channels), gradient(dtype, s.out_channels);
  const ConvGradient g_y{g.data(), y.data(), gradient.mean.data(), gradient.weight.data(), gradient.bias.data(), {}};
  ConvGradient g_p = g_y;
  g_p.bn = out_bn.args();
  const bool in_parts = algorithm >= ConvAlgorithm::bf16x1;
  const auto conv = [&](const Kernels& kernels, int threads) {
    const bool is_wanted = in_parts && &kernels == &baseline::kernels();  // floats whole
    const ConvAlgorithm which = is_wanted ? ConvAlgorithm::direct : algorithm;
    return ConvArgs{dtype, which, s, {per_group * area, area, s.kernel_w, 1}, threads};
  };
  const double allowed = tolerance(dtype, algorithm);
  compare("conv_forward", dtype, allowed, [&](const Kernels& kernels, int threads) {
    Tensor result(dtype, out), mean(wide(dtype), s.out_channels), var(wide(dtype), s.out_channels);
    kernels.conv_forward({conv(kernels, threads), activation, x.data(), bn.args(), weight.data(), out_bn.bias.data(),
                          result.data(), mean.data(), var.data()});
    return Outputs{result, mean, var};
  });
  const Tensor addend = Tensor::random(dtype, in);
  for (const bool adds : {false, true})
    compare(adds ? "conv_dgrad, scaled and added in place" : "conv_dgrad", dtype, allowed,
            [&](const Kernels& kernels, int threads) {
              Tensor g_x = adds ? addend : Tensor(dtype, in), g_bn(wide(dtype), 4 * s.channels);
              kernels.conv_dgrad({conv(kernels, threads), activation, adds ? g_p : g_y, x.data(), bn.args(),
                                  weight.data(), adds ? g_x.data() : nullptr, g_x.data(), g_bn.data()});
              return Outputs{g_x, g_bn};
            });
  compare("conv_wgrad", dtype, allowed, [&](const Kernels& kernels, int threads) {
    Tensor g_weight(wide(dtype), filter);
    kernels.conv_wgrad({conv(kernels, threads), activation, g_p, x.data(), bn.args(), g_weight.data()});
    return Outputs{g_weight};
  });
  compare("conv_bn_add_act", dtype, allowed, [&](const Kernels& kernels, int threads) {
    Tensor result(dtype, out), packed(wide(dtype), kernels.conv_packed_size(conv(kernels, threads)));
    kernels.conv_pack({conv(kernels, threads), weight.data(), packed.data()});
    kernels.conv_bn_add_act({conv(kernels, threads), activation, x.data(), weight.data(), packed.data(),
                             out_bn.weight.data(), out_bn.args(), residual.data(), result.data()});
    return Outputs{result};
  });
}

// Convolutions of floats as sums of bfloat16 numbers.
void check_parts(DType dtype, const ActivationArgs& activation) {
  using Algorithm = ConvAlgorithm;
  if (dtype == DType::float64) return;
  for (const Algorithm algorithm : {Algorithm::bf16x1, Algorithm::bf16x3, Algorithm::bf16x6}) {
    if ((algorithm == Algorithm::bf16x1) != (dtype == DType::bfloat16)) continue;
    check_conv(dtype, activation, conv_shape(2, 13, 15, 19, 37, 1, 1, 0), algorithm);
    check_conv(dtype, activation, conv_shape(3, 13, 18, 35, 50, 3, 1, 1), algorithm);
    check_conv(dtype, activation, conv_shape(2, 14, 17, 33, 20, 3, 2, 1), algorithm);
    check_conv(dtype, activation, conv_shape(1, 5, 5, 96, 130, 3, 1, 1), algorithm);  // threads share channels
    check_conv(dtype, activation, conv_shape(2, 12, 9, 20, 18, 3, 1, 2, 2), algorithm);
    check_conv(dtype, activation, conv_shape(3, 11, 9, 24, 40, 3, 2, 1, 1, 8), algorithm);  // groups
    check_conv(dtype, activation, conv_shape(2, 9, 8, 66, 90, 3, 1, 1, 1, 3), algorithm);
  }
}

void check_all() {
  for (const DType dtype : kTypes)
    for (const Activation kind : kActivations) {
      const ActivationArgs activation{kind, 0.1};
      check_bn_add_act(dtype, activation, {1703, 37, 1});  // channels_last
      check_bn_add_act(dtype, activation, {3, 37, 571});   // contiguous
      check_max_pool(dtype, activation);
      check_conv(dtype, activation, conv_shape(2, 13, 15, 19, 37, 1, 1, 0), ConvAlgorithm::direct);
    }
  for (const DType dtype : kTypes) {
    const ActivationArgs silu{Activation::silu, 0};
    check_conv(dtype, silu, conv_shape(2, 14, 17, 33, 35, 3, 2, 1), ConvAlgorithm::direct);
    check_conv(dtype, silu, conv_shape(2, 25, 23, 3, 17, 7, 2, 3), ConvAlgorithm::direct);
    check_conv(dtype, silu, conv_shape(3, 11, 9, 24, 40, 3, 1, 2, 2, 8), ConvAlgorithm::direct);
    check_conv(dtype, silu, conv_shape(3, 17, 14, 37, 37, 3, 1, 1, 1, 37), ConvAlgorithm::depthwise);
    check_conv(dtype, silu, conv_shape(9, 31, 22, 33, 33, 5, 2, 2, 1, 33), ConvAlgorithm::depthwise);
    for (const int groups : {5, 10, 20})
      check_conv(dtype, silu, conv_shape(9, 23, 21, 40, 40, 3, 1, 1, 1, groups), ConvAlgorithm::grouped);
    check_conv(dtype, silu, conv_shape(3, 31, 22, 40, 40, 5, 2, 2, 1, 10), ConvAlgorithm::grouped);
    check_conv(dtype, silu, conv_shape(1, 5, 5, 96, 130, 3, 1, 1), ConvAlgorithm::direct);     // threads share channels
    check_conv(dtype, silu, conv_shape(1, 12, 12, 400, 424, 1, 1, 0), ConvAlgorithm::direct);  // and a weight gradient
    for (const ConvAlgorithm winograd :
         {ConvAlgorithm::winograd_f2, ConvAlgorithm::winograd_f4, ConvAlgorithm::winograd_f5})
      check_conv(dtype, silu, conv_shape(3, 13, 18, 35, 33, 3, 1, 1), winograd);
    check_conv(dtype, silu, conv_shape(3, 13, 18, 35, 33, 3, 2, 1), ConvAlgorithm::winograd_s2);
    check_conv(dtype, silu, conv_shape(2, 25, 23, 3, 17, 7, 2, 3), ConvAlgorithm::winograd_stem);
    check_parts(dtype, silu);
  }
}

}  // namespace
}  // namespace fused_resnet

int main() {
  fused_resnet::check_all();
  std::printf("%d results, %d wrong\n", fused_resnet::runs, fused_resnet::failures);
  return fused_resnet::failures ? 1 : 0;
}
