// Batch norm, activation and max pooling of a channels_last image, and its backward as a gather.
#include <limits>

#include <vector>

#include "dispatch.h"
#include "launchers.h"
#include "tiles.h"

namespace fused_resnet {
inline namespace FUSED_RESNET_TARGET {

namespace {

// The part [begin, end) of a window along one axis that lies inside the image; `origin` may lie in the padding.
struct Window {
  int64_t origin, begin, end;

  Window(int64_t out, int64_t stride, int64_t pad, int64_t kernel, int64_t size) : origin(out * stride - pad) {
    begin = origin < 0 ? -origin : 0;
    end = origin + kernel > size ? size - origin : kernel;
  }
};

// The outputs [begin, end) along one axis whose windows hold `position`.
Range covering(int64_t position, int64_t stride, int64_t pad, int64_t kernel, int64_t outputs) {
  const int64_t first = position + pad - kernel + 1, last = (position + pad) / stride + 1;
  return {first > 0 ? (first + stride - 1) / stride : 0, last < outputs ? last : outputs};
}

// Calls f(output, channel, lanes, first place, visit) for each register of the outputs; visit(g) calls g(input, place)
// for each pixel of its window, in order. Outputs and inputs are offsets of elements, a place is a pixel's in its
// window.
template <class S, class F>
void for_windows(const PoolShape& s, int threads, const F& f) {
  for_each(s.batch * s.out_height, threads_for(s.batch * s.height * s.width * s.channels, threads),
           [&](int, int64_t row) {
             const Window h(row % s.out_height, s.stride_h, s.pad_h, s.kernel_h, s.height);
             const int64_t top = row / s.out_height * s.height + h.origin;
             for (int64_t ow = 0; ow < s.out_width; ++ow) {
               const Window w(ow, s.stride_w, s.pad_w, s.kernel_w, s.width);
               for (int64_t c = 0; c < s.channels; c += kLanes<S>) {
                 const int lanes = static_cast<int>(s.channels - c < kLanes<S> ? s.channels - c : kLanes<S>);
                 const auto visit = [&](const auto& g) {
                   for (int64_t i = h.begin; i < h.end; ++i)
                     for (int64_t j = w.begin; j < w.end; ++j)
                       g(((top + i) * s.width + w.origin + j) * s.channels + c, i * s.kernel_w + j);
                 };
                 f((row * s.out_width + ow) * s.channels + c, c, lanes, h.begin * s.kernel_w + w.begin, visit);
               }
             }
           });
}

template <class T, Activation A>
void bn_act_max_pool_kernel(const BnActMaxPoolArgs& a) {
  using S = Accumulate<T>;
  const auto* x = static_cast<const T*>(a.x);
  auto* out = static_cast<T*>(a.out);
  const S slope = static_cast<S>(a.activation.negative_slope);
  const Norm<S> norm(a.shape.channels, a.bn);
  for_windows<S>(a.shape, a.threads, [&](int64_t to, int64_t c, int lanes, int64_t first_place, const auto& visit) {
    const auto bn = norm.channels_from(c);
    Vector<S> best = broadcast(-std::numeric_limits<S>::infinity()), winner = broadcast(static_cast<S>(first_place));
    visit([&](int64_t from, int64_t place) {
      const Vector<S> u = activate<A>(bn(load(x + from, lanes)), slope);
      const auto wins = (u > best) | (u != u);
      best = wins ? u : best;
      winner = wins ? broadcast(static_cast<S>(place)) : winner;
    });
    store(out + to, best, lanes);
    store_bytes<S>(a.indices + to, winner, lanes);
  });
}

template <class T>
void max_pool_kernel(const MaxPoolArgs& a) {
  using S = Accumulate<T>;
  const auto* x = static_cast<const T*>(a.x);
  auto* out = static_cast<T*>(a.out);
  for_windows<S>(a.shape, a.threads, [&](int64_t to, int64_t, int lanes, int64_t, const auto& visit) {
    Vector<S> best = broadcast(-std::numeric_limits<S>::infinity());
    visit([&](int64_t from, int64_t) {
      const Vector<S> u = load(x + from, lanes);
      best = ((u > best) | (u != u)) ? u : best;
    });
    store(out + to, best, lanes);
  });
}

// A window that holds a pixel: where its output's channels begin, and the pixel's place in it.
template <class S>
struct Holder {
  int64_t offset;
  S place;
};

template <class T, Activation A>
void bn_act_max_pool_backward_kernel(const BnActMaxPoolBackwardArgs& a) {
  using S = Accumulate<T>;
  const PoolShape& s = a.shape;
  const auto *g_out = static_cast<const T*>(a.g_out), *x = static_cast<const T*>(a.x);
  const S slope = static_cast<S>(a.activation.negative_slope);
  const Norm<S> norm(s.channels, a.bn);
  const ChannelView view{s.batch * s.height * s.width, s.channels, 1};
  const int threads = threads_for(view.elements(), a.threads);
  const ChannelSums<S, ChannelsLast> sum_p(view, threads), sum_px(view, threads);

  const Output<T> out(a.g_x, view);
  for_each(s.batch * s.height, threads, [&](int part, int64_t row) {
    const int64_t ih = row % s.height, out_top = row / s.height * s.out_height;
    const Range oh = covering(ih, s.stride_h, s.pad_h, s.kernel_h, s.out_height);
    std::vector<Holder<S>> holders;
    for (int64_t iw = 0; iw < s.width; ++iw) {
      const Range ow = covering(iw, s.stride_w, s.pad_w, s.kernel_w, s.out_width);
      holders.clear();
      for (int64_t i = oh.begin; i < oh.end; ++i)
        for (int64_t j = ow.begin; j < ow.end; ++j)
          holders.push_back(
              {((out_top + i) * s.out_width + j) * s.channels,
               static_cast<S>((ih + s.pad_h - i * s.stride_h) * s.kernel_w + iw + s.pad_w - j * s.stride_w)});
      const int64_t pixel = (row * s.width + iw) * s.channels;
      const auto add_up = [&](const auto& tile) {
        Vector<S> g{};
        for (const Holder<S>& w : holders) {
          const Vector<S> winner = load_bytes<S>(a.indices + w.offset + tile.channel, tile.lanes);
          const Vector<S> value = load(g_out + w.offset + tile.channel, tile.lanes);
          g += winner == broadcast(w.place) ? value : Vector<S>{};
        }
        const auto bn = norm.channels_from(tile.channel);
        const Vector<S> value = tile.load(x), p = g * activate_derivative<A>(bn(value), slope);
        sum_p.add(part, tile.channel, p);
        sum_px.add(part, tile.channel, p * (value - bn.mean));
        out.store(tile, p * bn.scale);
      };
      int64_t c = 0;
      for (; c + kLanes<S> <= s.channels; c += kLanes<S>) add_up(Tile<true>{pixel + c, c, kLanes<S>});
      if (c < s.channels) add_up(Tile<false>{pixel + c, c, static_cast<int>(s.channels - c)});
    }
    sum_p.flush(part, row);
    sum_px.flush(part, row);
  });
  if (a.g_bn) norm.gradients(a.bn, sum_p.total(), sum_px.total(), static_cast<S*>(a.g_bn));
}

}  // namespace

void launch_bn_act_max_pool(const BnActMaxPoolArgs& a) {
  visit_dtype(a.dtype, [&](auto type) {
    visit_activation(a.activation.kind, [&](auto activation) {
      bn_act_max_pool_kernel<typename decltype(type)::type, decltype(activation)::value>(a);
    });
  });
}

void launch_max_pool(const MaxPoolArgs& a) {
  visit_dtype(a.dtype, [&](auto type) { max_pool_kernel<typename decltype(type)::type>(a); });
}

void launch_bn_act_max_pool_backward(const BnActMaxPoolBackwardArgs& a) {
  visit_dtype(a.dtype, [&](auto type) {
    visit_activation(a.activation.kind, [&](auto activation) {
      bn_act_max_pool_backward_kernel<typename decltype(type)::type, decltype(activation)::value>(a);
    });
  });
}

}  // namespace FUSED_RESNET_TARGET
}  // namespace fused_resnet
