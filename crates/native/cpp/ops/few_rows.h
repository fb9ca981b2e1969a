// Products of a few rows with a matrix of weights, which is what a decoding step consists of.

#pragma once

#include "ops/vectors.h"

namespace few_rows {

// The most rows for which this is the faster way.
constexpr int kMost = 16;

// y = x·w', with x of m × k, w of n × k and y of m × n, each row-major with its own row length.
//
// A row's result does not depend on the rows beside it, to the last bit.
void multiply(int m, int n, int k, const float* x, long x_row, const float* w, long w_row, float* y,
              long y_row);

// The same on the caller's thread alone; quickest where `x` and its rows begin at multiples of 64
// bytes.
void multiply_alone(int m, int n, int k, const float* x, long x_row, const float* w, long w_row,
                    float* y, long y_row);
void multiply_alone(int m, int n, int k, const float* x, long x_row, const vectors::Bf16* w,
                    long w_row, float* y, long y_row);

}  // namespace few_rows
