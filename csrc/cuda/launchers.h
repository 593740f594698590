// What the CUDA kernels take, and their launchers: plain data, no CUDA header.
//
// A launcher picks grid, types and vector width; it allocates nothing and does not synchronise, so that CUDA graphs
// capture it. Pointers are to dense tensors of the `dtype` on the device; vectors are float (double for float64).
// `workspace` has the bytes that the function of that name asks for, for the same sizes, and any content.
#pragma once

#include "../shapes.h"

namespace fused_resnet {

// A cudaError_t; 0 is success.
using LaunchError = int;

const char* launch_error_text(LaunchError error);

// Makes `device` the calling thread's current one, and gives the previous in `previous`.
LaunchError exchange_device(int device, int* previous);

// A stream of the current device, as cudaStream_t.
using Stream = void*;

// mean and biased variance of y over outer and inner
struct ChannelStatisticsArgs {
  DType dtype;
  ChannelView view;
  const void* y;  // [outer, C, inner]
  void* mean;     // [C]
  void* var;      // [C]
  void* workspace;
};

int64_t channel_statistics_workspace(DType dtype, const ChannelView& view);
LaunchError launch_channel_statistics(const ChannelStatisticsArgs&, Stream);

}  // namespace fused_resnet
