// The phases of dgrad. Tap r reads g for the pixel h of x where the stride divides h + pad - r dilation: which taps do
// so depends on h modulo the stride alone, the phase. A tile holds pixels of one phase and walks that phase's taps, so
// no zero that the stride left is multiplied.
#pragma once

#include "conv_operands.h"

namespace fused_resnet {
namespace conv {

// Along one axis, the pixels `phase`, `phase` + stride, ..., and the taps that reach them: first_tap, first_tap +
// steps.tap, ... None divides where first_tap is the kernel's size.
struct AxisPhase {
  int phase, pixels;
  int first_tap, taps;
  int source;  // of the first pixel, for the first tap
};

__device__ __forceinline__ AxisPhase axis_phase(int phase, int size, int kernel, int stride, int pad, int dilation,
                                                const PhaseSteps& steps) {
  int tap = 0;
  while (tap < kernel && (phase + pad - tap * dilation) % stride) ++tap;
  return {phase, (size - phase + stride - 1) / stride, tap, (kernel - tap + steps.tap - 1) / steps.tap,
          (phase + pad - tap * dilation) / stride};
}

// The phase of a tile, and the tile's place in it. Phases of one place are neighbours: they read the same g.
struct PhaseTile {
  AxisPhase h, w;
  int first_row, rows;  // of the tile in its phase, and of the whole phase

  template <class Traits>
  static __device__ __forceinline__ PhaseTile of(const ConvDgradParams& p, int row_tile) {
    const ConvGeometry& g = p.geometry;
    const int phases = p.steps_h.phases * p.steps_w.phases, phase = row_tile % phases;
    PhaseTile tile;
    tile.h = axis_phase(phase / p.steps_w.phases, g.height, g.kernel_h, g.stride_h, g.pad_h, g.dilation_h, p.steps_h);
    tile.w = axis_phase(phase % p.steps_w.phases, g.width, g.kernel_w, g.stride_w, g.pad_w, g.dilation_w, p.steps_w);
    tile.first_row = row_tile / phases * Traits::kRows;
    tile.rows = g.batch * tile.h.pixels * tile.w.pixels;
    return tile;
  }

  // Taps to walk: none where this phase, smaller than others, has no such tile.
  __device__ __forceinline__ int taps() const { return first_row < rows ? h.taps * w.taps : 0; }

  __device__ __forceinline__ TapWalk walk(const ConvDgradParams& p) const {
    const int back = (w.taps - 1) * p.steps_w.tap, width = p.geometry.kernel_w;
    return {w.taps, p.steps_w.tap, p.steps_h.tap * width - back, h.first_tap * width + w.first_tap};
  }

  // The source of the first taps for a row of the tile.
  __device__ __forceinline__ PixelRow source(const ConvGeometry& g, int row) const {
    const int i = first_row + row, line = i / w.pixels, image = line / h.pixels;
    if (i >= rows) return no_pixel();
    return {image * g.out_height * g.out_width, line % h.pixels + h.source, i % w.pixels + w.source};
  }

  // The pixel of x that a row of the tile is, -1 beyond the last.
  __device__ __forceinline__ int pixel(const ConvGeometry& g, int row) const {
    const int i = first_row + row, line = i / w.pixels, image = line / h.pixels;
    if (i >= rows) return -1;
    return (image * g.height + h.phase + line % h.pixels * g.stride_h) * g.width + w.phase + i % w.pixels * g.stride_w;
  }
};

}  // namespace conv
}  // namespace fused_resnet
