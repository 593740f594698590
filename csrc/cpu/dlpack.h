// A tensor in memory of tensor_memory.h as a DLPack capsule (https://dmlc.github.io/dlpack), for torch.from_dlpack.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <vector>

#include "tensor_memory.h"

namespace fused_resnet {

namespace dlpack {

// The structures of DLPack before version 1, by its names.
struct DLDevice {
  int32_t device_type = 1, device_id = 0;  // CPU
};
struct DLDataType {
  uint8_t code, bits;
  uint16_t lanes = 1;
};
struct DLTensor {
  void* data;
  DLDevice device;
  int32_t ndim;
  DLDataType dtype;
  int64_t *shape, *strides;
  uint64_t byte_offset;
};
struct DLManagedTensor {
  DLTensor dl_tensor;
  void* manager_ctx;
  void (*deleter)(DLManagedTensor*);
};

struct Owner {
  DLManagedTensor managed;
  std::vector<int64_t> shape, strides;
};

inline void destroy(DLManagedTensor* managed) {
  free_tensor(managed->dl_tensor.data);
  delete static_cast<Owner*>(managed->manager_ctx);
}

// What nobody has consumed.
inline void destroy_capsule(PyObject* capsule) {
  if (PyCapsule_IsValid(capsule, "dltensor"))
    destroy(static_cast<DLManagedTensor*>(PyCapsule_GetPointer(capsule, "dltensor")));
}

}  // namespace dlpack

// Uninitialised; `code` and `bits` are DLPack's of the type, strides in elements. None where there is no memory for it.
inline pybind11::object empty_tensor(int code, int bits, std::vector<int64_t> shape, std::vector<int64_t> strides) {
  size_t bytes = static_cast<size_t>(bits) / 8;
  for (const int64_t size : shape) bytes *= static_cast<size_t>(size);
  void* data = allocate_tensor(bytes);
  if (!data) return pybind11::none();
  auto* owner = new dlpack::Owner{{}, std::move(shape), std::move(strides)};
  const dlpack::DLDataType type{static_cast<uint8_t>(code), static_cast<uint8_t>(bits)};
  owner->managed = {
      {data, {}, static_cast<int32_t>(owner->shape.size()), type, owner->shape.data(), owner->strides.data(), 0},
      owner,
      dlpack::destroy};
  return pybind11::reinterpret_steal<pybind11::object>(
      PyCapsule_New(&owner->managed, "dltensor", dlpack::destroy_capsule));
}

}  // namespace fused_resnet
