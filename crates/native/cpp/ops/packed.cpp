// Products with packed weights (MLX's quantization modes) in fp32: the weights are unpacked on their
// way into the registers. MLX's own loop does it one number at a time, on one thread.

#include "ops/packed.h"

#include <utility>
#include <variant>

#include "ops/layout.h"
#include "ops/matrix.h"

using namespace vectors;
using scales::Bytes;

namespace {

constexpr int kHalf = kLanes / 2;

using Pairs = std::uint16_t __attribute__((vector_size(2 * kHalf)));
using Wide = std::uint32_t __attribute__((vector_size(4 * kHalf)));
using Whole32 = std::int32_t __attribute__((vector_size(4 * kHalf)));

// The byte in which each of 8 numbers of B bits begins and the one after it; the bits before it, in all
// and in its byte.
template <int B, std::size_t... I>
INLINE Bytes places(std::index_sequence<I...>) {
  return Bytes{static_cast<std::uint8_t>(I / 2 * B / 8 + I % 2)...};
}
template <int B, std::size_t... I>
INLINE Wide bits_before(std::index_sequence<I...>) {
  return Wide{static_cast<std::uint32_t>(I * B)...};
}
template <int B, std::size_t... I>
INLINE Wide shifts(std::index_sequence<I...>) {
  return Wide{static_cast<std::uint32_t>(I * B % 8)...};
}

// Whole numbers, none of them negative to a signed type, as floats.
INLINE Half floats(const Wide& whole) {
  return __builtin_convertvector(same_bits<Whole32>(whole), Half);
}

template <typename Number>
INLINE std::uint64_t number_at(const std::uint8_t* from) {
  return load_as<Number>(from);
}

// N bytes, and zeros behind them. They are not put together in memory: a load waits for stores that
// are narrower than itself.
template <int N>
INLINE Bytes bytes_at(const std::uint8_t* from) {
  using Pair = std::uint64_t __attribute__((vector_size(16)));
  std::uint64_t low;
  if constexpr (N == 2) low = number_at<std::uint16_t>(from);
  else if constexpr (N == 3)
    low = number_at<std::uint16_t>(from) | std::uint64_t{from[2]} << 16;
  else if constexpr (N == 4) low = number_at<std::uint32_t>(from);
  else if constexpr (N == 5)
    low = number_at<std::uint32_t>(from) | std::uint64_t{from[4]} << 32;
  else if constexpr (N == 6)
    low = number_at<std::uint32_t>(from) | number_at<std::uint16_t>(from + 4) << 32;
  else low = number_at<std::uint64_t>(from);
  return same_bits<Bytes>(Pair{low, 0});
}

// The first eight bytes as words.
INLINE Wide words_of(const Bytes& bytes) {
  using Eight = std::uint8_t __attribute__((vector_size(kHalf)));
  return __builtin_convertvector(load_as<Eight>(&bytes), Wide);
}

// Sixteen numbers of B bits, the first in the lowest bits.
template <int B>
struct Whole {
  static constexpr int kBits = B;

  static INLINE Halves decode(const std::uint8_t* from) {
    // All lanes shift the same word.
    if constexpr (B == 2) {
      const Wide word = Wide{} + load_as<std::uint32_t>(from);
      return {numbers(word), numbers(word >> 16)};
    } else if constexpr (B == 4) {
      return {numbers(Wide{} + load_as<std::uint32_t>(from)),
              numbers(Wide{} + load_as<std::uint32_t>(from + 4))};
    } else {
      return {eight(bytes_at<B>(from)), eight(bytes_at<B>(from + B))};
    }
  }

 private:
  static INLINE Half numbers(const Wide& bits) {
    return floats(bits >> bits_before<B>(std::make_index_sequence<kHalf>()) & ((1u << B) - 1));
  }

  static INLINE Half eight(const Bytes& raw) {
    if constexpr (B == 8) return floats(words_of(raw));
    const auto pairs = same_bits<Pairs>(
        __builtin_shuffle(raw, places<B>(std::make_index_sequence<kLanes>())));
    const Wide bits = __builtin_convertvector(pairs, Wide);
    return floats(bits >> shifts<B>(std::make_index_sequence<kHalf>()) & ((1u << B) - 1));
  }
};

// A sign, two bits of exponent, one of mantissa.
struct E2m1 {
  static constexpr int kBits = 4;

