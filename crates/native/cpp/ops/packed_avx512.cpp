// Packed weights on AVX-512.
//
// Of weights of four bits a register holds what each of the sixteen codes stands for in a group, so one
// instruction turns sixteen codes into sixteen weights. A group's words fill a register, repeated as
// often as it takes, and every lane shifts its word to another code. So a register's lanes hold numbers
// that are apart in the row, and inputs are arranged to match, once per product.
//
// Of other widths a register holds sixteen neighbours. Codes of two, three and five bits are looked up
// likewise, in one register or two; wider ones become floats.
//
// Eight rows at once meet two columns, four and two meet four, and one meets eight: so that the sums of all
// fill the registers, and what a weight costs to unpack is shared by all rows.

#include "ops/packed.h"
#include "ops/turn.h"

#ifdef __x86_64__

#include <utility>

// The compiler's own functions begin with what is not set.
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#include <immintrin.h>

#define AVX512 __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl")))
#define AVX512_INLINE AVX512 INLINE

using namespace vectors;

namespace {

constexpr int kBits = 4;

// How many words a group has, and after how many codes a lane meets the next of its own.
constexpr int words_of(int group) { return group * kBits / 32; }

// What the codes stand for.
alignas(64) constexpr float kWhole[16] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
alignas(64) constexpr float kE2m1[16] = {0,  .5f,  1,  1.5f,  2,  3,  4,  6,
                                         -0.f, -.5f, -1, -1.5f, -2, -3, -4, -6};

template <int Group>
AVX512_INLINE __m512i words(const std::uint8_t* from) {
  if constexpr (Group == 16) {
    long long pair;
    std::memcpy(&pair, from, sizeof pair);
    return _mm512_set1_epi64(pair);
  } else if constexpr (Group == 32) {
    return _mm512_broadcast_i32x4(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
  } else if constexpr (Group == 64) {
    return _mm512_broadcast_i64x4(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
  } else {
    return _mm512_loadu_si512(from);
  }
}

// The first shift of each lane.
template <int Group>
AVX512_INLINE __m512i first_shifts() {
  alignas(64) int shifts[16];
  for (int lane = 0; lane < 16; ++lane) shifts[lane] = lane / words_of(Group) * Group / 16 * kBits;
  return _mm512_load_si512(shifts);
}

AVX512_INLINE __m512 of_bf16(__m256i bits) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
}

// As Rows::widen, which is a call of its own; whole vectors are written.
AVX512_INLINE void widen(const packed::Rows& w, long n, int first, int count, float* scales,
                         float* biases) {
  using Kind = ::scales::Kind;
  if (w.kind != Kind::kBf16 || w.biases_kind != Kind::kBf16 || w.biases == nullptr)
    return w.widen(n, first, count, scales, biases);
  w.fetch_scales(n, first);
  const std::uint8_t *from = w.scales + n * w.scales_row + 2 * first,
                     *biases_from = w.biases + n * w.biases_row + 2 * first;
  for (int i = 0; i < count; i += 16) {
    const auto rest = static_cast<__mmask16>((1u << std::min(count - i, 16)) - 1);
    _mm512_storeu_ps(scales + i, of_bf16(_mm256_maskz_loadu_epi16(rest, from + 2 * i)));
    _mm512_storeu_ps(biases + i, of_bf16(_mm256_maskz_loadu_epi16(rest, biases_from + 2 * i)));
  }
}

// Sixteen inputs of M rows meet the weights of N columns.
template <int M, int N>
AVX512_INLINE void add_products(const float* x, long x_row, const __m512 (&weights)[N],
                                __m512 (&sums)[M][N]) {
#pragma GCC unroll 8
  for (int m = 0; m < M; ++m) {
    __m512 inputs = _mm512_loadu_ps(x + m * x_row);
    // Once for all columns: the compiler would load them again for each.
    if constexpr (M > 1) asm("" : "+v"(inputs));
#pragma GCC unroll 8
    for (int n = 0; n < N; ++n) sums[m][n] = _mm512_fmadd_ps(inputs, weights[n], sums[m][n]);
  }
}

// N columns of M rows, `apart` from each other: see few_rows.cpp. Every sum has one accumulator, and its terms
// come in one order, whatever is beside it.
template <int Group, int M, int N>
AVX512_INLINE void block(const float* codes, const float* x, long x_row, const packed::Rows& w,
                         long apart, float* y, long y_row) {
  const __m512 table = _mm512_load_ps(codes);
  const __m512i shifts = first_shifts<Group>();
  const std::uint8_t* starts[N];
  for (int n = 0; n < N; ++n) starts[n] = w.words + n * apart * w.words_row;
  __m512 sums[M][N];
  for (int m = 0; m < M; ++m)
    for (int n = 0; n < N; ++n) sums[m][n] = _mm512_setzero_ps();
  for (int first = 0; first < w.groups; first += packed::kSegment) {
    const int count = std::min(packed::kSegment, w.groups - first);
    float scales[N][packed::kSegment], biases[N][packed::kSegment];
    for (int n = 0; n < N; ++n) widen(w, n * apart, first, count, scales[n], biases[n]);
    for (int g = 0; g < count; ++g) {
      const long at = first + g;
      __m512 values[N];
      __m512i bits[N];
#pragma GCC unroll 8
      for (int n = 0; n < N; ++n) {
        const std::uint8_t* from = starts[n] + at * (Group * kBits / 8);
        __builtin_prefetch(from + packed::kWordsAhead);
        values[n] = _mm512_fmadd_ps(table, _mm512_set1_ps(scales[n][g]), _mm512_set1_ps(biases[n][g]));
        bits[n] = _mm512_srlv_epi32(words<Group>(from), shifts);
      }
#pragma GCC unroll 8
      for (int j = 0; j < Group / 16; ++j) {
        __m512 weights[N];
#pragma GCC unroll 8
        for (int n = 0; n < N; ++n)
          // The instruction looks at the lowest four bits alone.
          weights[n] = _mm512_permutexvar_ps(_mm512_srli_epi32(bits[n], j * kBits), values[n]);
        add_products(x + at * Group + 16 * j, x_row, weights, sums);
      }
    }
  }
  for (int m = 0; m < M; ++m)
    for (int n = 0; n < N; ++n) y[m * y_row + n * apart] = _mm512_reduce_add_ps(sums[m][n]);
}

template <int Group, int M, int N>
AVX512_INLINE void columns(const float* codes, int n, const float* x, long x_row,
                           const packed::Rows& w, float* y, long y_row) {
  const int apart = n / N;
  for (int at = 0; at < apart; ++at)
    block<Group, M, N>(codes, x, x_row, w.from(at), apart, y + at, y_row);
  for (int rest = N * apart; rest < n; ++rest)
    block<Group, M, 1>(codes, x, x_row, w.from(rest), 0, y + rest, y_row);
}

template <int Group>
AVX512_INLINE void rows(const float* codes, int m, const float* x, long x_row,
                        const packed::Rows& w, int n, float* y, long y_row) {
  for (; m >= 8; m -= 8, x += 8 * x_row, y += 8 * y_row)
    columns<Group, 8, 2>(codes, n, x, x_row, w, y, y_row);
  for (; m >= 4; m -= 4, x += 4 * x_row, y += 4 * y_row)
    columns<Group, 4, 4>(codes, n, x, x_row, w, y, y_row);
  for (; m >= 2; m -= 2, x += 2 * x_row, y += 2 * y_row)
    columns<Group, 2, 4>(codes, n, x, x_row, w, y, y_row);
  if (m == 1) columns<Group, 1, 8>(codes, n, x, x_row, w, y, y_row);
}

// Sixteen neighbours of B bits, one to a lane; above a number's bits are those of the next.
template <int B>
AVX512_INLINE __m512i codes_of(const std::uint8_t* from) {
  // Each lane has the two halves of a word that its number is in.
  alignas(64) std::uint16_t halves[32];
  alignas(64) int shifts[16];
  for (int lane = 0; lane < 16; ++lane) {
    halves[2 * lane] = static_cast<std::uint16_t>(lane * B / 16);
    halves[2 * lane + 1] = static_cast<std::uint16_t>(lane * B / 16 + 1);
    shifts[lane] = lane * B % 16;
  }
  // No byte beyond them is read, and nothing is put together in memory: a load waits for stores that
  // are narrower than itself.
  __m128i raw;
  if constexpr (B == 4) raw = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(from));
  else raw = _mm_maskz_loadu_epi8(static_cast<__mmask16>((1 << 2 * B) - 1), from);
  const __m512i words =
      _mm512_permutexvar_epi16(_mm512_load_si512(halves), _mm512_castsi128_si512(raw));
  return _mm512_srlv_epi32(words, _mm512_load_si512(shifts));
}

// Weights of a group, sixteen at a time.
//
// Of up to four bits: what each code stands for, as often as it fits into a register.
template <int B>
struct InOne {
  static constexpr int kWidth = B;

