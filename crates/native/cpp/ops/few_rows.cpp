// A general product copies the weights into blocks first, which pays off when every block meets many
// rows. Here the weights are read once, as they lie, and meet all rows in registers.
//
// The rows of weights that are met together lie apart: a chunk's first, the first of its second part, and so on.
// So memory is read as a few long streams, which the processor recognises and fetches ahead; single rows are too
// short for that. On an AMD EPYC (Zen 4) two threads read bf16 rows of 2 KB at 57 GB/s as four streams of a chunk of
// 512 rows, at 45 as eight, and at 51 as four of a chunk of 96.

#include "ops/few_rows.h"

#include <algorithm>
#include <new>
#include <optional>

#include "ops/memory.h"
#include "ops/workers.h"

using namespace vectors;

namespace {

constexpr int kAtOnce = 8;

// Bytes that weights are fetched ahead: what the processor fetches itself ends with a page.
constexpr int kAhead = 2048;

// N columns of M rows, `apart` from each other. Every sum has one accumulator of sixteen lanes, and its terms
// come in one order, whatever M, N and the kind of vector are.
template <int M, int N, typename Vector, typename Weight>
INLINE void block(int k, const float* x, long x_row, const Weight* w, long w_row, float* y,
                  long y_row, long apart) {
  Vector sums[M][N] = {};
  const Weight* columns[N];
  for (int n = 0; n < N; ++n) columns[n] = w + n * apart * w_row;
  int i = 0;
  for (; i + kLanes <= k; i += kLanes) {
    Vector weights[N];
    for (int n = 0; n < N; ++n) {
      weights[n] = load_to<Vector>(columns[n] + i);
      __builtin_prefetch(reinterpret_cast<const char*>(columns[n] + i) + kAhead);
    }
    for (int m = 0; m < M; ++m) {
      const Vector inputs = load_to<Vector>(x + m * x_row + i);
      for (int n = 0; n < N; ++n) sums[m][n] += inputs * weights[n];
    }
  }
  for (int m = 0; m < M; ++m) {
    for (int n = 0; n < N; ++n) {
      float total = sum(sums[m][n]);
      for (int j = i; j < k; ++j) total += x[m * x_row + j] * widened(columns[n][j]);
      y[m * y_row + n * apart] = total;
    }
  }
}

template <int M, int N, typename Vector, typename Weight>
INLINE void columns(int n, int k, const float* x, long x_row, const Weight* w, long w_row, float* y,
                    long y_row) {
  const int apart = n / N;
  for (int at = 0; at < apart; ++at)
    block<M, N, Vector>(k, x, x_row, w + at * w_row, w_row, y + at, y_row, apart);
  for (int rest = N * apart; rest < n; ++rest)
    block<M, 1, Vector>(k, x, x_row, w + rest * w_row, w_row, y + rest, y_row, 0);
}

// As many columns at once as 32 registers of sixteen floats hold sums for; of one row, as many as are read fastest.
template <typename Weight>
INLINE void wide_rows(int m, int n, int k, const float* x, long x_row, const Weight* w, long w_row,
                      float* y, long y_row) {
  switch (m) {
    case 1: return columns<1, 4, Lanes>(n, k, x, x_row, w, w_row, y, y_row);
    case 2: return columns<2, 8, Lanes>(n, k, x, x_row, w, w_row, y, y_row);
    case 3: return columns<3, 4, Lanes>(n, k, x, x_row, w, w_row, y, y_row);
    case 4: return columns<4, 4, Lanes>(n, k, x, x_row, w, w_row, y, y_row);
    case 5: return columns<5, 4, Lanes>(n, k, x, x_row, w, w_row, y, y_row);
    case 6: return columns<6, 4, Lanes>(n, k, x, x_row, w, w_row, y, y_row);
    case 7: return columns<7, 3, Lanes>(n, k, x, x_row, w, w_row, y, y_row);
    case 8: return columns<8, 3, Lanes>(n, k, x, x_row, w, w_row, y, y_row);
  }
}

// Sixteen registers of eight floats hold six sums; the two columns of weights that more rows meet are
// near by for the later ones.
template <typename Weight>
INLINE void narrow_rows(int m, int n, int k, const float* x, long x_row, const Weight* w,
                        long w_row, float* y, long y_row) {
  if (m == 1) return columns<1, 4, Halves>(n, k, x, x_row, w, w_row, y, y_row);
  if (m == 2) return columns<2, 3, Halves>(n, k, x, x_row, w, w_row, y, y_row);
  for (int done = 0; done < n; done += 2) {
    const int count = std::min(2, n - done);
    const Weight* weights = w + done * w_row;
    int row = 0;
    for (; row + 3 <= m; row += 3)
      columns<3, 2, Halves>(count, k, x + row * x_row, x_row, weights, w_row,
                            y + row * y_row + done, y_row);
    if (m - row == 2)
      columns<2, 2, Halves>(count, k, x + row * x_row, x_row, weights, w_row,
                            y + row * y_row + done, y_row);
    if (m - row == 1)
      columns<1, 2, Halves>(count, k, x + row * x_row, x_row, weights, w_row,
                            y + row * y_row + done, y_row);
  }
}

FOR_WIDE
void wide_rows_of_floats(int m, int n, int k, const float* x, long x_row, const float* w,
                         long w_row, float* y, long y_row) {
  wide_rows(m, n, k, x, x_row, w, w_row, y, y_row);
}

FOR_WIDE
void wide_rows_of_bf16(int m, int n, int k, const float* x, long x_row, const Bf16* w, long w_row,
                       float* y, long y_row) {
  wide_rows(m, n, k, x, x_row, w, w_row, y, y_row);
}

FOR_EACH_PROCESSOR
void rows_of_floats(int m, int n, int k, const float* x, long x_row, const float* w, long w_row,
                    float* y, long y_row) {
  narrow_rows(m, n, k, x, x_row, w, w_row, y, y_row);
}

FOR_EACH_PROCESSOR
void rows_of_bf16(int m, int n, int k, const float* x, long x_row, const Bf16* w, long w_row,
                  float* y, long y_row) {
  narrow_rows(m, n, k, x, x_row, w, w_row, y, y_row);
}

// More rows than the registers hold sums for are done in halves; the weights are near by then.
template <typename... Rest>
void in_halves(void (*rows)(int, int, int, const float*, long, Rest..., float*, long), int m, int n,
               int k, const float* x, long x_row, Rest... rest, float* y, long y_row) {
  const int most = m > kAtOnce ? (m + 1) / 2 : m;
  for (int at = 0; at < m; at += most)
    rows(std::min(most, m - at), n, k, x + at * x_row, x_row, rest..., y + at * y_row, y_row);
}

void do_rows(int m, int n, int k, const float* x, long x_row, const float* w, long w_row, float* y,
             long y_row) {
  in_halves<const float*, long>(is_wide() ? wide_rows_of_floats : rows_of_floats, m, n, k, x, x_row, w, w_row, y, y_row);
}

void do_rows(int m, int n, int k, const float* x, long x_row, const Bf16* w, long w_row, float* y,
             long y_row) {
  in_halves<const Bf16*, long>(is_wide() ? wide_rows_of_bf16 : rows_of_bf16, m, n, k, x, x_row, w, w_row, y, y_row);
}

// The inputs, each row at the beginning of a cache line: they are read once for every column. Where there is no memory
// for that, they are used as they lie.
class Aligned {
 public:
  Aligned(int m, int k, const float* x, long x_row) : data_(x), row_(x_row) {
    const long row = (k + kLanes - 1) / kLanes * kLanes;
    float* to = here_;
    if (m * row > kHere) {
      try {
        to = more_.emplace(m * row).data();
      } catch (const std::bad_alloc&) {
        return;
      }
    }
    for (int i = 0; i < m; ++i) std::copy_n(x + i * x_row, k, to + i * row);
    data_ = to;
    row_ = row;
  }

