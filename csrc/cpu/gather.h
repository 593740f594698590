// What the direct convolutions share: super-groups, the strip of input that a block of outputs reads, and the copy of
// what each output sees into the rows of a matrix.
#pragma once

#include <algorithm>

#include "conv.h"
#include "parallel.h"

namespace fused_resnet {
inline namespace FUSED_RESNET_TARGET {

// Groups are taken together until their outputs fill a register; what does not connect is multiplied by zero. Four
// channels a group (ResNeXt's first stage) would leave twelve of sixteen lanes idle otherwise. Where only more than a
// panel would divide the groups evenly, as with a prime number of them, fewer are taken.
struct SuperGroups {
  int64_t count, inputs, outputs;  // inputs and outputs of one

  template <class S>
  static SuperGroups of(const Filter<S>& f) {
    const int64_t groups = f.outputs / f.outputs_per_group;
    int64_t together = 1;
    for (int64_t n = 2; n <= groups && n * f.outputs_per_group <= kPanel<S>; ++n)
      if (groups % n == 0 && together * f.outputs_per_group < kLanes<S>) together = n;
    return {groups / together, together * f.inputs_per_group, together * f.outputs_per_group};
  }
};

// Columns that one output reads from one place on.
struct Run {
  int64_t dy, dx, length;
};

// Taps beside each other read one stretch of the strip.
inline std::vector<Run> runs_of(const std::vector<Tap>& taps, int64_t inputs) {
  std::vector<Run> runs;
  for (size_t i = 0; i < taps.size(); ++i) {
    if (i > 0 && taps[i].dy == taps[i - 1].dy && taps[i].dx == taps[i - 1].dx + 1)
      runs.back().length += inputs;
    else
      runs.push_back({taps[i].dy, taps[i].dx, inputs});
  }
  return runs;
}

// Copies n columns, the first of which is `column`, to a row.
template <class S>
inline void copy_columns(const Rows<S>& row, int64_t column, const S* from, int64_t n) {
  constexpr int N = kLanes<S>;
  S* chunk = row.data + column / row.chunk * row.chunk_stride;
  for (int64_t at = column % row.chunk; n > 0; at = 0, chunk += row.chunk_stride) {
    const int64_t here = std::min(n, row.chunk - at);
    int64_t i = 0;
    for (; i + N <= here; i += N) store(chunk + at + i, load(from + i));
    if (i < here) store(chunk + at + i, load(from + i, static_cast<int>(here - i)), static_cast<int>(here - i));
    from += here;
    n -= here;
  }
}

// Copies n numbers, and what stands behind them up to a whole register.
template <class S>
inline S* copy_over(S* to, const S* from, int64_t n) {
  for (int64_t i = 0; i < n; i += kLanes<S>) store(to + i, load(from + i));
  return to + n;
}

// Consecutive rows of outputs within one image.
struct Segment {
  int64_t image, begin, end;
};

// The rows [begin, end) of all images' outputs, image by image.
inline std::vector<Segment> segments_of(int64_t begin, int64_t end, int64_t height) {
  std::vector<Segment> segments;
  while (begin < end) {
    const int64_t image = begin / height, stop = std::min(end, (image + 1) * height);
    segments.push_back({image, begin - image * height, stop - image * height});
    begin = stop;
  }
  return segments;
}

// Indices i of a phase whose outputs first + i step lie in [begin, end).
inline Range indices_in(int64_t begin, int64_t end, int64_t first, int64_t step) {
  const auto index = [&](int64_t h) { return h <= first ? 0 : (h - first + step - 1) / step; };
  return {index(begin), index(end)};
}

// The input rows and columns, normed, activated and padded with zeros, that a segment reads: for each super-group, at a
// distance that the caller chooses, [rows, width, channels].
template <class S>
class Strip {
 public:
  Strip(const GatherPlan& plan, const SuperGroups& groups) : plan_(plan), groups_(groups) {
    for (const Phase& phase : plan.phases) {
      // One at least: an image so narrow that a phase has none still has a strip.
      const int64_t columns = std::max<int64_t>(1, indices_in(0, plan.out_width, phase.first_w, plan.out_step_w).end);
      for (const Tap& tap : phase.taps) {
        top_ = std::min(top_, tap.dy);
        bottom_ = std::max(bottom_, tap.dy + 1);
        left_ = std::min(left_, tap.dx);
        right_ = std::max(right_, (columns - 1) * plan.in_step_w + tap.dx + 1);
      }
    }
  }

  // Elements of one super-group, for segments of this many rows altogether, in so many images. Products that read a
  // strip where it lies read a little further, which does not count.
  int64_t size(int64_t rows, int64_t images) const {
    const int64_t pixels = (rows * plan_.in_step_h + images * (plan_.in_step_h + bottom_ - top_)) * width();
    return (pixels + kTileRows * plan_.in_step_w) * groups_.inputs + kPanel<S>;
  }
  // Of the rows that a segment reads.
  int64_t size(const Segment& segment) const { return (last_row(segment) - first_row(segment)) * row_elements(); }

  // Writes a segment's strip.
  void fill(const Segment& segment, const Source<S>& source, S* data, int64_t group_stride) const {
    const int64_t left = std::clamp<int64_t>(-left_, 0, width());  // columns of padding on this side
    const int64_t first_column = std::max<int64_t>(left_, 0);
    const int64_t inside = std::clamp<int64_t>(std::min(right_, plan_.in_width) - first_column, 0, width() - left);
    S* to = data;
    for (int64_t y = first_row(segment); y < last_row(segment); ++y, to += row_elements()) {
      const bool is_outside = y < 0 || y >= plan_.in_height || inside == 0;
      zero(to, is_outside ? width() : left, group_stride);
      if (is_outside) continue;
      source.read((segment.image * plan_.in_height + y) * plan_.in_width + first_column, 1, inside,
                  {to + left * groups_.inputs, groups_.inputs, groups_.inputs, group_stride});
      zero(to + (left + inside) * groups_.inputs, width() - left - inside, group_stride);
    }
  }

  // The memory that filling it will read.
  void announce(const Segment& segment, const Source<S>& source, Ahead& ahead) const {
    const int64_t first = std::max<int64_t>(first_row(segment), 0);
    const int64_t last = std::min(last_row(segment), plan_.in_height);
    if (first < last)
      source.announce((segment.image * plan_.in_height + first) * plan_.in_width, (last - first) * plan_.in_width,
                      ahead);
  }

  // What output (i, j) of a phase reads at (dy, dx) = (0, 0), and how far from there it reads at others.
  const S* at(const Segment& segment, const S* data, int64_t i, int64_t j) const {
    return data + offset(i * plan_.in_step_h - first_row(segment), j * plan_.in_step_w - left_);
  }
  int64_t offset(int64_t dy, int64_t dx) const { return (dy * width() + dx) * groups_.inputs; }
  int64_t row_elements() const { return width() * groups_.inputs; }

 private:
  int64_t width() const { return right_ - left_; }
  int64_t first_row(const Segment& segment) const { return segment.begin / plan_.out_step_h * plan_.in_step_h + top_; }
  int64_t last_row(const Segment& segment) const {
    return (segment.end - 1) / plan_.out_step_h * plan_.in_step_h + bottom_;
  }

  // Pixels of every super-group.
  void zero(S* data, int64_t pixels, int64_t group_stride) const {
    if (pixels == 0) return;
    for (int64_t group = 0; group < groups_.count; ++group)
      std::fill_n(data + group * group_stride, pixels * groups_.inputs, S(0));
  }

  const GatherPlan& plan_;
  SuperGroups groups_;
  int64_t top_ = INT64_MAX, bottom_ = INT64_MIN, left_ = INT64_MAX, right_ = INT64_MIN;
};

// Whether every output reads one pixel, all of it and inside the image: no strip is needed then.
inline bool is_pointwise(const GatherPlan& plan, const SuperGroups& groups) {
  return groups.count == 1 && std::all_of(plan.phases.begin(), plan.phases.end(), [&](const Phase& phase) {
           const int64_t rows = indices_in(0, plan.out_height, phase.first_h, plan.out_step_h).end;
           const int64_t columns = indices_in(0, plan.out_width, phase.first_w, plan.out_step_w).end;
           return phase.taps.size() <= 1 && std::all_of(phase.taps.begin(), phase.taps.end(), [&](const Tap& tap) {
                    return tap.dy >= 0 && (rows - 1) * plan.in_step_h + tap.dy < plan.in_height && tap.dx >= 0 &&
                           (columns - 1) * plan.in_step_w + tap.dx < plan.in_width;
                  });
         });
}

}  // namespace FUSED_RESNET_TARGET
}  // namespace fused_resnet
