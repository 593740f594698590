// Images as one line of positions, for products in tile registers: neighbouring positions are the rows of a register,
// and what a tap sees is the same line, shifted.
//
// A row of outputs takes `pitch` positions, and an image `rows_per_image` rows: enough beyond the outputs for the
// padding, which a row shares with the next one, and an image with the next. So position p reads p + shift of the tap,
// for all p at once, and the positions past the end of a row or image compute what nobody stores. Where a convolution
// has a stride, the input is several lines: planes of pixels a stride apart.
#pragma once

#include <algorithm>
#include <vector>

#include "conv.h"
#include "gather.h"

namespace fused_resnet {
inline namespace FUSED_RESNET_TARGET {

inline int64_t floor_divide(int64_t a, int64_t b) {
  return a / b - (a % b < 0);
}

class Line {
 public:
  // Input pixels (y, x) with y = row and x = column modulo the step.
  struct Plane {
    int64_t row, column;
  };
  explicit Line(const GatherPlan& plan) : plan_(plan) {
    int64_t right = 0;
    for (const Phase& phase : plan.phases)
      for (const Tap& tap : phase.taps) {
        if (plane(tap) == planes()) planes_.push_back(plane_of(tap));
        const int64_t rows = floor_divide(tap.dy, plan.in_step_h), columns = floor_divide(tap.dx, plan.in_step_w);
        top_ = std::min(top_, rows);
        bottom_ = std::max(bottom_, rows);
        left_ = std::min(left_, columns);
        right = std::max(right, columns);
      }
    // Between one row and the next: the outputs' or the inputs', whichever takes more.
    const auto distance = [](int64_t outputs, int64_t inputs, int64_t before, int64_t after) {
      return std::max(outputs + after, std::min(inputs, outputs + after) - before);
    };
    pitch_ = distance(count(plan.out_width, 0, plan.out_step_w), count(plan.in_width, 0, plan.in_step_w), left_, right);
    rows_per_image_ =
        distance(count(plan.out_height, 0, plan.out_step_h), count(plan.in_height, 0, plan.in_step_h), top_, bottom_);
  }

  int64_t pitch() const { return pitch_; }
  // Of all images.
  int64_t rows() const { return plan_.batch * rows_per_image_; }
  int64_t planes() const { return static_cast<int64_t>(planes_.size()); }
  // Positions of a plane's strip, which so many rows of outputs read.
  int64_t strip_positions(int64_t rows) const { return (rows + bottom_ - top_) * pitch_ - left_; }

  // Which plane a tap reads; planes() where there is none yet.
  int64_t plane(const Tap& tap) const {
    const Plane wanted = plane_of(tap);
    const auto is_wanted = [&](const Plane& p) { return p.row == wanted.row && p.column == wanted.column; };
    return std::find_if(planes_.begin(), planes_.end(), is_wanted) - planes_.begin();
  }
  // Outputs at positions [0, n) of a block of rows read positions [shift, shift + n) of the plane's strip.
  int64_t shift(const Tap& tap) const {
    return (floor_divide(tap.dy, plan_.in_step_h) - top_) * pitch_ + floor_divide(tap.dx, plan_.in_step_w) - left_;
  }

  // Calls f(plane, position, pixel, count) for every stretch of the strips that the rows [begin, end) of outputs read:
  // `count` positions, which hold pixels from `pixel` on, a step apart, or zeros where `pixel` is -1.
  template <class F>
  void each_stretch(int64_t begin, int64_t end, const F& f) const {
    for (int64_t p = 0; p < planes(); ++p) {
      const int64_t rows = std::min(count(plan_.in_height, planes_[p].row, plan_.in_step_h), rows_per_image_ + top_);
      const int64_t columns = std::min(count(plan_.in_width, planes_[p].column, plan_.in_step_w), pitch_ + left_);
      int64_t position = -left_;
      if (position > 0) f(p, int64_t{0}, int64_t{-1}, position);
      for (int64_t row = begin + top_; row < end + bottom_; ++row, position += pitch_) {
        const int64_t image = floor_divide(row, rows_per_image_), i = row - image * rows_per_image_;
        const bool is_outside = image < 0 || image >= plan_.batch || i >= rows || columns <= 0;
        const int64_t y = image * plan_.in_height + i * plan_.in_step_h + planes_[p].row;
        if (!is_outside) f(p, position, y * plan_.in_width + planes_[p].column, columns);
        const int64_t filled = is_outside ? 0 : columns;
        if (filled < pitch_) f(p, position + filled, int64_t{-1}, pitch_ - filled);
      }
    }
  }

  // Calls f(position, pixel, count) for the outputs of a phase in the rows [begin, end).
  template <class F>
  void each_output(const Phase& phase, int64_t begin, int64_t end, const F& f) const {
    const int64_t rows = count(plan_.out_height, phase.first_h, plan_.out_step_h);
    const int64_t columns = count(plan_.out_width, phase.first_w, plan_.out_step_w);
    for (int64_t row = begin; row < end; ++row) {
      const int64_t image = row / rows_per_image_, i = row % rows_per_image_;
      if (i >= rows || columns == 0) continue;
      const int64_t y = image * plan_.out_height + phase.first_h + i * plan_.out_step_h;
      f((row - begin) * pitch_, y * plan_.out_width + phase.first_w, columns);
    }
  }

 private:
  // Numbers first, first + step, ... below size.
  static int64_t count(int64_t size, int64_t first, int64_t step) {
    return first < size ? (size - first + step - 1) / step : 0;
  }

  Plane plane_of(const Tap& tap) const {
    return {tap.dy - floor_divide(tap.dy, plan_.in_step_h) * plan_.in_step_h,
            tap.dx - floor_divide(tap.dx, plan_.in_step_w) * plan_.in_step_w};
  }

  const GatherPlan& plan_;
  std::vector<Plane> planes_;
  int64_t pitch_ = 0, rows_per_image_ = 0, top_ = 0, bottom_ = 0, left_ = 0;
};

}  // namespace FUSED_RESNET_TARGET
}  // namespace fused_resnet
