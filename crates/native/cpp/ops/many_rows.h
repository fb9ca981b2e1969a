// Products of many rows with a matrix of weights, which is what reading a prompt consists of.

#pragma once

#include "ops/turn.h"

namespace many_rows {

// How many floats of scratch a product of `m` rows of `k` takes.
long scratch(int m, int k);

// y = x·w', with x of m × k, w the `n` rows of `weights` from `from` on, and y of m × n, each row-major
// with its own row length. `scratch` begins at a multiple of 64 bytes.
//
// A row's result does not depend on the rows beside it, to the last bit.
void multiply(int m, int n, int k, const float* x, long x_row, const turn::Weights& weights,
              long from, float* y, long y_row, float* scratch);

}  // namespace many_rows
