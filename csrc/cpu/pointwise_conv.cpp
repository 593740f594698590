// A 1x1 convolution as a matrix product whose results are finished a tile and a panel at a time, while the next ones
// are computed: its outputs are its largest part, and to write them after a whole block is done would leave the
// multipliers idle until memory has taken them.
#include <algorithm>

#include "parallel.h"
#include "pointwise.h"
#include "workspace.h"

namespace fused_resnet {
inline namespace FUSED_RESNET_TARGET {

namespace {

// Of L2, for a block's tiles, beside the filter. One that does not fit there comes from L3 once a block, so then blocks
// are larger.
constexpr int64_t kBlockBytes = 192 * 1024, kLargeBlockBytes = 640 * 1024;
constexpr int64_t kLargeFilterBytes = 768 * 1024;
// Of L1, for a panel: terms of a sum.
constexpr int64_t kPieceDepth = 256;
// Fewer tiles a thread, and its filter costs more than its pixels.
constexpr int64_t kFewTiles = 6;

template <class S>
class PointwiseConv {
 public:
  PointwiseConv(const ConvShape& shape, const S* packed, const Source<S>& source, PieceSink<S>& sink, int threads)
      : shape_(shape),
        packed_(packed),
        source_(source),
        sink_(sink),
        depth_(shape.channels),
        pixels_(shape.batch * shape.out_height * shape.out_width),
        run_(shape.stride_h == 1 && shape.stride_w == 1 ? pixels_ : shape.out_width),
        tiles_((pixels_ + kTileRows - 1) / kTileRows),
        panels_((shape.out_channels + kPanel<S> - 1) / kPanel<S>) {
    const int64_t tile_bytes = tile_size(depth_) * static_cast<int64_t>(sizeof(S));
    const int64_t filter_bytes = depth_ * shape.out_channels * static_cast<int64_t>(sizeof(S));
    filter_is_large_ = filter_bytes > kLargeFilterBytes;
    // Few pixels: each thread takes a share of the channels, so that it reads a share of the filter.
    by_channels_ = threads > 1 && panels_ >= threads && tiles_ < kFewTiles * threads;
    const int64_t fitting = (filter_is_large_ ? kLargeBlockBytes : kBlockBytes) / tile_bytes;
    block_ = std::clamp<int64_t>(fitting, 1, by_channels_ ? tiles_ : (tiles_ + threads - 1) / threads);
    buffers_ = workspace<S>(Slot::tiles, block_ * tile_size(depth_) * threads);
  }

  void run(int part, int parts) {
    S* buffer = buffers_ + part * block_ * tile_size(depth_);
    const Range tiles = by_channels_ ? Range{0, tiles_} : share(tiles_, part, parts);
    const Range panels = by_channels_ ? share(panels_, part, parts) : Range{0, panels_};
    Ahead ahead;
    for (int64_t tile = tiles.begin; tile < tiles.end; tile += block_) {
      const int64_t count = std::min(block_, tiles.end - tile), next = std::min(block_, tiles.end - tile - count);
      for (int64_t t = 0; t < count; ++t) read(tile + t, buffer + t * tile_size(depth_));
      ahead.clear();
      announce(tile + count, next, ahead);
      ahead.spread(count * (panels.end - panels.begin) * depth_);
      for (int64_t panel = panels.begin; panel < panels.end; ++panel) {
        const S* filter = packed_ + panel * kPanel<S> * depth_;
        if (filter_is_large_ && panel + 1 < panels.end)
          ahead.add_first(filter + kPanel<S> * depth_, kPanel<S> * depth_ * static_cast<int64_t>(sizeof(S)),
                          count * depth_);
        for (int64_t t = 0; t < count; ++t)
          multiply(part, tile + t, panel, buffer + t * tile_size(depth_), filter, ahead);
      }
    }
  }

 private:
  int64_t pixels_of(int64_t tile) const { return std::min<int64_t>(kTileRows, pixels_ - tile * kTileRows); }

  // The input pixel of an output pixel.
  int64_t input_of(int64_t pixel) const {
    if (run_ == pixels_) return pixel;
    const int64_t w = pixel % shape_.out_width, row = pixel / shape_.out_width;
    const int64_t h = row / shape_.out_height * shape_.height + row % shape_.out_height * shape_.stride_h;
    return h * shape_.width + w * shape_.stride_w;
  }

  void read(int64_t tile, S* buffer) const {
    const int64_t first = tile * kTileRows, count = pixels_of(tile);
    for (int64_t i = 0, n; i < count; i += n) {
      n = std::min(count - i, run_ - (first + i) % run_);
      source_.read(input_of(first + i), shape_.stride_w, n, Rows<S>::tile(buffer).from_row(i));
    }
  }

  // What these tiles will read.
  void announce(int64_t tile, int64_t count, Ahead& ahead) const {
    if (count <= 0) return;
    const int64_t first = tile * kTileRows, end = std::min(first + count * kTileRows, pixels_);
    sink_.announce(first, end - first, ahead);
    source_.announce(input_of(first), input_of(end - 1) - input_of(first) + 1, ahead);
  }

  void multiply(int thread, int64_t tile, int64_t panel, const S* a, const S* filter, Ahead& ahead) {
    alignas(64) S sums[kTileRows * kPanel<S>];
    S* rows[kTileRows];
    for (int i = 0; i < kTileRows; ++i) rows[i] = sums + i * kPanel<S>;
    const int64_t first = panel * kPanel<S>, columns = std::min(kPanel<S>, shape_.out_channels - first);
    const int64_t lanes = columns <= kLanes<S> ? kLanes<S> : kPanel<S>;  // of a row of the panel
    const int64_t pieces = (depth_ + kPieceDepth - 1) / kPieceDepth;
    const int64_t piece = round_up((depth_ + pieces - 1) / pieces, kChunk);
    const int count = static_cast<int>(pixels_of(tile));
    for (int64_t done = 0; done < depth_; done += piece) {
      const int64_t n = std::min(piece, depth_ - done);
      multiply_tile(a + done * kTileRows, filter + done * lanes, n, rows, count, columns, done > 0, ahead.take(n));
    }
    const PieceRun run{0, tile * kTileRows, count};
    sink_.finish(thread, Piece<S>{sums, kPanel<S>, &run, 1, 1, first, columns});
  }

  const ConvShape& shape_;
  const S* packed_;
  const Source<S>& source_;
  PieceSink<S>& sink_;
  int64_t depth_, pixels_;
  int64_t run_;  // outputs whose inputs are a stride apart
  int64_t tiles_, panels_;
  int64_t block_;  // tiles
  bool filter_is_large_, by_channels_;
  S* buffers_;
};

}  // namespace

template <class S>
void pointwise_conv(const ConvShape& shape, const S* packed, const Source<S>& source, PieceSink<S>& sink, int threads) {
  PointwiseConv<S> conv(shape, packed, source, sink, threads);
  parallel(threads, [&](int part, int parts) { conv.run(part, parts); });
}

#define FUSED_RESNET_INSTANTIATE(S) \
  template void pointwise_conv<S>(const ConvShape&, const S*, const Source<S>&, PieceSink<S>&, int);
FUSED_RESNET_INSTANTIATE(float)
FUSED_RESNET_INSTANTIATE(double)

}  // namespace FUSED_RESNET_TARGET
}  // namespace fused_resnet
