// Products with packed weights (MLX's quantization modes) in fp32: the weights are unpacked on their
// way into the registers. MLX's own loop does it one number at a time, on one thread.

#include "ops/packed.h"

#include <utility>
#include <variant>

#include "ops/layout.h"
#include "ops/matrix.h"

using namespace vectors;
using scales::Bytes;
using scales::Unsigned;

namespace {

// The byte in which each of 16 numbers of B bits begins, or the one after it; and the bit.
template <int B, int After, std::size_t... I>
INLINE Bytes places(std::index_sequence<I...>) {
  return Bytes{static_cast<std::uint8_t>(I * B / 8 + After)...};
}
template <int B, std::size_t... I>
INLINE Unsigned shifts(std::index_sequence<I...>) {
  return Unsigned{static_cast<std::uint32_t>(I * B % 8)...};
}

using All = std::make_index_sequence<kLanes>;

// Whole numbers, none of them negative to a signed type, as floats.
INLINE Lanes floats(const Unsigned& whole) {
  return __builtin_convertvector(same_bits<Words>(whole), Lanes);
}

// 16 numbers of B bits, the first in the lowest bits.
template <int B>
struct Whole {
  static constexpr int kBits = B;

  static INLINE Lanes decode(const std::uint8_t* from) {
    Bytes raw{};
    std::memcpy(&raw, from, 2 * B);
    if constexpr (B == 8) return floats(scales::widened(raw));
    Unsigned bits = scales::widened(__builtin_shuffle(raw, places<B, 0>(All{})));
    // Numbers of 3, 5 and 6 bits may end in the next byte.
    if constexpr (8 % B != 0)
      bits |= scales::widened(__builtin_shuffle(raw, places<B, 1>(All{}))) << 8;
    return floats(bits >> shifts<B>(All{}) & ((1u << B) - 1));
  }
};

// A sign, two bits of exponent, one of mantissa.
struct E2m1 {
  static constexpr int kBits = 4;

  static INLINE Lanes decode(const std::uint8_t* from) {
    // Twice what the codes stand for, plus 12.
    const Bytes doubled = {12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0};
    const Bytes even = {255, 0, 255, 0, 255, 0, 255, 0, 255, 0, 255, 0, 255, 0, 255, 0};
    Bytes raw{};
    std::memcpy(&raw, from, 8);
    raw = __builtin_shuffle(raw, places<4, 0>(All{}));
    const Bytes codes = (raw & 15 & even) | (raw >> 4 & ~even);
    return floats(scales::widened(__builtin_shuffle(doubled, codes))) * 0.5f - 6.0f;
  }
};

struct E4m3 {
  static constexpr int kBits = 8;

