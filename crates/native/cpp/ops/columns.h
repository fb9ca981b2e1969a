// Keys or values of all columns as a cache keeps them: floats, or packed. Attention meets them as
// floats, a stretch at a time.

#pragma once

#include <memory>

#include "ops/op.h"

namespace columns {

// Floats of columns, one row each.
struct Floats {
  const float* data;
  int row;  // from one to the next
};

// An array of [batch, heads, columns, dim].
class Columns {
 public:
  virtual ~Columns() = default;

  // Comes before everything else, when the content of the arrays is there.
  virtual void ready() = 0;

  // How many columns are best asked for at a time where they are used once.
  virtual int stretch() const = 0;

  // How many floats of scratch `count` columns take.
  virtual long scratch(int count) const = 0;

  // `count` columns of one head from `from` on, on the caller's thread. They are in `scratch`, or
  // where they lie.
  virtual Floats floats(int batch, int head, int from, int count, float* scratch) const = 0;

  // The same on all threads.
  virtual Floats shared_floats(int batch, int head, int from, int count, float* scratch) const = 0;
};

// Of floats.
std::unique_ptr<Columns> of_floats(const op::array& array);

// In MLX's affine mode: words, scales and biases, the last two in fp32, fp16 or bf16.
std::unique_ptr<Columns> of_packed(const op::array* arrays, int group, int bits);

}  // namespace columns