  static INLINE Halves decode(const std::uint8_t* from) { return {eight(from), eight(from + 4)}; }

 private:
  static INLINE Half eight(const std::uint8_t* from) {
    // Twice what the codes stand for, plus 12.
    const Bytes doubled = {12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0};
    const Bytes even = {255, 0, 255, 0, 255, 0, 255, 0, 255, 0, 255, 0, 255, 0, 255, 0};
    const Bytes twice = {0, 0, 1, 1, 2, 2, 3, 3, 0, 0, 0, 0, 0, 0, 0, 0};
    const Bytes raw = __builtin_shuffle(bytes_at<4>(from), twice);
    const Bytes codes = (raw & 15 & even) | (raw >> 4 & ~even);
    return floats(words_of(__builtin_shuffle(doubled, codes))) * 0.5f - 6.0f;
  }
};

struct E4m3 {
  static constexpr int kBits = 8;

  static INLINE Halves decode(const std::uint8_t* from) { return {eight(from), eight(from + 8)}; }

 private:
  static INLINE Half eight(const std::uint8_t* from) {
    return scales::of_e4m3_as<Half>(words_of(bytes_at<8>(from)));
  }
};

// Sixteen weights, from the bytes of the first on.
template <typename Code>
INLINE Halves weights_at(const std::uint8_t* from, float scale, float bias) {
  const Half by = scale - Half{}, plus = bias - Half{};
  return Code::decode(from) * Halves{by, by} + Halves{plus, plus};
}

// A group's numbers begin at whole bytes; so do every eight of them.
template <typename Code>
INLINE const std::uint8_t* bytes_of(const std::uint8_t* row, long number) {
  return row + static_cast<unsigned long>(number) / 8 * Code::kBits;
}

template <typename Code>
INLINE void prefetch(const std::uint8_t* from, int numbers) {
  for (int at = 0; at < numbers; at += 512 / Code::kBits)
    __builtin_prefetch(bytes_of<Code>(from, at));
}

constexpr int kColumns = 4;

// Where up to four rows of weights begin. Those that are not there are computed as the first is.
struct Starts {
  const std::uint8_t* of[kColumns];