  __m512 values;

  AVX512_INLINE InOne(float scale, float bias) {
    alignas(64) float codes[16];
    for (int lane = 0; lane < 16; ++lane) codes[lane] = static_cast<float>(lane % (1 << B));
    values = _mm512_fmadd_ps(_mm512_load_ps(codes), _mm512_set1_ps(scale), _mm512_set1_ps(bias));
  }
  AVX512_INLINE __m512 weights(const std::uint8_t* from) const {
    return _mm512_permutexvar_ps(codes_of<B>(from), values);
  }
};

// Of five bits: in two registers.
struct InTwo {
  static constexpr int kWidth = 5;

  __m512 low, high;

  AVX512_INLINE InTwo(float scale, float bias) {
    const __m512 codes = _mm512_load_ps(kWhole), by = _mm512_set1_ps(scale);
    const __m512 plus = _mm512_set1_ps(bias);
    low = _mm512_fmadd_ps(codes, by, plus);
    high = _mm512_fmadd_ps(_mm512_add_ps(codes, _mm512_set1_ps(16)), by, plus);
  }
  AVX512_INLINE __m512 weights(const std::uint8_t* from) const {
    return _mm512_permutex2var_ps(low, codes_of<5>(from), high);
  }
};

// Of wider numbers: as floats, times the scale, plus the bias.
template <typename Code>
struct Scaled {
  static constexpr int kWidth = Code::kWidth;

