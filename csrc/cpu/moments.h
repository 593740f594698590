// Mean and biased variance of each channel, in one pass and two stages.
//
// Stage one: a block of rows gives a sum, then, from L1 or L2, a sum of squares about its own mean; both join the
// thread's by Chan's formula (Chan, Golub, LeVeque 1979, eq. 2.1), in double. Stage two joins the threads', in order.
// Nothing cancels, however large the mean.
#pragma once

#include <algorithm>

#include "parallel.h"
#include "simd.h"

namespace fused_resnet {
inline namespace FUSED_RESNET_TARGET {

// Counts, means and sums of squares about the mean of each channel, a row of each for every thread.
class Moments {
 public:
  Moments(int64_t channels, int threads)
      : channels_(channels), threads_(threads), stride_((channels + 63) / 64 * 64), data_(3 * stride_ * threads) {}

  double* count(int thread) const { return data_.get() + 3 * stride_ * thread; }
  double* mean(int thread) const { return count(thread) + stride_; }
  double* m2(int thread) const { return count(thread) + 2 * stride_; }

  // Joins `n` elements of channel c to the `known` ones of the thread; weight = n / (known + n).
  void join(int thread, int64_t c, double known, double n, double weight, double mean_n, double m2_n) const {
    const double delta = mean_n - mean(thread)[c];
    mean(thread)[c] += delta * weight;
    m2(thread)[c] += m2_n + delta * delta * known * weight;
    count(thread)[c] = known + n;
  }

  // Joins the threads'. Zeros where there is no element.
  template <class S>
  void finish(S* mean_out, S* var_out) const {
    for (int64_t c = 0; c < channels_; ++c) {
      for (int thread = 1; thread < threads_; ++thread) {
        const double known = count(0)[c], n = count(thread)[c];
        if (n > 0) join(0, c, known, n, n / (known + n), mean(thread)[c], m2(thread)[c]);
      }
      const double n = count(0)[c];
      mean_out[c] = static_cast<S>(mean(0)[c]);
      var_out[c] = n > 0 ? static_cast<S>(m2(0)[c] / n) : S(0);
    }
  }

 private:
  int64_t channels_;
  int threads_;
  int64_t stride_;
  Scratch<double> data_;
};

// Moments of rows of channels, which one thread adds block by block.
template <class S>
class RowMoments {
 public:
  RowMoments(int64_t channels, const Moments& moments, int thread)
      : channels_(channels), moments_(moments), thread_(thread), sums_(3 * padded()) {}

  // Adds rows that are `stride` apart. Calls also f(row, c, lanes, v) for each register of them.
  template <class T, class F>
  void add(const T* x, int64_t stride, int64_t rows, const F& f) const {
    for (int64_t first = 0; first < rows; first += kBlock)
      add_block(x, stride, first, std::min(kBlock, rows - first), f);
  }

 private:
  static constexpr int64_t kBlock = 64;  // rows: a sum in float of no more
  static constexpr int kTogether = 8;    // rows in flight: a running sum is loaded and stored once for all of them

  int64_t padded() const { return (channels_ + 63) / 64 * 64 + 32; }

  // Calls f(c, lanes, first row, number of rows) such that few streams of memory are read at a time.
  template <class F>
  void visit(int64_t rows, const F& f) const {
    constexpr int N = kLanes<S>;
    for (int64_t row = 0; row < rows; row += kTogether) {
      const int64_t n = std::min<int64_t>(kTogether, rows - row);
      int64_t c = 0;
      for (; c + N <= channels_; c += N) f(c, N, row, n);
      if (c < channels_) f(c, static_cast<int>(channels_ - c), row, n);
    }
  }

  template <class T, class F>
  void add_block(const T* x, int64_t stride, int64_t begin, int64_t rows, const F& f) const {
    S *sum = sums_.get(), *mean = sum, *d1 = sum + padded(), *d2 = d1 + padded();
    std::fill_n(sum, 3 * padded(), S(0));
    visit(rows, [&](int64_t c, int lanes, int64_t row, int64_t n) {
      Vector<S> total = load(sum + c);
      each<kTogether>(n, [&](int64_t i) { total += load(x + (begin + row + i) * stride + c, lanes); });
      store(sum + c, total);
    });
    const S each_row = S(1) / static_cast<S>(rows);
    for (int64_t c = 0; c < channels_; ++c) mean[c] *= each_row;
    visit(rows, [&](int64_t c, int lanes, int64_t row, int64_t n) {
      const Vector<S> center = load(mean + c);
      Vector<S> first = load(d1 + c), second = load(d2 + c);
      each<kTogether>(n, [&](int64_t i) {
        const Vector<S> v = load(x + (begin + row + i) * stride + c, lanes), d = v - center;
        f(begin + row + i, c, lanes, v);
        first += d;
        second += d * d;
      });
      store(d1 + c, first);
      store(d2 + c, second);
    });
    const double n = static_cast<double>(rows), known = moments_.count(thread_)[0], weight = n / (known + n);
    for (int64_t c = 0; c < channels_; ++c) {
      const double rounding = double(d1[c]) / n;  // of the mean
      moments_.join(thread_, c, known, n, weight, mean[c] + rounding, d2[c] - double(d1[c]) * rounding);
    }
  }

  // A loop of constant length where it can be one.
  template <int kCount, class F>
  static void each(int64_t n, const F& f) {
    if (n == kCount) {
#pragma GCC unroll 8
      for (int i = 0; i < kCount; ++i) f(i);
    } else {
      for (int64_t i = 0; i < n; ++i) f(i);
    }
  }

  int64_t channels_;
  const Moments& moments_;
  int thread_;
  Scratch<S> sums_;
};

// Moments of what comes a few rows of a few channels at a time: in one pass, about the mean of a block's first rows.
template <class S>
class PieceMoments {
 public:
  PieceMoments(int64_t channels, const Moments& moments, int thread)
      : channels_(channels), moments_(moments), thread_(thread), counts_(padded()), sums_(3 * padded()) {}

  // Adds registers v of one or two columns: visit(f) calls f(v, j) for the j-th of each row.
  template <class Columns, class Visit>
  void add(const Columns& columns, const Visit& visit) const {
    const int64_t c = columns.first.channel;
    S *center = sums_.get() + c, *d1 = center + padded(), *d2 = d1 + padded();
    int64_t n = 0;
    if (counts_.get()[c] == 0) {
      Vector<S> total[2] = {};
      visit([&](Vector<S> v, auto j) {
        total[j] += v;
        n += j == 0;
      });
      if (n == 0) return;
      columns.each(
          [&](const auto&, auto j) { store(center + j * kLanes<S>, total[j] / broadcast(static_cast<S>(n))); });
      n = 0;
    }
    Vector<S> middle[2], first[2] = {}, second[2] = {};
    columns.each([&](const auto&, auto j) { middle[j] = load(center + j * kLanes<S>); });
    visit([&](Vector<S> v, auto j) {
      const Vector<S> d = v - middle[j];
      first[j] += d;
      second[j] += d * d;
      n += j == 0;
    });
    columns.each([&](const auto&, auto j) {
      constexpr int64_t at = j * kLanes<S>;
      store(d1 + at, load(d1 + at) + first[j]);
      store(d2 + at, load(d2 + at) + second[j]);
      counts_.get()[c + at] += static_cast<double>(n);
    });
  }

  // The block joins the thread's moments.
  void end_block() const {
    S *center = sums_.get(), *d1 = center + padded(), *d2 = d1 + padded();
    for (int64_t c = 0; c < channels_; ++c) {
      const double n = counts_.get()[c / kLanes<S> * kLanes<S>], known = moments_.count(thread_)[c];
      if (n == 0) continue;
      const double rest = double(d1[c]) / n;  // of the mean
      moments_.join(thread_, c, known, n, n / (known + n), center[c] + rest, d2[c] - double(d1[c]) * rest);
    }
    std::fill_n(d1, 2 * padded(), S(0));
    std::fill_n(counts_.get(), padded(), 0.0);
  }

 private:
  int64_t padded() const { return (channels_ + 63) / 64 * 64 + 32; }

  int64_t channels_;
  const Moments& moments_;
  int thread_;
  Scratch<double> counts_;  // of a register's first channel
  Scratch<S> sums_;
};

}  // namespace FUSED_RESNET_TARGET
}  // namespace fused_resnet