  INLINE Starts(const packed::Rows& w, int columns) {
    for (int n = 0; n < kColumns; ++n) of[n] = w.words + (n < columns ? n : 0) * w.words_row;
  }
};

// Up to four columns of one row. Every sum has one accumulator, and its terms come in one order,
// whatever is beside it.
template <typename Code>
INLINE void block(const float* x, const packed::Rows& w, int columns, float* y) {
  const Starts words(w, columns);
  Halves sums[kColumns] = {};
  for (int first = 0; first < w.groups; first += packed::kSegment) {
    const int count = std::min(packed::kSegment, w.groups - first);
    float scales[kColumns][packed::kSegment], biases[kColumns][packed::kSegment];
    for (int n = 0; n < kColumns; ++n)
      w.widen(n < columns ? n : 0, first, count, scales[n], biases[n]);
    for (int g = 0; g < count; ++g) {
      const long begin = static_cast<long>(first + g) * w.group;
      for (int n = 0; n < kColumns; ++n)
        // The block after this one: its rows are too short for the processor to see them coming.
        prefetch<Code>(bytes_of<Code>(words.of[n], begin) + kColumns * w.words_row, w.group);
      for (long i = begin; i < begin + w.group; i += kLanes) {
        const Halves inputs = load_to<Halves>(x + i);
        for (int n = 0; n < kColumns; ++n)
          sums[n] += inputs * weights_at<Code>(bytes_of<Code>(words.of[n], i), scales[n][g],
                                               biases[n][g]);
      }
    }
  }
  for (int n = 0; n < columns; ++n) y[n] = sum(sums[n]);
}

// Sums of M rows with N columns of unpacked weights go on where they stopped. AVX2 has registers for
// some twelve of them.
template <int M, int N>
INLINE void add_tile(int length, const float* x, long x_row, const float* w, long w_row,
                     Half (*sums)[kColumns], int row, int column) {
  Half own[M][N];
  for (int m = 0; m < M; ++m)
    for (int n = 0; n < N; ++n) own[m][n] = sums[row + m][column + n];
  for (int i = 0; i < length; i += kLanes) {
    Half weights[N];
    for (int n = 0; n < N; ++n) weights[n] = load_as<Half>(w + n * w_row + i);
    for (int m = 0; m < M; ++m) {
      const Half inputs = load_as<Half>(x + m * x_row + i);
      for (int n = 0; n < N; ++n) own[m][n] += inputs * weights[n];
    }
  }
  for (int m = 0; m < M; ++m)
    for (int n = 0; n < N; ++n) sums[row + m][column + n] = own[m][n];
}

constexpr int kRows = 8;

// Up to four columns of up to eight rows. A stretch of weights is unpacked once for all rows, into
// memory that stays near by.
template <typename Code>
INLINE void shared_block(int m, const float* x, long x_row, const packed::Rows& w, int columns,
                         float* y, long y_row) {
  constexpr int kStretch = 512;
  alignas(64) float weights[kColumns][kStretch];
  // Of the lower lanes and of the upper ones.
  Half sums[2][kRows][kColumns] = {};
  const Starts words(w, columns);
  const int most = std::min(kStretch / w.group, packed::kSegment);
  for (int first = 0; first < w.groups; first += most) {
    const int count = std::min(most, w.groups - first);
    const int begin = first * w.group, length = count * w.group;
    for (int n = 0; n < kColumns; ++n) {
      float scales[packed::kSegment], biases[packed::kSegment];
      w.widen(n < columns ? n : 0, first, count, scales, biases);
      const std::uint8_t* from = bytes_of<Code>(words.of[n], begin);
      prefetch<Code>(from + kColumns * w.words_row, length);
      for (int g = 0; g < count; ++g)
        for (int i = g * w.group; i < (g + 1) * w.group; i += kLanes)
          store(weights[n] + i,
                weights_at<Code>(bytes_of<Code>(from, i), scales[g], biases[g]));
    }
    for (int half = 0; half < 2; ++half) {
      const float *from = x + begin + half * kHalf, *to = weights[0] + half * kHalf;
      int row = 0;
      for (; row + 4 <= m; row += 4)
        for (int n = 0; n < kColumns; n += 2)
          add_tile<4, 2>(length, from + row * x_row, x_row, to + n * kStretch, kStretch, sums[half], row, n);
      for (; row + 2 <= m; row += 2)
        add_tile<2, 4>(length, from + row * x_row, x_row, to, kStretch, sums[half], row, 0);
      if (row < m) add_tile<1, 4>(length, from + row * x_row, x_row, to, kStretch, sums[half], row, 0);
    }
  }
  for (int i = 0; i < m; ++i)
    for (int n = 0; n < columns; ++n) y[i * y_row + n] = sum(Halves{sums[0][i][n], sums[1][i][n]});
}

// A row unpacks the weights in registers; of several the first does it for all.
template <typename Code>
INLINE void rows(int m, const float* x, long x_row, const packed::Rows& w, int n, float* y,
                 long y_row) {
  for (int count; m > 0; m -= count, x += count * x_row, y += count * y_row) {
    count = std::min(m, kRows);
    for (int done = 0; done < n; done += kColumns) {
      const int columns = std::min(n - done, kColumns);
      if (count == 1) block<Code>(x, w.from(done), columns, y + done);
      else shared_block<Code>(count, x, x_row, w.from(done), columns, y + done, y_row);
    }
  }
}

// Whole groups become floats.
template <typename Code>
INLINE void unpack_groups(const std::uint8_t* from, int groups, int group, const float* scales,
                          const float* biases, float* to) {
  for (int g = 0; g < groups; ++g)
    for (int i = g * group; i < (g + 1) * group; i += kLanes)
      store(to + i, weights_at<Code>(bytes_of<Code>(from, i), scales[g], biases[g]));
}

template <typename Code>
INLINE void unpack(const packed::Rows& w, int from, int groups, float* to) {
  for (int done = 0; done < groups; done += packed::kSegment) {
    const int count = std::min(packed::kSegment, groups - done);
    float scales[packed::kSegment], biases[packed::kSegment];
    w.widen(0, from + done, count, scales, biases);
    const long begin = static_cast<long>(from + done) * w.group;
    unpack_groups<Code>(bytes_of<Code>(w.words, begin), count, w.group, scales, biases,
                        to + done * w.group);
  }
}

template <typename Code>
INLINE void unpack_all(const packed::FloatRows& w, int count, float* to) {
  for (long n = 0; n < count; ++n, to += w.groups * w.group) {
    const std::uint8_t* from = w.words + n * w.words_row;
    // What is asked for next.
    prefetch<Code>(from + count * w.words_row, w.groups * w.group);
    unpack_groups<Code>(from, w.groups, w.group, w.scales + n * w.scales_row,
                        w.biases + n * w.biases_row, to);
  }
}

// A function for every processor is no template.
#define FOR_CODE(NAME, CODE)                                                                   \
  FOR_EACH_PROCESSOR                                                                           \
  void multiply_##NAME(int m, const float* x, long x_row, const packed::Rows& w, int n, float* y, \
                       long y_row) {                                                           \
    rows<CODE>(m, x, x_row, w, n, y, y_row);                                                   \
  }                                                                                            \
  FOR_EACH_PROCESSOR                                                                           \
  void unpack_##NAME(const packed::Rows& w, int from, int groups, float* to) {                 \
    unpack<CODE>(w, from, groups, to);                                                         \
  }