  const float* data() const { return data_; }
  long row() const { return row_; }

 private:
  static constexpr long kHere = 8 * 1024;

  const float* data_;
  long row_;
  alignas(64) float here_[kHere];
  std::optional<memory::Floats> more_;
};

}  // namespace

namespace few_rows {

void multiply(int m, int n, int k, const float* x, long x_row, const float* w, long w_row, float* y,
              long y_row) {
  if (m <= 0 || n <= 0) return;
  Aligned inputs(m, k, x, x_row);
  // Products in a chunk: it takes a core a few microseconds, several times as long as handing it
  // over, and the first rows of a chunk, before which nothing is fetched, are few among its rows.
  const long products = static_cast<long>(m) * n * k;
  const long share = std::clamp<long>(products / 16, 1 << 16, 1 << 18);
  const long columns = std::max<long>(share / (static_cast<long>(m) * std::max(k, 1)), 1);
  const int chunk = static_cast<int>(std::min<long>((columns + 23) / 24 * 24, n));
  workers::share(workers::chunks(n, chunk), [&](int index, int) {
    const long from = static_cast<long>(index) * chunk;
    const int count = static_cast<int>(std::min<long>(chunk, n - from));
    do_rows(m, count, k, inputs.data(), inputs.row(), w + from * w_row, w_row, y + from, y_row);
  });
}

void multiply_alone(int m, int n, int k, const float* x, long x_row, const float* w, long w_row,
                    float* y, long y_row) {
  do_rows(m, n, k, x, x_row, w, w_row, y, y_row);
}

void multiply_alone(int m, int n, int k, const float* x, long x_row, const Bf16* w, long w_row,
                    float* y, long y_row) {
  do_rows(m, n, k, x, x_row, w, w_row, y, y_row);
}

}  // namespace few_rows