  static INLINE Lanes decode(const std::uint8_t* from) {
    return scales::of_e4m3(load_as<Bytes>(from));
  }
};

// Up to N columns of M rows. Every sum has one accumulator, and its terms come in one order, whatever
// is beside it.
template <typename Code, int M, int N>
INLINE void block(const float* x, long x_row, const packed::Rows& w, int columns, float* y,
                  long y_row) {
  Lanes sums[M][N] = {};
  const std::uint8_t* words[N];
  // Columns that are not there are computed as the first is.
  for (int n = 0; n < N; ++n) words[n] = w.words + (n < columns ? n : 0) * w.words_row;
  for (int first = 0; first < w.groups; first += packed::kSegment) {
    const int count = std::min(packed::kSegment, w.groups - first);
    float scales[N][packed::kSegment], biases[N][packed::kSegment];
    for (int n = 0; n < N; ++n)
      w.widen(n < columns ? n : 0, first, count, scales[n], biases[n]);
    for (int g = 0; g < count; ++g) {
      const int begin = (first + g) * w.group;
      for (int n = 0; n < N; ++n)
        // The block after this one: its rows are too short for the processor to see them coming.
        for (int at = 0; at < w.group; at += 512 / Code::kBits)
          __builtin_prefetch(words[n] + N * w.words_row + (begin + at) / 8 * Code::kBits);
      for (int i = begin; i < begin + w.group; i += kLanes) {
        Lanes weights[N];
        for (int n = 0; n < N; ++n)
          weights[n] = Code::decode(words[n] + i / 8 * Code::kBits) * all(scales[n][g]) +
                       all(biases[n][g]);
        for (int m = 0; m < M; ++m) {
          const Lanes inputs = load(x + m * x_row + i);
          for (int n = 0; n < N; ++n) sums[m][n] += inputs * weights[n];
        }
      }
    }
  }
  for (int m = 0; m < M; ++m)
    for (int n = 0; n < N; ++n)
      if (n < columns) y[m * y_row + n] = sum(sums[m][n]);
}

template <typename Code, int M>
INLINE void columns(int n, const float* x, long x_row, const packed::Rows& w, float* y,
                    long y_row) {
  for (int done = 0; done < n; done += 4)
    block<Code, M, 4>(x, x_row, w.from(done), std::min(n - done, 4), y + done, y_row);
}

template <typename Code>
INLINE void rows(int m, const float* x, long x_row, const packed::Rows& w, int n, float* y,
                 long y_row) {
  for (; m >= 4; m -= 4, x += 4 * x_row, y += 4 * y_row)
    columns<Code, 4>(n, x, x_row, w, y, y_row);
  for (; m >= 1; --m, x += x_row, y += y_row) columns<Code, 1>(n, x, x_row, w, y, y_row);
}

template <typename Code>
INLINE void unpack(const packed::Rows& w, float* to) {
  for (int first = 0; first < w.groups; first += packed::kSegment) {
    const int count = std::min(packed::kSegment, w.groups - first);
    float scales[packed::kSegment], biases[packed::kSegment];
    w.widen(0, first, count, scales, biases);
    for (int g = 0; g < count; ++g) {
      const int begin = (first + g) * w.group;
      for (int i = begin; i < begin + w.group; i += kLanes)
        store(to + i,
              Code::decode(w.words + i / 8 * Code::kBits) * all(scales[g]) + all(biases[g]));
    }
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
  void unpack_##NAME(const packed::Rows& w, float* to) { unpack<CODE>(w, to); }

FOR_CODE(2, Whole<2>)
FOR_CODE(3, Whole<3>)
FOR_CODE(4, Whole<4>)
FOR_CODE(5, Whole<5>)
FOR_CODE(6, Whole<6>)
FOR_CODE(8, Whole<8>)
FOR_CODE(e2m1, E2m1)
FOR_CODE(e4m3, E4m3)

// What is done for one code.
struct Kernels {
  packed::Meeting meeting;
  void (*unpack)(const packed::Rows&, float*);
};

Kernels kernels(packed::Code code, int bits, int group) {
#define KERNELS(NAME) {{multiply_##NAME, packed::as_they_are}, unpack_##NAME}
  Kernels found = KERNELS(8);
  if (code == packed::Code::kE2m1) found = KERNELS(e2m1);
  if (code == packed::Code::kE4m3) found = KERNELS(e4m3);
  if (code == packed::Code::kWhole && bits == 2) found = KERNELS(2);
  if (code == packed::Code::kWhole && bits == 3) found = KERNELS(3);
  if (code == packed::Code::kWhole && bits == 4) found = KERNELS(4);
  if (code == packed::Code::kWhole && bits == 5) found = KERNELS(5);
  if (code == packed::Code::kWhole && bits == 6) found = KERNELS(6);
  const packed::Meeting quicker = packed::on_avx512(code, bits, group);
  if (quicker.multiply != nullptr) found.meeting = quicker;
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
      : kernels_(kernels(code(packing), packing.bits, packing.group)),
        words_(arrays[0]),
        scales_(arrays[1], packing),
        groups_(arrays[1].shape(-1)),
        group_(packing.group) {
    if (arrays.size() > 2) biases_.emplace(arrays[2], packing);
  }

  void ready() override {
    words_.ready();
    scales_.ready();
    if (biases_) biases_->ready();
  }

  void arrange(const float* x, float* to) const override {
    kernels_.meeting.arrange(x, groups_ * group_, to);
  }

  void multiply(int m, const float* x, long x_row, long from, int count, float* y,
                long y_row) const override {
    kernels_.meeting.multiply(m, x, x_row, rows().from(from), count, y, y_row);
  }

  void widen(long row, float* to) const override { kernels_.unpack(rows().from(row), to); }

 private:
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
  int groups_, group_;
};

}  // namespace

std::unique_ptr<matrix::Matrix> matrix::of_packed(const op::Arrays& arrays,
                                                  const Packing& packing) {
  return std::make_unique<OfPacked>(arrays, packing);
}
