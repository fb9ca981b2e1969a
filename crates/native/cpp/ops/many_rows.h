// Products of many rows with a matrix of weights, which is what reading a prompt consists of.

#pragma once

#include "ops/turn.h"

namespace many_rows {

// How many floats of scratch a product of `m` rows of `k` takes.
long scratch(int m, int k);

// The inputs of a product, of m × k, and how they lie in memory.
struct Inputs {
  const float* data;
  // From one row to the next; or from one column to the next, if they lie turned, as k × m.
  long step;
  bool turned;
};

// y = x·w', or y += x·w' with `add`, with w the `n` rows of `weights` from `from` on, and y of m × n with rows
// `y_row` apart. `scratch` begins at a multiple of 64 bytes.
//
// A row's result does not depend on the rows beside it, to the last bit.
void multiply(int m, int n, int k, const Inputs& x, const turn::Weights& weights, long from, float* y,
              long y_row, bool add, float* scratch);

}  // namespace many_rows
