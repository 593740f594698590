// exp and erf for the vectors of simd.h; scalars and doubles take the C library's, lane by lane.
#pragma once

#include <cmath>

#include "simd.h"

namespace fused_resnet {
inline namespace FUSED_RESNET_TARGET {

template <class S, class F>
inline Vector<S> by_lane(Vector<S> v, F f) {
  S lanes[kLanes<S>];
  std::memcpy(lanes, &v, sizeof(v));
  for (S& lane : lanes) lane = f(lane);
  std::memcpy(&v, lanes, sizeof(v));
  return v;
}

#if FUSED_RESNET_VECTOR_BYTES == 0

inline float exp(float v) {
  return std::exp(v);
}
inline double exp(double v) {
  return std::exp(v);
}
inline float erf(float v) {
  return std::erf(v);
}
inline double erf(double v) {
  return std::erf(v);
}

#else

inline Vector<double> exp(Vector<double> v) {
  return by_lane<double>(v, [](double x) { return std::exp(x); });
}
inline Vector<double> erf(Vector<double> v) {
  return by_lane<double>(v, [](double x) { return std::erf(x); });
}

// exp(x) = 2^n exp(r), n = round(x / ln 2), |r| <= ln 2 / 2; the polynomial is Cephes' expf (S. Moshier, 1989).
inline Vector<float> exp(Vector<float> x) {
  using V = Vector<float>;
  using I = VectorOf<int32_t, kLanes<float> >::type;
  const V low = broadcast(-87.0f), high = broadcast(88.5f);
  V clamped = x < low ? low : x;
  clamped = clamped > high ? high : clamped;
  const V magic = broadcast(12582912.0f);  // 1.5 * 2^23: adding it rounds to a whole number
  const V n = (clamped * 1.44269504088896341f + magic) - magic;
  const V r = (clamped - n * 0.693359375f) - n * -2.12194440e-4f;
  V p = r * 1.9875691500e-4f + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  const I exponent = (convert<int32_t, kLanes<float> >(n) + 127) << 23;
  const V result = p * bit_cast<V>(exponent);
  return x != x ? x : result;
}

// |x| < 1: x P(x^2), P interpolates erf(x) / x in Chebyshev nodes (below 2e-7 relative, rounding included).
// Else 1 - t exp(Q(t) - x^2), t = 1 / (1 + x / 2): W. H. Press et al., Numerical Recipes, 6.2.2.
inline Vector<float> erf(Vector<float> x) {
  using V = Vector<float>;
  const V one = broadcast(1.0f), a = x < V{} ? -x : x, s = x * x;
  V p = s * 7.882497111e-5f - 8.018854992e-4f;
  p = p * s + 5.189311943e-3f;
  p = p * s - 2.685432880e-2f;
  p = p * s + 1.128359746e-1f;
  p = p * s - 3.761262690e-1f;
  p = p * s + 1.128379166e0f;
  const V t = one / (a * 0.5f + 1.0f);
  V q = t * 0.17087277f - 0.82215223f;
  q = q * t + 1.48851587f;
  q = q * t - 1.13520398f;
  q = q * t + 0.27886807f;
  q = q * t - 0.18628806f;
  q = q * t + 0.09678418f;
  q = q * t + 0.37409196f;
  q = q * t + 1.00002368f;
  q = q * t - 1.26551223f;
  const V tail = one - t * exp(q - s), signed_tail = x < V{} ? -tail : tail;
  return a < one ? x * p : signed_tail;
}

#endif

}  // namespace FUSED_RESNET_TARGET
}  // namespace fused_resnet
