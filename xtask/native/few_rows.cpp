// A general product copies the weights into blocks first, which pays off when every block meets many
// rows. Here the weights are read once, in the order they lie in, and meet all rows in registers.
//
// Vectors are GCC's own (`vector_size`), so one text serves every processor; on x86-64 it is compiled
// for AVX-512, AVX2 and the baseline, and the loader picks.

#include "few_rows.h"

#include <algorithm>
#include <cstring>
#include <memory>

#include "workers.h"

#define INLINE inline __attribute__((always_inline))

#if defined(__x86_64__)
#define FOR_EACH_PROCESSOR \
  __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define FOR_EACH_PROCESSOR
#endif

namespace {

constexpr int kLanes = 16;
constexpr int kAtOnce = 8;
using Lanes = float __attribute__((vector_size(4 * kLanes)));
using Half = float __attribute__((vector_size(2 * kLanes)));
using Quarter = float __attribute__((vector_size(kLanes)));

template <typename Vector>
INLINE Vector load(const void* from) {
  Vector vector;
  std::memcpy(&vector, from, sizeof vector);
  return vector;
}

INLINE float sum(const Lanes& lanes) {
  const auto* at = reinterpret_cast<const float*>(&lanes);
  const Half half = load<Half>(at) + load<Half>(at + 8);
  const auto* at_half = reinterpret_cast<const float*>(&half);
  const Quarter quarter = load<Quarter>(at_half) + load<Quarter>(at_half + 4);
  return (quarter[0] + quarter[2]) + (quarter[1] + quarter[3]);
}

// N columns of M rows. Every sum has one accumulator, and its terms come in one order, whatever M
// and N are.
template <int M, int N>
INLINE void block(int k, const float* x, long x_row, const float* w, long w_row, float* y,
                  long y_row) {
  Lanes sums[M][N] = {};
  int i = 0;
  for (; i + kLanes <= k; i += kLanes) {
    Lanes weights[N];
    for (int n = 0; n < N; ++n) {
      weights[n] = load<Lanes>(w + n * w_row + i);
      // The block after this one: its rows are too short for the processor to see them coming.
      __builtin_prefetch(w + (n + N) * w_row + i);
    }
    for (int m = 0; m < M; ++m) {
      const Lanes inputs = load<Lanes>(x + m * x_row + i);
      for (int n = 0; n < N; ++n) sums[m][n] += inputs * weights[n];
    }
  }
  for (int m = 0; m < M; ++m) {
    for (int n = 0; n < N; ++n) {
      float total = sum(sums[m][n]);
      for (int j = i; j < k; ++j) total += x[m * x_row + j] * w[n * w_row + j];
      y[m * y_row + n] = total;
    }
  }
}

template <int M, int N>
INLINE void columns(int n, int k, const float* x, long x_row, const float* w, long w_row, float* y,
                    long y_row) {
  int done = 0;
  for (; done + N <= n; done += N)
    block<M, N>(k, x, x_row, w + done * w_row, w_row, y + done, y_row);
  for (; done < n; ++done) block<M, 1>(k, x, x_row, w + done * w_row, w_row, y + done, y_row);
}

// As many columns at once as the registers hold sums for.
FOR_EACH_PROCESSOR
void rows(int m, int n, int k, const float* x, long x_row, const float* w, long w_row, float* y,
          long y_row) {
  switch (m) {
    case 1: return columns<1, 8>(n, k, x, x_row, w, w_row, y, y_row);
    case 2: return columns<2, 8>(n, k, x, x_row, w, w_row, y, y_row);
    case 3: return columns<3, 4>(n, k, x, x_row, w, w_row, y, y_row);
    case 4: return columns<4, 4>(n, k, x, x_row, w, w_row, y, y_row);
    case 5: return columns<5, 4>(n, k, x, x_row, w, w_row, y, y_row);
    case 6: return columns<6, 4>(n, k, x, x_row, w, w_row, y, y_row);
    case 7: return columns<7, 3>(n, k, x, x_row, w, w_row, y, y_row);
    case 8: return columns<8, 3>(n, k, x, x_row, w, w_row, y, y_row);
  }
}

// The inputs, each row at the beginning of a cache line: every load of a vector that straddles two
// lines costs double, and the inputs are read once for every column.
class Aligned {
 public:
  Aligned(int m, int k, const float* x, long x_row) : row_((k + kLanes - 1) / kLanes * kLanes) {
    const std::size_t bytes = sizeof(float) * m * row_;
    if (bytes > sizeof here_) more_.reset(static_cast<float*>(std::aligned_alloc(64, bytes)));
    for (int i = 0; i < m; ++i) std::copy_n(x + i * x_row, k, data() + i * row_);
  }

  float* data() { return more_ ? more_.get() : here_; }
  long row() const { return row_; }

 private:
  struct Free {
    void operator()(float* it) const { std::free(it); }
  };
  long row_;
  alignas(64) float here_[8 * 1024];
  std::unique_ptr<float, Free> more_;
};

struct Product {
  int m, n, k, chunk;
  const float* x;
  long x_row;
  const float* w;
  long w_row;
  float* y;
  long y_row;
};

void do_chunk(const void* context, int chunk) {
  const Product& it = *static_cast<const Product*>(context);
  const long from = static_cast<long>(chunk) * it.chunk;
  const int n = static_cast<int>(std::min<long>(it.chunk, it.n - from));
  const float* w = it.w + from * it.w_row;
  // Halves of more rows than the registers hold sums for; the chunk's weights are near by then.
  const int first = it.m > kAtOnce ? (it.m + 1) / 2 : it.m;
  for (int m = 0; m < it.m; m += first)
    rows(std::min(first, it.m - m), n, it.k, it.x + m * it.x_row, it.x_row, w, it.w_row,
         it.y + m * it.y_row + from, it.y_row);
}

}  // namespace

namespace few_rows {

void multiply(int m, int n, int k, const float* x, long x_row, const float* w, long w_row, float* y,
              long y_row) {
  Aligned inputs(m, k, x, x_row);
  // A chunk of about this many products keeps a core busy for a few microseconds, several times as
  // long as it takes to hand one over.
  constexpr long kChunk = 1 << 16;
  const long columns = std::max<long>(kChunk / (static_cast<long>(m) * std::max(k, 1)), 1);
  const int chunk = static_cast<int>(std::min<long>((columns + 23) / 24 * 24, n));
  const Product product{m, n, k, chunk, inputs.data(), inputs.row(), w, w_row, y, y_row};
  const int chunks = (n + chunk - 1) / chunk;
  if (chunks == 1 || workers::count() == 1) {
    for (int i = 0; i < chunks; ++i) do_chunk(&product, i);
  } else {
    workers::share(chunks, do_chunk, &product);
  }
}

}  // namespace few_rows