  __m512 by, plus;

  AVX512_INLINE Scaled(float scale, float bias)
      : by(_mm512_set1_ps(scale)), plus(_mm512_set1_ps(bias)) {}
  AVX512_INLINE __m512 weights(const std::uint8_t* from) const {
    return _mm512_fmadd_ps(Code::decode(from), by, plus);
  }
};

struct SixBits {
  static constexpr int kWidth = 6;

  static AVX512_INLINE __m512 decode(const std::uint8_t* from) {
    return _mm512_cvtepi32_ps(_mm512_and_si512(codes_of<6>(from), _mm512_set1_epi32(63)));
  }
};

struct EightBits {
  static constexpr int kWidth = 8;

  static AVX512_INLINE __m512 decode(const std::uint8_t* from) {
    return of_words(
        _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from))));
  }
  static AVX512_INLINE __m512 of_words(__m512i wide) { return _mm512_cvtepi32_ps(wide); }
};

struct E4m3 {
  static constexpr int kWidth = 8;

  static AVX512_INLINE __m512 decode(const std::uint8_t* from) {
    return of_words(
        _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from))));
  }
  static AVX512_INLINE __m512 of_words(__m512i wide) {
    const __m512i rest = _mm512_and_si512(wide, _mm512_set1_epi32(0x7f));
    // As if there were no subnormal numbers, which lie twice as far above 2^-7 as they should above 0.
    const __m512 normal = _mm512_castsi512_ps(
        _mm512_add_epi32(_mm512_slli_epi32(rest, 20), _mm512_set1_epi32(120 << 23)));
    const __mmask16 is_small = _mm512_cmplt_epi32_mask(rest, _mm512_set1_epi32(8));
    const __m512 value = _mm512_mask_sub_ps(normal, is_small, _mm512_add_ps(normal, normal),
                                            _mm512_set1_ps(0.015625f));
    const __m512i sign = _mm512_slli_epi32(_mm512_sub_epi32(wide, rest), 24);
    return _mm512_castsi512_ps(_mm512_or_si512(_mm512_castps_si512(value), sign));
  }
};

// The same group of N columns.
template <typename Group, int N>
struct Groups {
  Group of[N];
};

template <typename Group, std::size_t... I>
AVX512_INLINE Groups<Group, sizeof...(I)> groups_of(const float (*scales)[packed::kSegment],
                                                    const float (*biases)[packed::kSegment], int g,
                                                    std::index_sequence<I...>) {
  return {{Group(scales[I][g], biases[I][g])...}};
}

