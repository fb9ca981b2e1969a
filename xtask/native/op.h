// Operations of our own inside MLX's graph, for its CPU backend.
//
// On a GPU MLX's own kernels do all this. Its CPU backend, as published for Linux, knows neither
// vectors nor threads outside BLAS, and widens weights by writing them out again.

#pragma once

#include <exception>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "mlx/c/array.h"
#include "mlx/mlx.h"

namespace op {

using mlx::core::array;
using Arrays = std::vector<array>;

// What an operation does to memory.
class Kernel {
 public:
  virtual ~Kernel() = default;

  // Called on MLX's thread when the inputs are there. `output` has memory, row-major.
  virtual void compute(const Arrays& inputs, array& output) const = 0;
};

// An operation of one float output. `composed` is the same in MLX's own operations, which gradients
// are taken through.
array make(const char* name, std::shared_ptr<const Kernel> kernel,
           std::function<array(const Arrays&)> composed, mlx::core::Shape shape, Arrays inputs);

// The array behind a handle of MLX's C interface.
inline const array& of(mlx_array handle) { return *static_cast<const array*>(handle.ctx); }

// Puts what `make` returns behind an empty handle, for a caller in C. Returns no text, or what went
// wrong, to be read before the thread's next call.
template <typename Make>
const char* give(mlx_array* result, Make make) {
  try {
    result->ctx = new array(make());
    return nullptr;
  } catch (const std::exception& e) {
    thread_local std::string what;
    what = e.what();
    return what.c_str();
  }
}

// An array of floats as rows along its last axis, at a fixed distance. Where the array does not lie
// like that, it is copied.
class Rows {
 public:
  explicit Rows(const array& from);

  const float* data() const { return data_; }
  long row() const { return row_; }
  int count() const { return count_; }
  int length() const { return length_; }

 private:
  const float* data_;
  long row_;
  int count_, length_;
  std::unique_ptr<float[]> copy_;
};

// An array of floats of four axes, of which only the last need be dense. Where it is not, the array
// is copied.
class Placed {
 public:
  explicit Placed(const array& from);

  int shape(int axis) const { return array_.shape(axis); }
  // From one place of the third axis to the next.
  int row() const { return static_cast<int>(strides_[2]); }
  const float* at(long first, long second, long third = 0) const {
    return data_ + first * strides_[0] + second * strides_[1] + third * strides_[2];
  }

 private:
  const array& array_;
  const float* data_;
  long strides_[3];
  std::unique_ptr<float[]> copy_;
};

}  // namespace op
