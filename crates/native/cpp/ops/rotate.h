// Rotary positions: x · cos + rotate_half(x) · sin on the leading dimensions of every head.

#pragma once

#include "ops/op.h"

namespace rotate {

// The operation, with tables as mlxgk.h describes them.
op::array turn(const op::array& x, const op::array& cos, const op::array& sin, op::Stream stream);

// The first 2 · `half` dimensions of a head, on the caller's thread. `minus` and `plus` are the sines, with a
// minus sign and without. `to` is memory of its own.
void head(const float* x, const float* cos, const float* minus, const float* plus, float* to, int half);

}  // namespace rotate
