// Products with packed weights (MLX's affine quantization) in fp32: the weights are unpacked on their
// way into the registers, w = scale · q + bias with one scale and bias per group of a row. MLX's own
// loop does it one number at a time, on one thread.

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <utility>

#include "mlxgk.h"
#include "ops/layout.h"
#include "ops/memory.h"
#include "ops/op.h"
#include "ops/vectors.h"
#include "ops/workers.h"
#include "shim/blas.h"

using namespace vectors;

namespace {

using Bytes = std::uint8_t __attribute__((vector_size(kLanes)));
using Unsigned = std::uint32_t __attribute__((vector_size(4 * kLanes)));

// The byte in which each of 16 numbers of B bits begins, or the one after it; and the bit.
template <int B, int After, std::size_t... I>
INLINE Bytes places(std::index_sequence<I...>) {
  return Bytes{static_cast<std::uint8_t>(I * B / 8 + After)...};
}
template <int B, std::size_t... I>
INLINE Unsigned shifts(std::index_sequence<I...>) {
  return Unsigned{static_cast<std::uint32_t>(I * B % 8)...};
}

// 16 numbers of B bits, the first in the lowest bits.
template <int B>
INLINE Lanes unpack(const std::uint8_t* from) {
  using All = std::make_index_sequence<kLanes>;
  Bytes raw{};
  std::memcpy(&raw, from, 2 * B);
  Unsigned bits = __builtin_convertvector(__builtin_shuffle(raw, places<B, 0>(All{})), Unsigned);
  // Numbers of 3, 5 and 6 bits may end in the next byte.
  if constexpr (8 % B != 0)
    bits |= __builtin_convertvector(__builtin_shuffle(raw, places<B, 1>(All{})), Unsigned) << 8;
  bits = bits >> shifts<B>(All{}) & ((1u << B) - 1);
  return __builtin_convertvector(same_bits<Words>(bits), Lanes);
}

// Packed weights: rows of whole groups, each group a multiple of 16 numbers.
struct Packed {
  const std::uint8_t* words;
  long words_row;  // in bytes
  const float *scales, *biases;
  long scales_row, biases_row;
  int groups, group;

  Packed from(long row) const {
    Packed rest = *this;
    rest.words += row * words_row;
    rest.scales += row * scales_row;
    rest.biases += row * biases_row;
    return rest;
  }
};

// N columns of M rows. Every sum has one accumulator, and its terms come in one order, whatever M
// and N are.
template <int B, int M, int N>
INLINE void block(const float* x, long x_row, const Packed& w, float* y, long y_row) {
  Lanes sums[M][N] = {};
  for (int g = 0; g < w.groups; ++g) {
    Lanes scales[N], biases[N];
    for (int n = 0; n < N; ++n) {
      scales[n] = all(w.scales[n * w.scales_row + g]);
      biases[n] = all(w.biases[n * w.biases_row + g]);
    }
    for (int i = g * w.group; i < (g + 1) * w.group; i += kLanes) {
      Lanes weights[N];
      for (int n = 0; n < N; ++n)
        weights[n] = unpack<B>(w.words + n * w.words_row + i / 8 * B) * scales[n] + biases[n];
      for (int m = 0; m < M; ++m) {
        const Lanes inputs = load(x + m * x_row + i);
        for (int n = 0; n < N; ++n) sums[m][n] += inputs * weights[n];
      }
    }
  }
  for (int m = 0; m < M; ++m)
    for (int n = 0; n < N; ++n) y[m * y_row + n] = sum(sums[m][n]);
}

template <int B, int M, int N>
INLINE void columns(int n, const float* x, long x_row, const Packed& w, float* y, long y_row) {
  int done = 0;
  for (; done + N <= n; done += N) block<B, M, N>(x, x_row, w.from(done), y + done, y_row);
  for (; done < n; ++done) block<B, M, 1>(x, x_row, w.from(done), y + done, y_row);
}

template <int B>
INLINE void rows(int m, int n, const float* x, long x_row, const Packed& w, float* y, long y_row) {
  for (int done = 0; done < m;) {
    const float* from = x + done * x_row;
    float* to = y + done * y_row;
    if (m - done >= 4) {
      columns<B, 4, 4>(n, from, x_row, w, to, y_row);
      done += 4;
    } else if (m - done >= 2) {
      columns<B, 2, 4>(n, from, x_row, w, to, y_row);
      done += 2;
    } else {
      columns<B, 1, 4>(n, from, x_row, w, to, y_row);
      done += 1;
    }
  }
}

template <int B>
INLINE void unpack_row(const Packed& w, float* to) {
  for (int g = 0; g < w.groups; ++g)
    for (int i = g * w.group; i < (g + 1) * w.group; i += kLanes)
      store(to + i, unpack<B>(w.words + i / 8 * B) * w.scales[g] + w.biases[g]);
}

// A function for every processor is no template.
#define FOR_BITS(B)                                                                            \
  FOR_EACH_PROCESSOR                                                                           \
  void rows_##B(int m, int n, const float* x, long x_row, const Packed& w, float* y, long y_row) { \
    rows<B>(m, n, x, x_row, w, y, y_row);                                                      \
  }                                                                                            \
  FOR_EACH_PROCESSOR                                                                           \
  void unpack_row_##B(const Packed& w, float* to) { unpack_row<B>(w, to); }

