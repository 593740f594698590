// The device that launches go to, and what went wrong with one.
#include "cuda_compat.h"
#include "launchers.h"

namespace fused_resnet {

const char* launch_error_text(LaunchError error) {
  return error_text(static_cast<cudaError_t>(error));
}

LaunchError exchange_device(int device, int* previous) {
  if (const cudaError_t error = get_device(previous)) return error;
  return device == *previous ? cudaSuccess : set_device(device);
}

}  // namespace fused_resnet
