// The device functions behind cutlass_ops/elementwise.py, by the same names, in float32.
#pragma once

#include "cutlass/fast_math.h"

namespace elementwise {

CUTLASS_DEVICE float add(float x, float y) { return x + y; }
CUTLASS_DEVICE float sub(float x, float y) { return x - y; }
CUTLASS_DEVICE float mul(float x, float y) { return x * y; }

// not fmaxf, which turns a NaN into 0
CUTLASS_DEVICE float relu(float x) { return x < 0.f ? 0.f : x; }
CUTLASS_DEVICE float relu_backward(float grad, float x) { return x <= 0.f ? 0.f : grad; }

CUTLASS_DEVICE float tanh(float x) { return cutlass::fast_tanh(x); }
CUTLASS_DEVICE float sigmoid(float x) { return 1.f / (1.f + __expf(-x)); }

CUTLASS_DEVICE float silu(float x) { return x * sigmoid(x); }
CUTLASS_DEVICE float silu_backward(float grad, float x) {
  float const s = sigmoid(x);
  return grad * s * (1.f + x * (1.f - s));
}

// x times the standard normal distribution function: Hendrycks and Gimpel, https://arxiv.org/abs/1606.08415, section 2.
CUTLASS_DEVICE float normal_cdf(float x) { return 0.5f * (1.f + erff(0.7071067812f * x)); }
CUTLASS_DEVICE float gelu(float x) { return x * normal_cdf(x); }
CUTLASS_DEVICE float gelu_backward(float grad, float x) {
  return grad * (normal_cdf(x) + 0.3989422804f * x * __expf(-0.5f * x * x));
}

// The same with the tanh of that section: sqrt(2 / pi) * (x + 0.044715 x^3).
CUTLASS_DEVICE float gelu_tanh(float x) {
  return 0.5f * x * (1.f + tanh(0.7978845608f * x * (1.f + 0.044715f * x * x)));
}
CUTLASS_DEVICE float gelu_tanh_backward(float grad, float x) {
  float const t = tanh(0.7978845608f * x * (1.f + 0.044715f * x * x));
  float const slope = 0.7978845608f * (1.f + 0.134145f * x * x);
  return grad * (0.5f * (1.f + t) + 0.5f * x * (1.f - t * t) * slope);
}

}  // namespace elementwise
