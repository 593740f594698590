// What every kernel under test begins with, CUDA's own headers under it.
#include "cuda_on_cpu.h"
