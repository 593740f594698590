// Warps that a multiprocessor holds, by NVIDIA's own rules: a line of standard input is architecture, warps, blocks and
// bytes of shared memory of a multiprocessor, registers, static shared bytes, threads, dynamic shared bytes.
#include <cuda_occupancy.h>

#include <cstdio>

int main() {
  int arch, warps, blocks, shared, registers, fixed, threads, dynamic;
  while (std::scanf("%d %d %d %d %d %d %d %d", &arch, &warps, &blocks, &shared, &registers, &fixed, &threads,
                    &dynamic) == 8) {
    cudaOccDeviceProp device;
    device.computeMajor = arch / 10, device.computeMinor = arch % 10;
    device.maxThreadsPerBlock = 1024, device.maxThreadsPerMultiprocessor = warps * 32;
    device.regsPerBlock = device.regsPerMultiprocessor = 65536;
    device.warpSize = 32, device.numSms = 1;
    device.sharedMemPerMultiprocessor = shared, device.sharedMemPerBlock = 48 << 10;
    device.sharedMemPerBlockOptin = shared - 1024, device.reservedSharedMemPerBlock = 1024;
    cudaOccFuncAttributes kernel;
    kernel.maxThreadsPerBlock = 1024, kernel.numRegs = registers, kernel.sharedSizeBytes = fixed;
    kernel.shmemLimitConfig = FUNC_SHMEM_LIMIT_OPTIN, kernel.maxDynamicSharedSizeBytes = dynamic;
    kernel.numBlockBarriers = 1;
    const cudaOccDeviceState state;
    cudaOccResult result;
    if (cudaOccMaxActiveBlocksPerMultiprocessor(&result, &device, &kernel, &state, threads, dynamic)) {
      std::printf("-1\n");
    } else {
      std::printf("%d\n", result.activeBlocksPerMultiprocessor * ((threads + 31) / 32));
    }
  }
}
