// RMS norm, x / sqrt(mean(x²) + ε) · w over the last axis.

#pragma once

#include "ops/op.h"

namespace norm {

// The operation, for `weight` of that axis.
op::array rms(const op::array& x, const op::array& weight, float eps, op::Stream stream);

// The same of a row of `count` numbers, on the caller's thread.
void row(const float* x, const float* weight, float* to, int count, float eps);

}  // namespace norm
