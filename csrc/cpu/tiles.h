// How pointwise kernels walk an image: in memory order, one register at a time, such that one kernel body serves both
// layouts.
//
// The work is cut into blocks, over which a sum in float runs before it joins one in double: in channels_last some rows
// of C channels, in contiguous layout a stretch of one channel's plane, either way 64 elements a lane. Vectors of
// channels and running sums stay in L1. (Walking down a column of rows instead keeps them in registers, but the
// prefetcher loses track, and rows of 1024 channels fall into one set of L1: half the speed.)
#pragma once

#include "batch_norm.h"

namespace fused_resnet {
inline namespace FUSED_RESNET_TARGET {

// Where a register's elements are. Only the last channels of a row or the end of a plane fill it in part; which case it
// is, is known at compile time.
template <bool kFull>
struct Tile {
  int64_t offset;   // of the first element
  int64_t channel;  // of the first element
  int lanes;
  int64_t row = 0;  // of channels, in channels_last

  template <class T>
  Vector<Accumulate<T>> load(const T* p) const {
    if constexpr (kFull)
      return fused_resnet::load(p + offset);
    else
      return fused_resnet::load(p + offset, lanes);
  }

  template <class T>
  void store(T* p, Vector<Accumulate<T>> v) const {
    if constexpr (kFull)
      fused_resnet::store(p + offset, v);
    else
      fused_resnet::store(p + offset, v, lanes);
  }
};

// The same channels of kCount rows, `stride` elements apart: what belongs to a channel is loaded once for all of them.
template <bool kFull, int kCount>
struct TileGroup {
  Tile<kFull> first;
  int64_t stride;

  int64_t channel() const { return first.channel; }

  // Calls f(tile) for each.
  template <class F>
  void each(const F& f) const {
#pragma GCC unroll 4
    for (int i = 0; i < kCount; ++i)
      f(Tile<kFull>{first.offset + i * stride, first.channel, first.lanes, first.row + i});
  }
};

// Lanes are consecutive channels.
struct ChannelsLast {
  static constexpr int64_t kRows = 64;

  template <class S>
  static int64_t blocks(const ChannelView& v) {
    return (v.outer + kRows - 1) / kRows;
  }

  template <class S>
  static int64_t first_channel(const ChannelView&, int64_t) {
    return 0;
  }

  template <class S>
  static int64_t elements_per_channel(const ChannelView& v, int64_t block) {
    const int64_t left = v.outer - block * kRows;
    return left < kRows ? left : kRows;
  }

  // Calls f(group) for the registers of a block, group by group.
  template <class S, class F>
  static void visit(const ChannelView& v, int64_t block, const F& f) {
    visit_rows<S>(v.channels, block * kRows, block * kRows + elements_per_channel<S>(v, block), f);
  }

  // Calls f(group) for the registers of these rows. Few rows at a time, for the prefetcher to follow; what is left over
  // goes as if it filled no register, so that f is compiled for two kinds of groups alone.
  template <class S, class F>
  static void visit_rows(int64_t channels, int64_t begin, int64_t end, const F& f) {
    constexpr int N = kLanes<S>;
    const int64_t whole = channels / N * N;
    int64_t row = begin;
    for (; row + 4 <= end; row += 4) {
      for (int64_t c = 0; c < whole; c += N) f(TileGroup<true, 4>{{row * channels + c, c, N, row}, channels});
      for (int64_t i = row; i < row + 4; ++i) visit_rest<S>(channels, whole, i, f);
    }
    for (; row < end; ++row) visit_rest<S>(channels, 0, row, f);
  }

  template <class S>
  static NormVector<S> norm(const Norm<S>& norm, int64_t channel) {
    return norm.channels_from(channel);
  }

  // Sums over a block are kept one for each channel.
  static int64_t sums(int64_t channels) { return channels; }
  static int64_t sum_of(int64_t channel) { return channel; }

  // Calls f(channel, first, count) for each channel of a block: its sums are `count` from `first` on.
  template <class S, class F>
  static void for_channels(const ChannelView& v, int64_t, const F& f) {
    for (int64_t c = 0; c < v.channels; ++c) f(c, c, 1);
  }

 private:
  // The channels from c on.
  template <class S, class F>
  static void visit_rest(int64_t channels, int64_t c, int64_t row, const F& f) {
    for (; c < channels; c += kLanes<S>) {
      const int lanes = static_cast<int>(std::min<int64_t>(kLanes<S>, channels - c));
      f(TileGroup<false, 1>{{row * channels + c, c, lanes, row}, channels});
    }
  }
};

// Lanes are consecutive pixels of one channel.
struct Contiguous {
  template <class S>
  static constexpr int64_t kStretch = 64 * kLanes<S>;

  template <class S>
  static int64_t blocks_per_plane(const ChannelView& v) {
    return (v.inner + kStretch<S> - 1) / kStretch<S>;
  }

  template <class S>
  static int64_t blocks(const ChannelView& v) {
    return v.outer * v.channels * blocks_per_plane<S>(v);
  }

  template <class S>
  static int64_t first_channel(const ChannelView& v, int64_t block) {
    return block / blocks_per_plane<S>(v) % v.channels;
  }

  // Where the block begins in its plane.
  template <class S>
  static int64_t first_pixel(const ChannelView& v, int64_t block) {
    return block % blocks_per_plane<S>(v) * kStretch<S>;
  }

  template <class S>
  static int64_t elements_per_channel(const ChannelView& v, int64_t block) {
    const int64_t left = v.inner - first_pixel<S>(v, block);
    return left < kStretch<S> ? left : kStretch<S>;
  }

  template <class S, class F>
  static void visit(const ChannelView& v, int64_t block, const F& f) {
    const int64_t begin = block / blocks_per_plane<S>(v) * v.inner + first_pixel<S>(v, block);
    const int64_t n = elements_per_channel<S>(v, block), channel = first_channel<S>(v, block);
    int64_t i = 0;
    for (; i + kLanes<S> <= n; i += kLanes<S>) f(TileGroup<true, 1>{{begin + i, channel, kLanes<S>}, 0});
    if (i < n) f(TileGroup<false, 1>{{begin + i, channel, static_cast<int>(n - i)}, 0});
  }

  template <class S>
  static NormVector<S> norm(const Norm<S>& norm, int64_t channel) {
    return norm.channel(channel);
  }

  // Sums over a block are kept one for each lane.
  static int64_t sums(int64_t) { return 1; }
  static int64_t sum_of(int64_t) { return 0; }

  template <class S, class F>
  static void for_channels(const ChannelView& v, int64_t block, const F& f) {
    f(first_channel<S>(v, block), 0, kLanes<S>);
  }
};

// A tensor that a kernel writes once, from beginning to end. One too large to be found in the caches afterwards is
// written past them, where its registers are aligned.
template <class T>
class Output {
 public:
  using S = Accumulate<T>;

  Output(void* data, const ChannelView& view)
      : data_(static_cast<T*>(data)),
        is_streamed_(std::is_same_v<T, S> && view.elements() * static_cast<int64_t>(sizeof(T)) >= kStreamedBytes &&
                     view.inner == 1 && view.channels % kLanes<S> == 0 &&
                     reinterpret_cast<uintptr_t>(data) % sizeof(Vector<S>) == 0) {}

  T* data() const { return data_; }
  bool is_streamed() const { return is_streamed_; }

  template <class Tile>
  void store(const Tile& tile, Vector<S> v) const {
    if constexpr (std::is_same_v<T, S>)
      if (is_streamed_) return stream(data_ + tile.offset, v);
    tile.store(data_, v);
  }

 private:
  static constexpr int64_t kStreamedBytes = 8 << 20;  // a processor's share of L3, about

  T* data_;
  bool is_streamed_;
};

template <class F>
inline void visit_layout(const ChannelView& view, const F& f) {
  if (view.inner == 1) return f(ChannelsLast{});
  f(Contiguous{});
}

// Adds up `count` sums in double, and clears them.
template <class S>
inline double take(S* sums, int count) {
  double total = 0;
  for (int i = 0; i < count; ++i) {
    total += sums[i];
    sums[i] = 0;
  }
  return total;
}

// A sum over each channel: in float over a block, in double over a thread's blocks, and over threads in their order.
template <class S, class Layout>
class ChannelSums {
 public:
  ChannelSums(const ChannelView& view, int threads)
      : view_(view),
        threads_(threads),
        block_stride_(padded(Layout::sums(view.channels))),
        channel_stride_(padded(view.channels)),
        block_(block_stride_ * threads),
        channel_(channel_stride_ * threads) {}

  void add(int thread, int64_t channel, Vector<S> v) const {
    S* sum = block_.get() + thread * block_stride_ + Layout::sum_of(channel);
    store(sum, load(sum) + v);
  }

  void flush(int thread, int64_t block) const {
    S* sums = block_.get() + thread * block_stride_;
    double* totals = channel_.get() + thread * channel_stride_;
    Layout::template for_channels<S>(
        view_, block, [&](int64_t c, int64_t first, int count) { totals[c] += take(sums + first, count); });
  }

  const double* total() const {
    double* sums = channel_.get();
    for (int thread = 1; thread < threads_; ++thread)
      for (int64_t c = 0; c < view_.channels; ++c) sums[c] += sums[thread * channel_stride_ + c];
    return sums;
  }

 private:
  // Whole registers, and a few cache lines more, for the sums of two objects not to share one set of L1.
  static int64_t padded(int64_t n) { return (n + 63) / 64 * 64 + 96; }

  ChannelView view_;
  int threads_;
  int64_t block_stride_, channel_stride_;
  Scratch<S> block_;
  Scratch<double> channel_;
};

}  // namespace FUSED_RESNET_TARGET
}  // namespace fused_resnet
