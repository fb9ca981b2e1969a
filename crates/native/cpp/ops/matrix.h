// Matrices of weights as they are stored. A product asks two things of them: that a few rows of
// inputs meet them as they lie, and that their rows become columns of floats.

#pragma once

#include <memory>

#include "ops/op.h"
#include "ops/turn.h"

namespace matrix {

class Matrix : public turn::Weights {
 public:
  // Comes before everything else, when the content of the arrays is there.
  virtual void ready() = 0;

  // Puts a row of inputs into the form in which `multiply` takes it, which is `room()` floats long and begins at a
  // multiple of 64 bytes.
  virtual void arrange(const float* x, float* to) const = 0;
  virtual long room() const = 0;

  // y[i][j] = x[i] · w[from + j] for `m` rows of inputs that were arranged and `count` rows of weights,
  // on the caller's thread. `x` and its rows begin at multiples of 64 bytes.
  //
  // A row's result does not depend on the rows beside it, to the last bit.
  virtual void multiply(int m, const float* x, long x_row, long from, int count, float* y,
                        long y_row) const = 0;

  void turn(long row, int count, int from, int length, float* scratch, float* to) const override {
    for (int i = 0; i < count; ++i) widen(row + i, from, length, scratch + i * turn::kStretch);
    turn::floats(scratch, turn::kStretch, count, length, to, turn::width());
  }

  // `length` weights of a row as floats: whole groups, from the first of a group on.
  virtual void widen(long row, int from, int length, float* to) const = 0;
};

// bf16 weights of [.., out, in].
std::unique_ptr<Matrix> of_bf16(const op::array& weight);

// MLX's quantization modes, as mlxgk.h numbers them.
enum Mode { kAffine, kMxfp4, kMxfp8, kNvfp4 };

struct Packing {
  int mode, group, bits;
};

// Packed weights: words, scales and, in the affine mode, biases, each of [.., out, in / something].
std::unique_ptr<Matrix> of_packed(const op::Arrays& arrays, const Packing& packing);

}  // namespace matrix