FOR_CODE(2, Whole<2>)
FOR_CODE(3, Whole<3>)
FOR_CODE(4, Whole<4>)
FOR_CODE(5, Whole<5>)
FOR_CODE(6, Whole<6>)
FOR_CODE(8, Whole<8>)
FOR_CODE(e2m1, E2m1)
FOR_CODE(e4m3, E4m3)

#define FOR_BITS(B)                                                       \
  FOR_EACH_PROCESSOR                                                      \
  void unpack_all_##B(const packed::FloatRows& w, int count, float* to) { \
    unpack_all<Whole<B>>(w, count, to);                                   \
  }

FOR_BITS(2)
FOR_BITS(3)
FOR_BITS(4)
FOR_BITS(5)
FOR_BITS(6)
FOR_BITS(8)

// What is done for one code.
struct Kernels {
  packed::Meeting meeting;
  void (*unpack)(const packed::Rows& w, int from, int groups, float* to);
  packed::Turn turn = nullptr;
};

Kernels kernels(packed::Code code, int bits, int group, long length) {
#define KERNELS(NAME) {{multiply_##NAME, packed::as_they_are}, unpack_##NAME}
  Kernels found = KERNELS(8);
  if (code == packed::Code::kE2m1) found = KERNELS(e2m1);
  if (code == packed::Code::kE4m3) found = KERNELS(e4m3);
  if (code == packed::Code::kWhole && bits == 2) found = KERNELS(2);
  if (code == packed::Code::kWhole && bits == 3) found = KERNELS(3);
  if (code == packed::Code::kWhole && bits == 4) found = KERNELS(4);
  if (code == packed::Code::kWhole && bits == 5) found = KERNELS(5);
  if (code == packed::Code::kWhole && bits == 6) found = KERNELS(6);
  for (const packed::Meeting& quicker :
       {packed::on_avx512(code, bits, group), packed::on_vnni(code, bits, group, length)})
    if (quicker.multiply != nullptr) found.meeting = quicker;
  found.turn = packed::turning_on_avx512(code, bits);
  return found;
}

// Scales or biases, in whatever type they are.
class OfGroups {
 public:
  OfGroups(const op::array& from, const matrix::Packing& packing)
      : rows_(rows(from)), kind_(kind_of(from, packing)) {}

  scales::Kind kind() const { return kind_; }

