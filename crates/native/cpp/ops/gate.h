// The gate of a feed-forward layer, silu(gate) · up.

#pragma once

#include "ops/op.h"

namespace gate {

// The operation, for two arrays of one shape.
op::array silu(const op::array& gate, const op::array& up, op::Stream stream);

// The same of `count` numbers, on the caller's thread. `to` may be either of the others.
void row(const float* gate, const float* up, float* to, int count);

}  // namespace gate
