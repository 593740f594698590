// The register-tiled matrix products under every convolution, and the layouts of what they read.
//
// Two kernels, each with its sums in registers from beginning to end. `multiply_rows` is for forward and dgrad: rows
// of pixels, which lie in tiles, times a panel of filters. `multiply_columns` is for wgrad: its sum runs over pixels,
// so that both operands are read along their rows and nothing is transposed.
#pragma once

#include <numeric>
#include <vector>

#include "ahead.h"
#include "simd.h"

namespace fused_resnet {
inline namespace FUSED_RESNET_TARGET {

// Registers of a tile: kTileRows x kPanelVectors sums, kPanelVectors of a panel and one broadcast. Of 32 registers 31,
// of AVX2's 16 15.
constexpr int kPanelVectors = 2;
#if FUSED_RESNET_VECTOR_BYTES == 64
constexpr int kTileRows = 14;
constexpr int kColumnRows = 8;
#elif FUSED_RESNET_VECTOR_BYTES == 32
constexpr int kTileRows = 6;
constexpr int kColumnRows = 6;
#elif FUSED_RESNET_VECTOR_BYTES == 16
constexpr int kTileRows = 12;
constexpr int kColumnRows = 8;
#else
constexpr int kTileRows = 4;
constexpr int kColumnRows = 4;
#endif
constexpr int kHalfTile = kTileRows / 2;

// Columns that a row of a tile has next to each other: a tile of [kTileRows, depth] is stored as
// [depth / kChunk, kTileRows, kChunk], so that a tile's rows are constants apart and within one stretch of memory.
constexpr int64_t kChunk = 64;

template <class S>
constexpr int64_t kPanel = kPanelVectors * kLanes<S>;  // columns of a panel

// Columns that a row of multiply_columns' left side has next to each other: whole registers to write, whole blocks to
// read.
template <class S>
constexpr int64_t kColumnChunk = std::lcm<int64_t>(kColumnRows, kLanes<S>);

constexpr int64_t round_up(int64_t n, int64_t to) {
  return (n + to - 1) / to * to;
}

// Elements of a tile of this many columns.
inline int64_t tile_size(int64_t depth) {
  return kTileRows * round_up(depth, kChunk);
}

// Stores the first `rows` rows and `columns` columns of sums, or adds them to what is there.
template <class S, int kRows, int kVectors>
inline void store_rows(const Vector<S> (&sums)[kRows][kVectors], S* const* out, int rows, int64_t columns, bool adds) {
  constexpr int N = kLanes<S>;
#pragma GCC unroll 16
  for (int i = 0; i < kRows; ++i) {
    if (i >= rows) break;
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) {
      S* to = out[i] + v * N;
      const int64_t left = columns - v * N;
      if (left >= N) {
        store(to, adds ? load(to) + sums[i][v] : sums[i][v]);
      } else if (left > 0) {
        const int n = static_cast<int>(left);
        store(to, adds ? load(to, n) + sums[i][v] : sums[i][v], n);
      }
    }
  }
}

// out[i][j] = sum over k of a[i][k] b[k][j], for the first kRows rows of a tile, of which `rows` are stored, and the
// first `columns` columns, added to what is there where `adds` says so. What lies `ahead` is asked for on the way.
template <class S, int kRows, int kVectors>
inline void multiply_rows(const S* a,  // a tile [depth / kChunk, kTileRows, kChunk]
                          const S* b,  // a panel [depth, kVectors * kLanes]
                          int64_t depth, S* const* out, int rows, int64_t columns, bool adds, Prefetch ahead) {
  constexpr int N = kLanes<S>;
  const char* soon = ahead.begin ? ahead.begin : reinterpret_cast<const char*>(a);
  Vector<S> sums[kRows][kVectors] = {};
  for (int64_t left = depth; left > 0; left -= kChunk, a += kTileRows * kChunk) {
    const int64_t n = left < kChunk ? left : kChunk;
    for (int64_t k = 0; k < n; ++k, b += kVectors * N) {
      __builtin_prefetch(soon, 0, 2);
      soon += ahead.bytes_per_step;
      Vector<S> panel[kVectors];
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) panel[v] = load(b + v * N);
#pragma GCC unroll 16
      for (int i = 0; i < kRows; ++i) {
        const Vector<S> factor = broadcast(a[i * kChunk + k]);
#pragma GCC unroll 4
        for (int v = 0; v < kVectors; ++v) sums[i][v] += factor * panel[v];
      }
    }
  }
  store_rows<S, kRows, kVectors>(sums, out, rows, columns, adds);
}

// The same for a tile of which only the first `rows` rows count. Half a tile, as the last one often is where images are
// small, takes half the time.
template <class S>
inline void multiply_tile(const S* tile, const S* panel, int64_t depth, S* const* out, int rows, int64_t columns,
                          bool adds, const Prefetch& ahead) {
  const bool is_narrow = columns <= kLanes<S>;
  if (rows <= kHalfTile)
    is_narrow ? multiply_rows<S, kHalfTile, 1>(tile, panel, depth, out, rows, columns, adds, ahead)
              : multiply_rows<S, kHalfTile, kPanelVectors>(tile, panel, depth, out, rows, columns, adds, ahead);
  else
    is_narrow ? multiply_rows<S, kTileRows, 1>(tile, panel, depth, out, rows, columns, adds, ahead)
              : multiply_rows<S, kTileRows, kPanelVectors>(tile, panel, depth, out, rows, columns, adds, ahead);
}

