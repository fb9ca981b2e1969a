// A product is cut into blocks that stay near by (Goto and van de Geijn, "Anatomy of high-performance
// matrix multiplication", 2008). A stretch of some columns of weights becomes floats and is turned
// around, so that a register holds neighbouring columns. It then meets all rows, as many at a time as
// the registers hold sums for.
//
// OpenBLAS does the same for weights that are floats already. But packed and bf16 weights would have to be
// written out as floats first, and its threads go on looking for work after a product, on the cores that
// ours compute on.

#include "ops/many_rows.h"

#include <algorithm>

#include "ops/workers.h"

using namespace vectors;
using turn::kLanesOf;
using turn::kStretch;

namespace {

// From one row of a stretch of inputs to the next: not a power of two, by which rows would fall on the
// same places of a cache.
constexpr int kInputs = kStretch + kLanes;

// Rows for which a block of weights is made once, which bounds what the inputs take.
constexpr int kBand = 1024;

// A stretch of `columns` columns of weights meets the same stretch of all rows.
struct Block {
  int rows, columns, length;
  const float* x;  // kInputs apart
  const float* w;  // turned
  float* y;
  long y_row;
  bool add;  // to what is in y
};

// M rows of inputs meet two vectors of columns.
template <typename Vector, int M>
INLINE void tile(int length, const float* x, const float* w, float* y, long y_row, bool add) {
  constexpr int kSide = kLanesOf<Vector>;
  Vector sums[M][2] = {};
  for (int i = 0; i < length; ++i) {
    const Vector first = load_as<Vector>(w + i * 2 * kSide);
    const Vector second = load_as<Vector>(w + i * 2 * kSide + kSide);
#pragma GCC unroll 16
    for (int m = 0; m < M; ++m) {
      const float input = x[m * kInputs + i];
      sums[m][0] += input * first;
      sums[m][1] += input * second;
    }
  }
#pragma GCC unroll 16
  for (int m = 0; m < M; ++m)
    for (int n = 0; n < 2; ++n) {
      float* to = y + m * y_row + n * kSide;
      const Vector total = add ? load_as<Vector>(to) + sums[m][n] : sums[m][n];
      std::memcpy(to, &total, sizeof total);
    }
}

template <typename Vector, int Most>
INLINE void tile_of(int m, int length, const float* x, const float* w, float* y, long y_row,
                    bool add) {
  if (m == Most) return tile<Vector, Most>(length, x, w, y, y_row, add);
  if constexpr (Most > 1) tile_of<Vector, Most - 1>(m, length, x, w, y, y_row, add);
}

// `Most` rows at a time at most, and no tile much smaller than the others.
template <typename Vector, int Most>
INLINE void multiply_block(const Block& it) {
  constexpr int kWidth = 2 * kLanesOf<Vector>;
  const int tiles = (it.rows + Most - 1) / Most;
  for (int at = 0, row = 0; at < tiles; ++at) {
    const int m = it.rows / tiles + (at < it.rows % tiles);
    const float* x = it.x + static_cast<long>(row) * kInputs;
    float* y = it.y + row * it.y_row;
    if (it.columns == kWidth) {
      tile_of<Vector, Most>(m, it.length, x, it.w, y, it.y_row, it.add);
    } else {
      float edge[Most * kWidth] = {};
      for (int i = 0; it.add && i < m; ++i)
        std::copy_n(y + i * it.y_row, it.columns, edge + i * kWidth);
      tile_of<Vector, Most>(m, it.length, x, it.w, edge, kWidth, it.add);
      for (int i = 0; i < m; ++i) std::copy_n(edge + i * kWidth, it.columns, y + i * it.y_row);
    }
    row += m;
  }
}

// 28 sums in 32 registers, and 12 in 16.
FOR_WIDE
void wide_block(const Block& it) { multiply_block<Lanes, 14>(it); }

FOR_EACH_PROCESSOR
void narrow_block(const Block& it) { multiply_block<Half, 6>(it); }

// Scratch of one worker: weights as floats, and turned.
long own() { return 2l * kStretch * turn::width(); }

// Copies `rows` rows from `row` on and `length` columns from `first` on, as far as a stretch, to rows that are
// `kInputs` apart.
void copy(const many_rows::Inputs& x, int row, int rows, int first, int length, float* to) {
  if (!x.turned) {
    for (int i = 0; i < rows; ++i)
      std::copy_n(x.data + (row + i) * x.step + first, length, to + static_cast<long>(i) * kInputs);
    return;
  }
  const int width = turn::width();
  for (int i = 0; i < length; i += width)
    turn::floats(x.data + (first + i) * x.step + row, x.step, std::min(width, length - i), rows, to + i,
                 kInputs);
}

// Rows from `row` on.
void multiply_band(int row, int m, int n, int k, const many_rows::Inputs& x, const turn::Weights& weights,
                   long from, float* y, long y_row, bool add, float* scratch) {
  const auto do_block = is_wide() ? wide_block : narrow_block;
  // Stretch by stretch, each of all rows.
  float* inputs = scratch + workers::count() * own();
  const auto stretch = [&](int first) {
    return inputs + static_cast<long>(first / kStretch) * m * kInputs;
  };
  constexpr int kRows = 16;
  workers::share(workers::chunks(m, kRows), [&](int chunk, int) {
    const int at = chunk * kRows, rows = std::min(kRows, m - at);
    for (int first = 0; first < k; first += kStretch)
      copy(x, row + at, rows, first, std::min(kStretch, k - first),
           stretch(first) + static_cast<long>(at) * kInputs);
  });
  const int width = turn::width();
  workers::share(workers::chunks(n, width), [&](int chunk, int worker) {
    float* floats = scratch + worker * own();
    float* turned = floats + kStretch * width;
    const int column = chunk * width, columns = std::min(width, n - column);
    for (int first = 0; first < k; first += kStretch) {
      const int length = std::min(kStretch, k - first);
      weights.turn(from + column, columns, first, length, floats, turned);
      do_block({m, columns, length, stretch(first), turned, y + column, y_row, add || first > 0});
    }
  });
}

}  // namespace

namespace many_rows {

long scratch(int m, int k) {
  return static_cast<long>(workers::chunks(k, kStretch)) * std::min(m, kBand) * kInputs +
         workers::count() * own();
}

void multiply(int m, int n, int k, const Inputs& x, const turn::Weights& weights, long from, float* y,
              long y_row, bool add, float* scratch) {
  for (int row = 0; row < m; row += kBand)
    multiply_band(row, std::min(kBand, m - row), n, k, x, weights, from, y + row * y_row, y_row, add,
                  scratch);
}

}  // namespace many_rows
