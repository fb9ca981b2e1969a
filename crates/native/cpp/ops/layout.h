// Views of an operation's inputs. An array can lie in memory in any way: broadcast (steps of 0),
// transposed, cut out of a larger one, backwards. Where a kernel cannot read it as it lies, it is
// copied.

#pragma once

#include <climits>
#include <memory>

#include "mlx/mlx.h"

namespace layout {

// An input that may have to be copied. The copy's memory is taken at once; `ready` fills it when the
// content is there, and comes before `data`.
template <typename T>
class Input {
 public:
  const T* data() const { return copy_ ? copy_.get() : data_; }

  void ready() {
    if (!copy_ || size_ == 0) return;
    const int last = static_cast<int>(shape_.size()) - 1;
    std::vector<int> place(shape_.size(), 0);
    for (T* to = copy_.get(); to < copy_.get() + size_; to += shape_[last]) {
      const T* from = data_;
      for (int axis = 0; axis < last; ++axis) from += place[axis] * strides_[axis];
      for (long i = 0; i < shape_[last]; ++i) to[i] = from[i * strides_[last]];
      for (int axis = last - 1; axis >= 0 && ++place[axis] == shape_[axis]; --axis) place[axis] = 0;
    }
  }

 protected:
  explicit Input(const mlx::core::array& from)
      : data_(reinterpret_cast<const T*>(from.data<char>())),
        size_(static_cast<long>(from.size())),
        shape_(from.shape()),
        strides_(from.strides()) {
    static_assert(sizeof(T) <= 4);
  }

  // Row-major, from now on.
  void copy() { copy_.reset(new T[size_]); }

  // Whether rows of `length` at this distance can be handed to BLAS, which takes an int and refuses
  // rows that overlap.
  static bool is_distance(long row, long length) { return row >= length && row <= INT_MAX; }

  long shape(int axis) const { return shape_[axis]; }
  long stride(int axis) const { return strides_[axis]; }
  int axes() const { return static_cast<int>(shape_.size()); }

 private:
  const T* data_;
  long size_;
  mlx::core::Shape shape_;
  mlx::core::Strides strides_;
  std::unique_ptr<T[]> copy_;
};

// An array as rows along its last axis, each dense, at a fixed distance that is no less than their
// length.
template <typename T>
class Rows : public Input<T> {
 public:
  explicit Rows(const mlx::core::array& from)
      : Input<T>(from), row_(from.shape(-1)), count_(0), length_(from.shape(-1)) {
    if (from.size() == 0) return;
    count_ = static_cast<long>(from.size()) / length_;
    // The leading axes are one if each spans the next inner one that has more than one place.
    bool fits = length_ == 1 || this->stride(this->axes() - 1) == 1;
    bool first = true;
    long span = 0;
    for (int axis = this->axes() - 2; axis >= 0; --axis) {
      if (this->shape(axis) == 1) continue;
      if (first) row_ = this->stride(axis);
      else fits = fits && this->stride(axis) == span;
      first = false;
      span = this->stride(axis) * this->shape(axis);
    }
    if (fits && this->is_distance(row_, length_)) return;
    this->copy();
    row_ = length_;
  }

  // From one row to the next.
  long row() const { return row_; }
  long count() const { return count_; }
  long length() const { return length_; }
  const T* at(long row) const { return this->data() + row * row_; }

 private:
  long row_, count_, length_;
};

// An array as one sequence.
template <typename T>
class Flat : public Input<T> {
 public:
  explicit Flat(const mlx::core::array& from) : Input<T>(from) {
    long span = 1;
    for (int axis = this->axes() - 1; axis >= 0; --axis) {
      if (this->shape(axis) != 1 && this->stride(axis) != span) {
        this->copy();
        return;
      }
      span *= this->shape(axis);
    }
  }
};

// An array of four axes. The last is dense, and the distance between places of the third is no less
// than its length.
template <typename T>
class Heads : public Input<T> {
 public:
  explicit Heads(const mlx::core::array& from) : Input<T>(from) {
    const long length = this->shape(3);
    for (int axis = 0; axis < 3; ++axis) steps_[axis] = this->stride(axis);
    if (this->shape(2) == 1) steps_[2] = length;
    if ((length == 1 || this->stride(3) == 1) && this->is_distance(steps_[2], length)) return;
    this->copy();
    steps_[2] = length;
    steps_[1] = steps_[2] * this->shape(2);
    steps_[0] = steps_[1] * this->shape(1);
  }

  using Input<T>::shape;

  // From one place of an axis to the next.
  long step(int axis) const { return steps_[axis]; }

  // The same of the third axis.
  int row() const { return static_cast<int>(steps_[2]); }

  const T* at(long first, long second, long third = 0) const {
    return this->data() + first * steps_[0] + second * steps_[1] + third * steps_[2];
  }

 private:
  long steps_[3];
};

}  // namespace layout