  void ready() {
    std::visit([](auto& it) { it.ready(); }, rows_);
  }
  const std::uint8_t* data() const {
    return std::visit([](auto& it) { return reinterpret_cast<const std::uint8_t*>(it.data()); },
                      rows_);
  }
  // From one row to the next, in bytes.
  long row() const {
    return std::visit([](auto& it) { return it.row() * static_cast<long>(sizeof *it.data()); },
                      rows_);
  }

 private:
  using Stored =
      std::variant<layout::Rows<float>, layout::Rows<Bf16>, layout::Rows<std::uint8_t>>;

  static Stored rows(const op::array& from) {
    if (from.dtype() == mlx::core::float32) return layout::Rows<float>(from);
    if (from.dtype() == mlx::core::bfloat16) return layout::Rows<Bf16>(from);
    return layout::Rows<std::uint8_t>(from);
  }

  static scales::Kind kind_of(const op::array& from, const matrix::Packing& packing) {
    if (packing.mode == matrix::kNvfp4) return scales::Kind::kE4m3;
    if (packing.mode != matrix::kAffine) return scales::Kind::kE8m0;
    return from.dtype() == mlx::core::float32 ? scales::Kind::kFloat : scales::Kind::kBf16;
  }

  Stored rows_;
  scales::Kind kind_;
};

class OfPacked : public matrix::Matrix {
 public:
  OfPacked(const op::Arrays& arrays, const matrix::Packing& packing)
      : kernels_(kernels(code(packing), packing.bits, packing.group,
                         static_cast<long>(arrays[1].shape(-1)) * packing.group)),
        words_(arrays[0]),
        scales_(arrays[1], packing),
        groups_(arrays[1].shape(-1)),
        group_(packing.group),
        bits_(packing.bits) {
    if (arrays.size() > 2) biases_.emplace(arrays[2], packing);
  }

  void ready() override {
    words_.ready();
    scales_.ready();
    if (biases_) biases_->ready();
  }

  long room() const override { return kernels_.meeting.room(groups_ * group_); }

  void arrange(const float* x, float* to) const override {
    kernels_.meeting.arrange(x, groups_ * group_, to);
  }

  void multiply(int m, const float* x, long x_row, long from, int count, float* y,
                long y_row) const override {
    kernels_.meeting.multiply(m, x, x_row, rows().from(from), count, y, y_row);
  }

  void turn(long row, int count, int from, int length, float* scratch, float* to) const override {
    const int words = length * bits_ / 32;
    if (kernels_.turn != nullptr && count == turn::width() && words >= packed::kFewestWords)
      return kernels_.turn(rows().from(row), from / group_, words, to);
    Matrix::turn(row, count, from, length, scratch, to);
  }

 private:
  void widen(long row, int from, int length, float* to) const override {
    kernels_.unpack(rows().from(row), from / group_, length / group_, to);
  }

  static packed::Code code(const matrix::Packing& packing) {
    if (packing.mode == matrix::kAffine) return packed::Code::kWhole;
    return packing.mode == matrix::kMxfp8 ? packed::Code::kE4m3 : packed::Code::kE2m1;
  }

  packed::Rows rows() const {
    return {reinterpret_cast<const std::uint8_t*>(words_.data()),
            4 * words_.row(),
            scales_.data(),
            biases_ ? biases_->data() : nullptr,
            scales_.row(),
            biases_ ? biases_->row() : 0,
            scales_.kind(),
            biases_ ? biases_->kind() : scales_.kind(),
            groups_,
            group_};
  }

  Kernels kernels_;
  layout::Rows<std::uint32_t> words_;
  OfGroups scales_;
  std::optional<OfGroups> biases_;
  int groups_, group_, bits_;
};

}  // namespace

packed::Unpack packed::unpacking(int bits) {
  if (const Unpack quicker = unpacking_on_avx512(bits)) return quicker;
  switch (bits) {
    case 2: return unpack_all_2;
    case 3: return unpack_all_3;
    case 4: return unpack_all_4;
    case 5: return unpack_all_5;
    case 6: return unpack_all_6;
  }
  return unpack_all_8;
}

std::unique_ptr<matrix::Matrix> matrix::of_packed(const op::Arrays& arrays,
                                                  const Packing& packing) {
  return std::make_unique<OfPacked>(arrays, packing);
}