// As `block`, for numbers that are unpacked in the order of the row.
template <typename Group, int M, int N>
AVX512_INLINE void decoded(const float* x, long x_row, const packed::Rows& w, long apart, float* y,
                           long y_row) {
  const std::uint8_t* starts[N];
  for (int n = 0; n < N; ++n) starts[n] = w.words + n * apart * w.words_row;
  __m512 sums[M][N];
  for (int m = 0; m < M; ++m)
    for (int n = 0; n < N; ++n) sums[m][n] = _mm512_setzero_ps();
  for (int first = 0; first < w.groups; first += packed::kSegment) {
    const int count = std::min(packed::kSegment, w.groups - first);
    float scales[N][packed::kSegment], biases[N][packed::kSegment];
    for (int n = 0; n < N; ++n) widen(w, n * apart, first, count, scales[n], biases[n]);
    for (int g = 0; g < count; ++g) {
      const int begin = (first + g) * w.group;
      const auto groups = groups_of<Group>(scales, biases, g, std::make_index_sequence<N>());
      for (int n = 0; n < N; ++n)
        __builtin_prefetch(starts[n] + begin / 8 * Group::kWidth + packed::kWordsAhead);
      for (int i = begin; i < begin + w.group; i += 16) {
        __m512 weights[N];
#pragma GCC unroll 8
        for (int n = 0; n < N; ++n)
          weights[n] = groups.of[n].weights(starts[n] + i / 8 * Group::kWidth);
        add_products(x + i, x_row, weights, sums);
      }
    }
  }
  for (int m = 0; m < M; ++m)
    for (int n = 0; n < N; ++n) y[m * y_row + n * apart] = _mm512_reduce_add_ps(sums[m][n]);
}

template <typename Group, int M, int N>
AVX512_INLINE void decoded_columns(const float* x, long x_row, const packed::Rows& w, int n,
                                   float* y, long y_row) {
  const int apart = n / N;
  for (int at = 0; at < apart; ++at)
    decoded<Group, M, N>(x, x_row, w.from(at), apart, y + at, y_row);
  for (int rest = N * apart; rest < n; ++rest)
    decoded<Group, M, 1>(x, x_row, w.from(rest), 0, y + rest, y_row);
}

template <typename Group>
AVX512 void multiply_decoded(int m, const float* x, long x_row, const packed::Rows& w, int n,
                             float* y, long y_row) {
  for (; m >= 8; m -= 8, x += 8 * x_row, y += 8 * y_row)
    decoded_columns<Group, 8, 2>(x, x_row, w, n, y, y_row);
  for (; m >= 4; m -= 4, x += 4 * x_row, y += 4 * y_row)
    decoded_columns<Group, 4, 4>(x, x_row, w, n, y, y_row);
  for (; m >= 2; m -= 2, x += 2 * x_row, y += 2 * y_row)
    decoded_columns<Group, 2, 4>(x, x_row, w, n, y, y_row);
  if (m == 1) decoded_columns<Group, 1, 8>(x, x_row, w, n, y, y_row);
}

template <int Group>
AVX512 void multiply_whole(int m, const float* x, long x_row, const packed::Rows& w, int n,
                           float* y, long y_row) {
  rows<Group>(kWhole, m, x, x_row, w, n, y, y_row);
}

template <int Group>
AVX512 void multiply_e2m1(int m, const float* x, long x_row, const packed::Rows& w, int n, float* y,
                          long y_row) {
  rows<Group>(kE2m1, m, x, x_row, w, n, y, y_row);
}

// Whole rows, in their own order.
template <typename Group>
AVX512 void unpack(const packed::FloatRows& w, int count, float* to) {
  for (long n = 0; n < count; ++n) {
    const std::uint8_t* from = w.words + n * w.words_row;
    for (int g = 0; g < w.groups; ++g) {
      const Group group(w.scales[n * w.scales_row + g], w.biases[n * w.biases_row + g]);
      // What `count` rows further on will be asked for next.
      for (int at = 0; at < w.group / 8 * Group::kWidth; at += 64)
        __builtin_prefetch(from + at + count * w.words_row);
      for (int i = 0; i < w.group; i += 16, from += 2 * Group::kWidth, to += 16)
        _mm512_storeu_ps(to, group.weights(from));
    }
  }
}

// Sixteen numbers of four bits or eight, one to a word, of which the others are above it.
struct WholeOfFour {
  static constexpr int kWidth = 4;
  static AVX512_INLINE __m512 decode(__m512i bits) {
    return _mm512_permutexvar_ps(bits, _mm512_load_ps(kWhole));
  }
};

struct E2m1OfFour {
  static constexpr int kWidth = 4;
  static AVX512_INLINE __m512 decode(__m512i bits) {
    return _mm512_permutexvar_ps(bits, _mm512_load_ps(kE2m1));
  }
};

template <typename Code>
struct OfEight {
  static constexpr int kWidth = 8;
  static AVX512_INLINE __m512 decode(__m512i bits) {
    return Code::of_words(_mm512_and_si512(bits, _mm512_set1_epi32(255)));
  }
};

