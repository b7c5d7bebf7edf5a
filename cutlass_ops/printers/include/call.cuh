// What a library is asked: sizes, addresses, and where to run. All C; cutlass_ops/cpp.py holds the same fields.
#pragma once

#include <cstdint>

#include <cuda_runtime.h>

#include "cutlass/cutlass.h"
#include "cutlass/array.h"
#include "elementwise.cuh"

struct Call {
  int64_t m, n, k, l;
  int64_t lda, ldb;            // elements from one row (or column) of a and b, as stored, to the next
  void const *a, *b;
  void *const *loads, *const *stores;
  int64_t processors;          // of the device
  cudaStream_t stream;

  template <class T> T *load(int n) const { return static_cast<T *>(loads[n]); }
  template <class T> T *store(int n) const { return static_cast<T *>(stores[n]); }
};

// A function of floats as one of fragments, which is what a visitor's compute node calls.
template <class Function, class Fragment> struct Fragmentwise;
template <class Function, int N> struct Fragmentwise<Function, cutlass::Array<float, N>> {
  template <class... Fragments>
  CUTLASS_DEVICE cutlass::Array<float, N> operator()(Fragments const &...inputs) const {
    cutlass::Array<float, N> result;
    CUTLASS_PRAGMA_UNROLL
    for (int i = 0; i < N; ++i) {
      result[i] = Function{}(inputs[i]...);
    }
    return result;
  }
};

template <class Function> struct Lifted {
  template <class Fragment> using On = Fragmentwise<Function, Fragment>;
};

struct Identity {
  CUTLASS_DEVICE float operator()(float x) const { return x; }
};

// A device-wide GEMM with these arguments on the call's stream; none of ours needs a workspace.
template <class Device> int start(typename Device::Arguments const &arguments, cudaStream_t stream) {
  Device device;
  if (Device::get_workspace_size(arguments)) return int(cutlass::Status::kErrorWorkspaceNull);
  auto status = device.can_implement(arguments);
  if (status == cutlass::Status::kSuccess) status = device.initialize(arguments, nullptr, stream);
  if (status == cutlass::Status::kSuccess) status = device.run(stream);
  return int(status);
}