FOR_BITS(2)
FOR_BITS(3)
FOR_BITS(4)
FOR_BITS(5)
FOR_BITS(6)
FOR_BITS(8)

// What is done for one number of bits.
struct Kernels {
  void (*rows)(int, int, const float*, long, const Packed&, float*, long);
  void (*unpack_row)(const Packed&, float*);
};

Kernels kernels(int bits) {
  switch (bits) {
    case 2: return {rows_2, unpack_row_2};
    case 3: return {rows_3, unpack_row_3};
    case 4: return {rows_4, unpack_row_4};
    case 5: return {rows_5, unpack_row_5};
    case 6: return {rows_6, unpack_row_6};
    default: return {rows_8, unpack_row_8};
  }
}

// y = x·w', x of m × k, w of n × k.
class Task {
 public:
  Task(const op::Arrays& inputs, op::array& output, int group, int bits)
      : kernels_(kernels(bits)),
        x_(inputs[0]),
        words_(inputs[1]),
        scales_(inputs[2]),
        biases_(inputs[3]),
        y_(output.data<float>()),
        n_(inputs[1].shape(0)),
        k_(inputs[0].shape(-1)),
        m_(static_cast<int>(output.size() / n_)),
        group_(group),
        panel_(static_cast<int>(std::clamp<long>(kPanel / std::max(k_, 1), 1, n_))),
        // The rows of x, each at the beginning of a cache line; or a panel of weights.
        scratch_(m_ <= kFew ? static_cast<long>(m_) * whole(k_) : static_cast<long>(panel_) * k_) {}

  void run() {
    x_.ready();
    words_.ready();
    scales_.ready();
    biases_.ready();
    if (k_ == 0) {
      std::fill_n(y_, static_cast<long>(m_) * n_, 0.0f);
    } else if (m_ <= kFew) {
      few();
    } else {
      many();
    }
  }

 private:
  static long whole(int count) { return (count + kLanes - 1) / kLanes * kLanes; }

  Packed packed() const {
    return {reinterpret_cast<const std::uint8_t*>(words_.data()),
            4 * words_.row(),
            scales_.data(),
            biases_.data(),
            scales_.row(),
            biases_.row(),
            k_ / group_,
            group_};
  }

  void few() {
    const long x_row = whole(k_);
    for (int row = 0; row < m_; ++row) std::copy_n(x_.at(row), k_, scratch_.data() + row * x_row);
    // It takes a core a few microseconds, several times as long as handing it over.
    const long products = std::clamp<long>(static_cast<long>(m_) * n_ * k_ / 16, 1 << 15, 1 << 17);
    const long columns = std::max<long>(products / (static_cast<long>(m_) * k_), 1);
    const int chunk = static_cast<int>(std::min<long>((columns + 3) / 4 * 4, n_));
    const Packed w = packed();
    workers::share(workers::chunks(n_, chunk), [&](int index, int) {
      const int from = index * chunk;
      kernels_.rows(m_, std::min(chunk, n_ - from), scratch_.data(), x_row, w.from(from), y_ + from,
                    n_);
    });
  }

  // Many rows are worth BLAS's way. A panel of weights is unpacked at a time, small enough to be near
  // by still when it is used.
  void many() {
    const Packed w = packed();
    for (int from = 0; from < n_; from += panel_) {
      const int columns = std::min(panel_, n_ - from);
      const int rows = std::max(1, kChunk / k_);
      workers::share(workers::chunks(columns, rows), [&](int chunk, int) {
        const int end = std::min(columns, (chunk + 1) * rows);
        for (int row = chunk * rows; row < end; ++row)
          kernels_.unpack_row(w.from(from + row), scratch_.data() + static_cast<long>(row) * k_);
      });
      cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, m_, columns, k_, 1, x_.data(),
                  static_cast<int>(x_.row()), scratch_.data(), k_, 0, y_ + from, n_);
    }
  }

  // The most rows that meet the weights in registers.
  static constexpr int kFew = 16;
  // Weights in a panel, and in a chunk of work.
  static constexpr long kPanel = 1 << 20;
  static constexpr int kChunk = 1 << 16;

  Kernels kernels_;
  layout::Rows<float> x_;
  layout::Rows<std::uint32_t> words_;
  layout::Rows<float> scales_, biases_;
  float* y_;
  int n_, k_, m_, group_, panel_;
  memory::Floats scratch_;
};

op::array affine_product(op::Arrays inputs, int group, int bits, op::Stream stream) {
  using namespace mlx::core;
  const auto prepare = [group, bits](const op::Arrays& inputs, array& output) {
    return op::work<Task>(inputs, output, group, bits);
  };
  const auto composed = [group, bits](const op::Arrays& inputs) {
    return quantized_matmul(inputs[0], inputs[1], inputs[2], inputs[3], true, group, bits);
  };
  Shape shape = inputs[0].shape();
  shape.back() = inputs[1].shape(0);
  return op::make("AffineProduct", prepare, composed, shape, std::move(inputs), stream);
}

}  // namespace

const char* mlxgk_affine_product(mlx_array* result, mlx_array x, mlx_array words, mlx_array scales,
                                 mlx_array biases, int group_size, int bits, mlx_stream stream) {
  return op::give(result, [&] {
    return affine_product({op::of(x), op::of(words), op::of(scales), op::of(biases)}, group_size,
                          bits, op::of(stream));
  });
}