// Whole words are turned around, which takes as many instructions as to turn one number of each. A lane
// then holds a row's word, and numbers come out of it one after another.
template <typename Code>
AVX512 void turn_words(const packed::Rows& w, int group, int words, float* to) {
  constexpr int kIn = 32 / Code::kWidth, kRows = 2 * kLanes;
  const int per_group = w.group / kIn;
  for (int row = 0; row < kRows; row += kLanes, to += kLanes) {
    const packed::Rows rows = w.from(row);
    const auto* from =
        reinterpret_cast<const float*>(rows.words + static_cast<long>(group) * per_group * 4);
    alignas(64) float turned[turn::kStretch / kIn * kLanes];
    for (int at = 0; at < words; at += kLanes) {
      const int first = std::min(at, words - kLanes);
      turn::square<Lanes>(from + first, w.words_row / 4, turned + first * kLanes, kLanes);
    }
    // A group of all rows.
    alignas(64) float scales[turn::kStretch / 16][kLanes], biases[turn::kStretch / 16][kLanes];
    for (int i = 0; i < kLanes; ++i) {
      float of_row[packed::kSegment], biases_of_row[packed::kSegment];
      widen(rows, i, group, words / per_group, of_row, biases_of_row);
      for (int g = 0; g < words / per_group; ++g) {
        scales[g][i] = of_row[g];
        biases[g][i] = biases_of_row[g];
      }
    }
    float* at = to;
    for (int word = 0; word < words; ++word) {
      const __m512i bits = _mm512_load_si512(turned + word * kLanes);
      const __m512 by = _mm512_load_ps(scales[word / per_group]);
      const __m512 plus = _mm512_load_ps(biases[word / per_group]);
#pragma GCC unroll 8
      for (int i = 0; i < kIn; ++i, at += kRows) {
        const __m512 code = Code::decode(_mm512_srli_epi32(bits, i * Code::kWidth));
        _mm512_storeu_ps(at, _mm512_fmadd_ps(code, by, plus));
      }
    }
  }
}

// Where the numbers of each register are in the row.
template <int Group>
void arrange(const float* x, int length, float* to) {
  constexpr int kWords = words_of(Group);
  for (int begin = 0; begin < length; begin += Group)
    for (int j = 0; j < Group / 16; ++j)
      for (int lane = 0; lane < 16; ++lane)
        *to++ = x[begin + lane % kWords * 8 + lane / kWords * (Group / 16) + j];
}

bool is_known() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}

}  // namespace

packed::Meeting packed::on_avx512(Code code, int bits, int group) {
  if (!is_known()) return {};
  if (code == Code::kE4m3) return {multiply_decoded<Scaled<E4m3>>, as_they_are};
  if (code == Code::kE2m1) {
    if (group == 16) return {multiply_e2m1<16>, arrange<16>};
    if (group == 32) return {multiply_e2m1<32>, arrange<32>};
    return {};
  }
  switch (bits) {
    case 2: return {multiply_decoded<InOne<2>>, as_they_are};
    case 3: return {multiply_decoded<InOne<3>>, as_they_are};
    case 5: return {multiply_decoded<InTwo>, as_they_are};
    case 6: return {multiply_decoded<Scaled<SixBits>>, as_they_are};
    case 8: return {multiply_decoded<Scaled<EightBits>>, as_they_are};
  }
  if (group == 32) return {multiply_whole<32>, arrange<32>};
  if (group == 64) return {multiply_whole<64>, arrange<64>};
  if (group == 128) return {multiply_whole<128>, arrange<128>};
  return {};
}

packed::Turn packed::turning_on_avx512(Code code, int bits) {
  if (!is_known() || !is_wide()) return nullptr;
  if (code == Code::kE4m3) return turn_words<OfEight<E4m3>>;
  if (code == Code::kE2m1) return turn_words<E2m1OfFour>;
  if (bits == 4) return turn_words<WholeOfFour>;
  return bits == 8 ? turn_words<OfEight<EightBits>> : nullptr;
}

packed::Unpack packed::unpacking_on_avx512(int bits) {
  if (!is_known()) return nullptr;
  switch (bits) {
    case 2: return unpack<InOne<2>>;
    case 3: return unpack<InOne<3>>;
    case 4: return unpack<InOne<4>>;
    case 5: return unpack<InTwo>;
    case 6: return unpack<Scaled<SixBits>>;
    case 8: return unpack<Scaled<EightBits>>;
  }
  return nullptr;
}

#else

packed::Meeting packed::on_avx512(Code, int, int) { return {}; }
packed::Turn packed::turning_on_avx512(Code, int) { return nullptr; }
packed::Unpack packed::unpacking_on_avx512(int) { return nullptr; }

#endif