// Numbers in memory, `offset` after where a row begins.
struct Stretch {
  int64_t offset, length;
};

// out[i][j] = sum over all stretches' k of a[i][k] b[k][j], where row i < kHalfTile begins at upper + i step and the
// others at lower + (i - kHalfTile) step.
template <class S, int kRows, int kVectors>
inline void multiply_stretches(const S* upper, const S* lower, int64_t step, const std::vector<Stretch>& stretches,
                               const S* b,  // a panel [depth, kVectors * kLanes]
                               S* const* out, int64_t columns, Prefetch ahead) {
  constexpr int N = kLanes<S>;
  const char* soon = ahead.begin ? ahead.begin : reinterpret_cast<const char*>(b);
  Vector<S> sums[kRows][kVectors] = {};
  for (const Stretch& stretch : stretches) {
    const S *u = upper + stretch.offset, *l = lower + stretch.offset;
    for (int64_t k = 0; k < stretch.length; ++k, ++u, ++l, b += kVectors * N) {
      __builtin_prefetch(soon, 0, 2);
      soon += ahead.bytes_per_step;
      Vector<S> panel[kVectors];
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) panel[v] = load(b + v * N);
#pragma GCC unroll 16
      for (int i = 0; i < kRows; ++i) {
        const Vector<S> factor = broadcast(i < kHalfTile ? u[i * step] : l[(i - kHalfTile) * step]);
#pragma GCC unroll 4
        for (int v = 0; v < kVectors; ++v) sums[i][v] += factor * panel[v];
      }
    }
  }
  store_rows<S, kRows, kVectors>(sums, out, kRows, columns, false);
}

// The same for one half of a tile or both.
template <class S>
inline void multiply_strips(const S* const (&read)[2], size_t halves, int64_t step,
                            const std::vector<Stretch>& stretches, const S* panel, S* const* out, int64_t columns,
                            const Prefetch& ahead) {
  const bool is_narrow = columns <= kLanes<S>;
  if (halves == 1)
    is_narrow ? multiply_stretches<S, kHalfTile, 1>(read[0], read[1], step, stretches, panel, out, columns, ahead)
              : multiply_stretches<S, kHalfTile, kPanelVectors>(read[0], read[1], step, stretches, panel, out, columns,
                                                                ahead);
  else
    is_narrow ? multiply_stretches<S, kTileRows, 1>(read[0], read[1], step, stretches, panel, out, columns, ahead)
              : multiply_stretches<S, kTileRows, kPanelVectors>(read[0], read[1], step, stretches, panel, out, columns,
                                                                ahead);
}

// The rows of multiply_columns' right side: `count` lines of `length` rows `row_stride` apart, lines `line_stride`
// apart.
struct Lines {
  int64_t count, length, row_stride, line_stride;
};

// out[i][j] = sum over p of a[p][i] b[p][j], for kColumnRows rows i and kVectors * kLanes columns j, added to what is
// there where `adds` says so.
template <class S, int kVectors>
inline void multiply_columns(const S* a, int64_t a_stride, const S* b, const Lines& lines, S* out, int64_t out_stride,
                             bool adds, Prefetch ahead) {
  constexpr int N = kLanes<S>;
  const char* soon = ahead.begin ? ahead.begin : reinterpret_cast<const char*>(out);
  for (int i = 0; adds && i < kColumnRows; ++i) prefetch(out + i * out_stride, kVectors * N);
  Vector<S> sums[kColumnRows][kVectors] = {};
  for (int64_t line = 0; line < lines.count; ++line) {
    const S* row = b + line * lines.line_stride;
    for (int64_t p = 0; p < lines.length; ++p, a += a_stride, row += lines.row_stride, soon += ahead.bytes_per_step) {
      __builtin_prefetch(soon, 0, 2);
      Vector<S> panel[kVectors];
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) panel[v] = load(row + v * N);
#pragma GCC unroll 16
      for (int i = 0; i < kColumnRows; ++i) {
        const Vector<S> factor = broadcast(a[i]);
#pragma GCC unroll 4
        for (int v = 0; v < kVectors; ++v) sums[i][v] += factor * panel[v];
      }
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < kColumnRows; ++i)
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) {
      S* to = out + i * out_stride + v * N;
      // A sum of sums, not one long one: rounding grows with the root of a block's length, not of all pixels.
      store(to, adds ? load(to) + sums[i][v] : sums[i][v]);
    }
}

// The same for the first `columns` of kPanel columns.
template <class S>
inline void multiply_columns_panel(const S* a, int64_t a_stride, const S* b, const Lines& lines, int64_t columns,
                                   S* out, int64_t out_stride, bool adds, const Prefetch& ahead) {
  if (columns <= kLanes<S>)
    multiply_columns<S, 1>(a, a_stride, b, lines, out, out_stride, adds, ahead);
  else
    multiply_columns<S, kPanelVectors>(a, a_stride, b, lines, out, out_stride, adds, ahead);
}

}  // namespace FUSED_RESNET_TARGET
}  // namespace fused_resnet
