// The forms of Winograd convolution, each of which says how a tile of inputs becomes planes of transformed numbers,
// which planes are multiplied, and how planes of sums become a tile of outputs:
//
//   kIn, kInStep    rows (and columns) of inputs that a tile reads, and inputs from one tile to the next
//   kOut            rows (and columns) of outputs of a tile
//   kTaps           rows (and columns) of the filter
//   products_of(o)  the products that are summed into output plane o: a filter's plane with an input plane
//   input, filter, output, gradient, filter_gradient    the transforms; get(i, j) reads a register of a tile or filter,
//                                                       get(plane) one of a plane, and put takes one
#pragma once

#include "parallel.h"
#include "winograd.h"

namespace fused_resnet {
inline namespace FUSED_RESNET_TARGET {

// Stride 1, F(m x m, r x r): forward, wgrad, and dgrad with a filter turned by 180 degrees.
template <int m, int r, class S>
struct DenseForm {
  using V = Vector<S>;
  using Transform = Winograd<m, r, S>;
  static constexpr int n = m + r - 1;
  static constexpr int kIn = n, kInStep = m, kOut = m, kTaps = r;
  static constexpr int kInPlanes = n * n, kOutPlanes = n * n, kProducts = n * n;

  static constexpr Range products_of(int out_plane) { return {out_plane, out_plane + 1}; }
  static constexpr int in_plane(int product) { return product; }
  static constexpr int out_plane(int product) { return product; }

  template <class Get, class Put>
  static void input(const Get& get, const Put& put) {
    both_ways<V, n, n>(get, Transform::template input<V>, [&](int i, int j, V v) { put(i * n + j, v); });
  }
  template <class Get, class Put>
  static void filter(const Get& get, const Put& put) {
    both_ways<V, r, n>(get, Transform::template filter<V>, [&](int i, int j, V v) { put(i * n + j, v); });
  }
  template <class Get, class Put>
  static void output(const Get& get, const Put& put) {
    both_ways<V, n, m>([&](int i, int j) { return get(i * n + j); }, Transform::template output<V>, put);
  }
  template <class Get, class Put>
  static void gradient(const Get& get, const Put& put) {
    both_ways<V, m, n>(get, Transform::template gradient<V>, [&](int i, int j, V v) { put(i * n + j, v); });
  }
  template <class Get, class Put>
  static void filter_gradient(const Get& get, const Put& put) {
    both_ways<V, n, r>([&](int i, int j) { return get(i * n + j); }, Transform::template filter_gradient<V>, put);
  }
};

// 3x3, stride 2 and padding 1, along one dimension: y[i] = w[0] x[2i - 1] + w[1] x[2i] + w[2] x[2i + 1]. The odd pixels
// of x are a phase with two taps, w[0] and w[2], the even ones a phase with the tap w[1]. Four phases of an image, and
// five points along either dimension, four where there is one tap, make 81 products a tile of 4x4 outputs instead of
// the 144 of direct convolution. They are numbered point by point.
struct StridedProducts {
  static constexpr int n = 5;

  int count = 0;
  int first[n * n + 1] = {};    // product of a point
  int point[81] = {};           // of a product
  int number[2][2][n][n] = {};  // of the product of a phase, by its taps less one, at a point

  constexpr StridedProducts() {
    for (int i = 0; i < n; ++i)
      for (int j = 0; j < n; ++j) {
        first[i * n + j] = count;
        for (int h = 1; h <= 2; ++h)
          for (int w = 1; w <= 2; ++w)
            if (i < 3 + h && j < 3 + w) {
              point[count] = i * n + j;
              number[h - 1][w - 1][i][j] = count++;
            }
      }
    first[n * n] = count;
  }
};
constexpr StridedProducts kStridedProducts;
static_assert(kStridedProducts.count == 81);

// Taps of a phase along both dimensions.
template <int kTapsH, int kTapsW, class S>
struct StridedPhase {
  using H = WinogradPhase<kTapsH, S>;
  using W = WinogradPhase<kTapsW, S>;
  static constexpr int taps_h = kTapsH, taps_w = kTapsW;

  static constexpr int product(int i, int j) { return kStridedProducts.number[taps_h - 1][taps_w - 1][i][j]; }
  // Tap i of one that has `taps` in the filter of three.
  static constexpr int tap(int taps, int i) { return taps == 2 ? 2 * i : 1; }
};

// Calls f(phase) for each.
template <class S, class F>
inline void each_phase(const F& f) {
  f(StridedPhase<1, 1, S>());
  f(StridedPhase<1, 2, S>());
  f(StridedPhase<2, 1, S>());
  f(StridedPhase<2, 2, S>());
}

// Forward and wgrad of such a convolution: phases of inputs, of which all products at a point are summed.
template <class S>
struct StridedForm {
  using V = Vector<S>;
  using Sums = WinogradPhase<2, S>;
  static constexpr int n = StridedProducts::n, m = 4;
  static constexpr int kIn = 9, kInStep = 8, kOut = m, kTaps = 3;
  static constexpr int kInPlanes = 81, kOutPlanes = n * n, kProducts = 81;

  static constexpr Range products_of(int out_plane) {
    return {kStridedProducts.first[out_plane], kStridedProducts.first[out_plane + 1]};
  }
  static constexpr int in_plane(int product) { return product; }
  static constexpr int out_plane(int product) { return kStridedProducts.point[product]; }

  // Row 0 is an odd one, the padding's.
  template <class Get, class Put>
  static void input(const Get& get, const Put& put) {
    each_phase<S>([&](auto phase) {
      using P = decltype(phase);
      both_ways<V, P::H::kPoints, P::H::kPoints, P::W::kPoints, P::W::kPoints>(
          [&](int i, int j) { return get(2 * i + 2 - P::taps_h, 2 * j + 2 - P::taps_w); }, P::H::template input<V>,
          P::W::template input<V>, [&](int i, int j, V v) { put(P::product(i, j), v); });
    });
  }
  template <class Get, class Put>
  static void filter(const Get& get, const Put& put) {
    each_phase<S>([&](auto phase) {
      using P = decltype(phase);
      both_ways<V, P::taps_h, P::H::kPoints, P::taps_w, P::W::kPoints>(
          [&](int i, int j) { return get(P::tap(P::taps_h, i), P::tap(P::taps_w, j)); }, P::H::template filter<V>,
          P::W::template filter<V>, [&](int i, int j, V v) { put(P::product(i, j), v); });
    });
  }
  template <class Get, class Put>
  static void output(const Get& get, const Put& put) {
    both_ways<V, n, m>([&](int i, int j) { return get(i * n + j); }, Sums::template output<V>, put);
  }
  template <class Get, class Put>
  static void gradient(const Get& get, const Put& put) {
    both_ways<V, m, n>(get, Sums::template gradient<V>, [&](int i, int j, V v) { put(i * n + j, v); });
  }
  template <class Get, class Put>
  static void filter_gradient(const Get& get, const Put& put) {
    each_phase<S>([&](auto phase) {
      using P = decltype(phase);
      both_ways<V, P::H::kPoints, P::taps_h, P::W::kPoints, P::taps_w>(
          [&](int i, int j) { return get(P::product(i, j)); }, P::H::template filter_gradient<V>,
          P::W::template filter_gradient<V>,
          [&](int r, int s, V v) { put(P::tap(P::taps_h, r), P::tap(P::taps_w, s), v); });
    });
  }
};

// Its dgrad: g_x[2j] = g_y[j] w[1] and g_x[2j + 1] = g_y[j] w[2] + g_y[j + 1] w[0], phases of outputs, all from the
// same tile. With a turned filter the taps are those of forward.
template <class S>
struct StridedDgradForm {
  using V = Vector<S>;
  using Transform = WinogradPhase<2, S>;
  static constexpr int n = StridedProducts::n, m = 4;
  static constexpr int kIn = n, kInStep = m, kOut = 2 * m, kTaps = 3;
  static constexpr int kInPlanes = n * n, kOutPlanes = 81, kProducts = 81;

  static constexpr Range products_of(int out_plane) { return {out_plane, out_plane + 1}; }
  static constexpr int in_plane(int product) { return kStridedProducts.point[product]; }

  template <class Get, class Put>
  static void input(const Get& get, const Put& put) {
    both_ways<V, n, n>(get, Transform::template input<V>, [&](int i, int j, V v) { put(i * n + j, v); });
  }
  template <class Get, class Put>
  static void filter(const Get& get, const Put& put) {
    StridedForm<S>::filter(get, put);
  }
  template <class Get, class Put>
  static void output(const Get& get, const Put& put) {
    each_phase<S>([&](auto phase) {
      using P = decltype(phase);
      both_ways<V, P::H::kPoints, m, P::W::kPoints, m>(
          [&](int i, int j) { return get(P::product(i, j)); }, P::H::template output<V>, P::W::template output<V>,
          [&](int i, int j, V v) { put(2 * i + P::taps_h - 1, 2 * j + P::taps_w - 1, v); });
    });
  }
};

// Transforms one tile of a strip, channel by channel, by Form::input or Form::gradient: channel c of a plane goes to
// out.data[plane * plane_stride + ...].
template <class S, class Transform>
inline void transform_tile(const Transform& transform, const S* tile,  // [rows, columns, channels]
                           int64_t row_stride, int64_t channels, const Rows<S>& out, int64_t plane_stride) {
  for (int64_t first = 0; first < channels; first += out.chunk) {
    S* chunk = out.data + first / out.chunk * out.chunk_stride;
    const int64_t end = std::min(out.chunk, channels - first);
    for (int64_t c = 0; c < end; c += kLanes<S>) {
      const S* d = tile + first + c;
      transform([&](int i, int j) { return load(d + i * row_stride + j * channels); },
                [&](int plane, Vector<S> v) { store(chunk + plane * plane_stride + c, v); });
    }
  }
}

template <class Form, class S>
inline void transform_input(const S* tile, int64_t row_stride, int64_t channels, const Rows<S>& out,
                            int64_t plane_stride) {
  transform_tile([](const auto& get, const auto& put) { Form::input(get, put); }, tile, row_stride, channels, out,
                 plane_stride);
}

template <class Form, class S>
inline void transform_gradient(const S* tile, int64_t row_stride, int64_t channels, const Rows<S>& out,
                               int64_t plane_stride) {
  transform_tile([](const auto& get, const auto& put) { Form::gradient(get, put); }, tile, row_stride, channels, out,
                 plane_stride);
}

}  // namespace FUSED_RESNET_TARGET
}  // namespace fused_resnet
