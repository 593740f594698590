// Mean and biased variance of each channel, in one pass and two stages, and their backward.
//
// Stage one: a block of elements gives a sum, then, from L1 or L2, a sum of squares about its own mean; both join the
// thread's by Chan's formula (Chan, Golub, LeVeque 1979, eq. 2.1), in double. Stage two joins the threads', in order.
// Nothing cancels, however large the mean.
#include "dispatch.h"
#include "launchers.h"
#include "tiles.h"

namespace fused_resnet {
inline namespace FUSED_RESNET_TARGET {

namespace {

// Counts, means and sums of squares about the mean of each channel, a row of each for every thread.
class Moments {
 public:
  Moments(int64_t channels, int threads) : stride_((channels + 63) / 64 * 64), data_(3 * stride_ * threads) {}

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

 private:
  int64_t stride_;
  Scratch<double> data_;
};

// The sums one thread keeps over a block.
template <class S>
struct BlockSums {
  explicit BlockSums(int64_t sums) : x(sums + 64), mean(sums + 64), d(sums + 64), d2(sums + 64) {}

  Scratch<S> x, mean, d, d2;  // sums of x, x - mean and (x - mean)^2
};

template <class S>
void add(S* sum, Vector<S> v) {
  store(sum, load(sum) + v);
}

template <class T, class Layout, class S = Accumulate<T>>
void join_block(const T* x, const ChannelView& view, int64_t block, const BlockSums<S>& sums, int thread,
                const Moments& moments) {
  const double n = static_cast<double>(Layout::template elements_per_channel<S>(view, block)), each = 1 / n;
  Layout::template visit<S>(view, block,
                            [&](const auto& tile) { add(sums.x.get() + Layout::sum_of(tile.channel), tile.load(x)); });
  Layout::template for_channels<S>(view, block, [&](int64_t, int64_t first, int count) {
    const S mean = static_cast<S>(take(sums.x.get() + first, count) * each);
    for (int i = 0; i < count; ++i) sums.mean.get()[first + i] = mean;
  });
  Layout::template visit<S>(view, block, [&](const auto& tile) {
    const int64_t at = Layout::sum_of(tile.channel);
    const Vector<S> d = tile.template only_elements<S>(tile.load(x) - load(sums.mean.get() + at));
    add(sums.d.get() + at, d);
    add(sums.d2.get() + at, d * d);
  });
  // All channels of a block have seen as many elements so far.
  const double known = moments.count(thread)[Layout::template first_channel<S>(view, block)], weight = n / (known + n);
  Layout::template for_channels<S>(view, block, [&](int64_t c, int64_t first, int count) {
    // The rounding of the mean is in the sum of d.
    const double d = take(sums.d.get() + first, count), d2 = take(sums.d2.get() + first, count);
    moments.join(thread, c, known, n, weight, sums.mean.get()[first] + d * each, d2 - d * d * each);
  });
}

template <class T, class Layout>
void channel_stats_kernel(const ChannelStatsArgs& a) {
  using S = Accumulate<T>;
  const auto* x = static_cast<const T*>(a.x);
  const int64_t channels = a.view.channels;
  const int threads = threads_for(a.view.elements(), a.threads);
  const Moments moments(channels, threads);

  if (a.view.elements() > 0) {
    parallel(threads, [&](int part, int parts) {
      const BlockSums<S> sums(Layout::sums(channels));
      const Range range = share(Layout::template blocks<S>(a.view), part, parts);
      for (int64_t block = range.begin; block < range.end; ++block)
        join_block<T, Layout>(x, a.view, block, sums, part, moments);
    });
  }

  auto *mean = static_cast<S*>(a.mean), *var = static_cast<S*>(a.var);
  for (int64_t c = 0; c < channels; ++c) {
    for (int thread = 1; thread < threads; ++thread) {
      const double known = moments.count(0)[c], n = moments.count(thread)[c];
      if (n > 0) moments.join(0, c, known, n, n / (known + n), moments.mean(thread)[c], moments.m2(thread)[c]);
    }
    const double count = moments.count(0)[c];
    mean[c] = static_cast<S>(moments.mean(0)[c]);
    var[c] = count > 0 ? static_cast<S>(moments.m2(0)[c] / count) : S(0);
  }
}

template <class T, class Layout>
void channel_stats_backward_kernel(const ChannelStatsBackwardArgs& a) {
  using S = Accumulate<T>;
  const auto *g_y = static_cast<const T*>(a.g_y), *y = static_cast<const T*>(a.y);
  const auto *g_mean = static_cast<const S*>(a.g_mean), *g_var = static_cast<const S*>(a.g_var);
  auto* g = static_cast<T*>(a.g);
  const S each = S(1) / S(a.view.per_channel() > 0 ? a.view.per_channel() : 1);
  const Norm<S> norm(
      a.view.channels, a.y_mean, [&](int64_t c) { return 2 * each * g_var[c]; },
      [&](int64_t c) { return each * g_mean[c]; });
  for_each(Layout::template blocks<S>(a.view), threads_for(a.view.elements(), a.threads), [&](int, int64_t block) {
    Layout::template visit<S>(a.view, block, [&](const auto& tile) {
      tile.store(g, tile.load(g_y) + Layout::norm(norm, tile.channel)(tile.load(y)));
    });
  });
}

}  // namespace

void launch_channel_stats(const ChannelStatsArgs& a) {
  visit_dtype(a.dtype, [&](auto type) {
    visit_layout(a.view,
                 [&](auto layout) { channel_stats_kernel<typename decltype(type)::type, decltype(layout)>(a); });
  });
}

void launch_channel_stats_backward(const ChannelStatsBackwardArgs& a) {
  visit_dtype(a.dtype, [&](auto type) {
    visit_layout(a.view, [&](auto layout) {
      channel_stats_backward_kernel<typename decltype(type)::type, decltype(layout)>(a);
    });
  });
}

}  // namespace FUSED_RESNET_TARGET
}  // namespace fused_resnet
