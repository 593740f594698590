// The transforms of Winograd's minimal filtering in one dimension (Lavin and Gray 2016, section 4). F(m, r) gives m
// outputs of r taps: the outputs of a tile are coefficients of a product of polynomials, which is computed from its
// values at n = m + r - 1 points, one of them at infinity (Toom-Cook):
//
//   filter           G w: the values of w at the points, each over the product of its distances to the others
//   input            B' d, for each point the coefficients of a polynomial that is zero at all others
//   output           A' t, the transpose of evaluation
//   gradient         A g: the values of g at the points
//   filter_gradient  G' t
//
// Rounding grows with the powers of the points, so that fractions stand beside their inverses (Barabasz et al. 2020).
#pragma once

#include "simd.h"

namespace fused_resnet {
inline namespace FUSED_RESNET_TARGET {

// The points of n-point transforms: 0, then p and -p for each pair, then one without its negative where there is one
// (kSingle is 0 where not), then infinity.
template <int n>
struct Points;
template <>
struct Points<4> {
  static constexpr int kPairs = 1;
  static constexpr double kPair[] = {1}, kSingle = 0;
};
template <>
struct Points<6> {
  static constexpr int kPairs = 2;
  static constexpr double kPair[] = {1, 2}, kSingle = 0;
};
template <>
struct Points<7> {
  static constexpr int kPairs = 2;
  static constexpr double kPair[] = {1, 0.5}, kSingle = 2;
};

// What the transforms multiply by.
template <int n>
struct PointConstants {
  using P = Points<n>;

  double inverse_distances[n] = {};                // of a point, 1 over their product; at infinity 1
  double product[P::kPairs + 1] = {};              // of all x^2 - p^2, by powers of x^2
  double quotient[P::kPairs][P::kPairs + 1] = {};  // the same without one

  constexpr PointConstants() {
    double points[n] = {};
    for (int k = 0; k < P::kPairs; ++k) points[1 + 2 * k] = P::kPair[k], points[2 + 2 * k] = -P::kPair[k];
    if (P::kSingle != 0) points[n - 2] = P::kSingle;
    for (int i = 0; i < n - 1; ++i) {
      double distances = 1;
      for (int j = 0; j < n - 1; ++j)
        if (j != i) distances *= points[i] - points[j];
      inverse_distances[i] = 1 / distances;
    }
    inverse_distances[n - 1] = 1;
    multiply(product, -1);
    for (int k = 0; k < P::kPairs; ++k) multiply(quotient[k], k);
  }

 private:
  static constexpr void multiply(double (&polynomial)[P::kPairs + 1], int without) {
    polynomial[0] = 1;
    for (int k = 0; k < P::kPairs; ++k) {
      if (k == without) continue;
      for (int i = P::kPairs; i >= 0; --i)
        polynomial[i] = (i > 0 ? polynomial[i - 1] : 0) - polynomial[i] * P::kPair[k] * P::kPair[k];
    }
  }
};

template <int m, int r, class S>
struct Winograd {
  static constexpr int n = m + r - 1;
  using P = Points<n>;
  static constexpr PointConstants<n> kConstants{};
  static constexpr bool kHasSingle = P::kSingle != 0;

  template <class V>
  static void input(const V* d, V* o) {
    V e[n];  // d with the single point's factor x - s
    if constexpr (kHasSingle) {
#pragma GCC unroll 8
      for (int i = 0; i < n - 1; ++i) e[i] = d[i + 1] - d[i] * S(P::kSingle);
      o[n - 2] = every_second(kConstants.product, d + 1, P::kPairs);
    } else {
#pragma GCC unroll 8
      for (int i = 0; i < n; ++i) e[i] = d[i];
    }
    o[0] = every_second(kConstants.product, e, P::kPairs);
    o[n - 1] = every_second(kConstants.product, e + 1, P::kPairs);
#pragma GCC unroll 4
    for (int k = 0; k < P::kPairs; ++k) {
      const V even = every_second(kConstants.quotient[k], e + 2, P::kPairs - 1);
      const V odd = every_second(kConstants.quotient[k], e + 1, P::kPairs - 1) * S(P::kPair[k]);
      o[1 + 2 * k] = even + odd;
      o[2 + 2 * k] = even - odd;
    }
  }

  template <class V>
  static void filter(const V* w, V* o) {
    evaluate<r>(w, o);
#pragma GCC unroll 8
    for (int i = 0; i < n; ++i) o[i] = o[i] * S(kConstants.inverse_distances[i]);
  }
  template <class V>
  static void output(const V* t, V* y) {
    evaluate_transposed<m>(t, y);
  }
  template <class V>
  static void gradient(const V* g, V* o) {
    evaluate<m>(g, o);
  }
  template <class V>
  static void filter_gradient(const V* t, V* w) {
    V scaled[n];
#pragma GCC unroll 8
    for (int i = 0; i < n; ++i) scaled[i] = t[i] * S(kConstants.inverse_distances[i]);
    evaluate_transposed<r>(scaled, w);
  }

 private:
  // The sum of d[0], d[2], ... with the coefficients of a polynomial of this degree, the highest being 1.
  template <class V>
  static V every_second(const double* coefficients, const V* d, int degree) {
    V sum = d[2 * degree];
#pragma GCC unroll 4
    for (int i = degree - 1; i >= 0; --i) sum += d[2 * i] * S(coefficients[i]);
    return sum;
  }

  // The values of a polynomial of kCount coefficients at the points, at infinity the last coefficient.
  template <int kCount, class V>
  static void evaluate(const V* c, V* o) {
    o[0] = c[0];
#pragma GCC unroll 4
    for (int k = 0; k < P::kPairs; ++k) {
      V even = c[0], odd = c[1] * S(P::kPair[k]);
      double power = P::kPair[k];
#pragma GCC unroll 8
      for (int i = 2; i < kCount; ++i) {
        power *= P::kPair[k];
        (i % 2 ? odd : even) += c[i] * S(power);
      }
      o[1 + 2 * k] = even + odd;
      o[2 + 2 * k] = even - odd;
    }
    if constexpr (kHasSingle) {
      double power = 1;
      o[n - 2] = c[0];
#pragma GCC unroll 8
      for (int i = 1; i < kCount; ++i) o[n - 2] += c[i] * S(power *= P::kSingle);
    }
    o[n - 1] = c[kCount - 1];
  }

  template <int kCount, class V>
  static void evaluate_transposed(const V* t, V* y) {
    y[0] = t[0];
#pragma GCC unroll 8
    for (int i = 1; i < kCount; ++i) y[i] = V{};
#pragma GCC unroll 4
    for (int k = 0; k < P::kPairs; ++k) {
      const V sum = t[1 + 2 * k] + t[2 + 2 * k], difference = t[1 + 2 * k] - t[2 + 2 * k];
      double power = 1;
#pragma GCC unroll 8
      for (int i = 0; i < kCount; ++i, power *= P::kPair[k]) y[i] += (i % 2 ? difference : sum) * S(power);
    }
    if constexpr (kHasSingle) {
      double power = 1;
#pragma GCC unroll 8
      for (int i = 0; i < kCount; ++i, power *= P::kSingle) y[i] += t[n - 2] * S(power);
    }
    y[kCount - 1] += t[n - 1];
  }
};

// F(4, 2): four outputs of two taps from five inputs, with the interpolation points 0, 1, -1, 2 and infinity. Where the
// second tap is zero, so is the filter at infinity: a single tap needs four points and four inputs.
template <int kTaps, class S>
struct WinogradPhase {
  static_assert(kTaps == 1 || kTaps == 2);
  static constexpr int kPoints = 3 + kTaps;  // and inputs

  template <class V>
  static void input(const V* d, V* o) {
    const V a = d[3] - d[1], b = (d[0] - d[2]) * S(2);
    o[0] = a + b;
    o[1] = a - d[1] - d[2];
    o[2] = d[1] * S(2) - d[2] * S(3) + d[3];
    o[3] = a;
    if constexpr (kTaps == 2) o[4] = d[4] - d[2] - a * S(2);
  }
  template <class V>
  static void filter(const V* w, V* o) {
    o[0] = w[0] * S(0.5);
    if constexpr (kTaps == 1) {
      o[1] = w[0] * S(-0.5);
      o[2] = w[0] * S(-1.0 / 6);
      o[3] = w[0] * S(1.0 / 6);
    } else {
      o[1] = (w[0] + w[1]) * S(-0.5);
      o[2] = (w[1] - w[0]) * S(1.0 / 6);
      o[3] = w[0] * S(1.0 / 6) + w[1] * S(1.0 / 3);
      o[4] = w[1];
    }
  }
  template <class V>
  static void output(const V* t, V* y) {
    const V a = t[1] + t[2], b = t[1] - t[2];
    y[0] = t[0] + a + t[3];
    y[1] = b + t[3] * S(2);
    y[2] = a + t[3] * S(4);
    y[3] = b + t[3] * S(8);
    if constexpr (kTaps == 2) y[3] += t[4];
  }
  template <class V>
  static void gradient(const V* g, V* o) {
    const V even = g[0] + g[2], odd = g[1] + g[3];
    o[0] = g[0];
    o[1] = even + odd;
    o[2] = even - odd;
    o[3] = g[0] + g[2] * S(4) + (g[1] + g[3] * S(4)) * S(2);
    if constexpr (kTaps == 2) o[4] = g[3];
  }
  template <class V>
  static void filter_gradient(const V* t, V* w) {
    w[0] = (t[0] - t[1]) * S(0.5) + (t[3] - t[2]) * S(1.0 / 6);
    if constexpr (kTaps == 2) w[1] = t[4] - t[1] * S(0.5) + t[2] * S(1.0 / 6) + t[3] * S(1.0 / 3);
  }
};

}  // namespace FUSED_RESNET_TARGET
}  // namespace fused_resnet
