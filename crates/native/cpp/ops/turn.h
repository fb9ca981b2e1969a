// Rows of weights become columns, so that a register holds neighbouring columns of a product.

#pragma once

#include <type_traits>
#include <utility>

#include "ops/vectors.h"

namespace turn {

using namespace vectors;

// Numbers of a row that are taken at a time, a multiple of every group's size.
constexpr int kStretch = 256;

// How many rows are turned together: two vectors of the processor's.
inline int width() { return is_wide() ? 2 * kLanes : kLanes; }

template <typename Vector>
constexpr int kLanesOf = sizeof(Vector) / sizeof(float);

// The vectors' first halves, or their second ones, number by number in turn.
template <typename Vector, int First, std::size_t... I>
INLINE Vector zip(const Vector& a, const Vector& b, std::index_sequence<I...>) {
  using Eight = std::int32_t __attribute__((vector_size(sizeof(Half))));
  using Places = std::conditional_t<std::is_same_v<Vector, Lanes>, Words, Eight>;
  return __builtin_shuffle(
      a, b, Places{static_cast<std::int32_t>(First + I / 2 + I % 2 * sizeof...(I))...});
}

// As many rows as a vector has lanes, and as many numbers of each, of four bytes. Each round halves the
// distance between numbers that belong side by side.
template <typename Vector>
INLINE void square(const float* from, long from_row, float* to, long to_row) {
  constexpr int kSide = kLanesOf<Vector>;
  constexpr auto kEach = std::make_index_sequence<kSide>();
  Vector rows[kSide], next[kSide];
  for (int i = 0; i < kSide; ++i) rows[i] = load_as<Vector>(from + i * from_row);
  for (int round = 1; round < kSide; round *= 2) {
    for (int i = 0; i < kSide / 2; ++i) {
      next[2 * i] = zip<Vector, 0>(rows[i], rows[i + kSide / 2], kEach);
      next[2 * i + 1] = zip<Vector, kSide / 2>(rows[i], rows[i + kSide / 2], kEach);
    }
    for (int i = 0; i < kSide; ++i) rows[i] = next[i];
  }
  for (int i = 0; i < kSide; ++i) std::memcpy(to + i * to_row, &rows[i], sizeof(Vector));
}

// `count` rows of `length` numbers, `width()` and `kStretch` at most, become columns:
// to[i * to_row + row] = from[row * from_row + i], and zeros for rows that are not there.
void floats(const float* from, long from_row, int count, int length, float* to, long to_row);

// The weights of a product of many rows, however they are stored.
class Weights {
 public:
  virtual ~Weights() = default;

  // `length` weights of `count` rows, from one on that is a multiple of `kStretch`, become columns of
  // floats as `floats` makes them, `width()` apart. What is written for rows that are not there does not matter.
  // `scratch` has room for as much as `to`.
  virtual void turn(long row, int count, int from, int length, float* scratch, float* to) const = 0;
};

}  // namespace turn
