// Few rows of inputs and packed weights of four or eight bits, on processors with AVX-512 VNNI.
//
// A product of packed weights is one of whole numbers, times the scales of its groups. An instruction of VNNI adds up
// four products of bytes in each of sixteen lanes, which is four times what one for floats does, and it takes codes as
// they lie. Inputs are floats, so they become whole numbers first, once per product: those of a group share a power of
// two, by which the largest fills 22 or 23 bits and a sign. Such a number is three bytes, so it takes three instructions;
// the sums are exact as long as they are whole. So a product is off by 2^-23 of its group's largest input at most, times
// the sum of the group's weights: about what sums in fp32 lose, unless one input outweighs the rest of its group by far.
//
// Σ (scale · code + bias) · x = scale · Σ (code - middle) · x + (bias + middle · scale) · Σ x for every group, with the
// middle of the codes, since sums of signed numbers stay small.

#include "ops/packed.h"

#ifdef __x86_64__

// The compiler's own functions begin with what is not set.
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#include <immintrin.h>

#define VNNI __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")))
#define VNNI_INLINE VNNI INLINE

using namespace vectors;

namespace {

// Bytes in a register.
constexpr int kRegister = 64;

// The codes that a register of weights holds: of four bits, those at even places and those at odd ones.
template <int Bits>
struct Codes;

template <>
struct Codes<4> {
  static constexpr int kCount = 128, kMiddle = 8, kParts = 1;

  __m512i even, odd;

  VNNI_INLINE explicit Codes(const std::uint8_t* from) {
    const __m512i low = _mm512_set1_epi8(15);
    __m512i both = _mm512_loadu_si512(from);
    // Once: the compiler would keep it in memory of its own and load it twice.
    asm("" : "+v"(both));
    even = _mm512_and_si512(both, low);
    odd = _mm512_and_si512(_mm512_srli_epi16(both, 4), low);
  }
  VNNI_INLINE Codes() : even(_mm512_set1_epi8(kMiddle)), odd(even) {}

  // Puts a byte of 32 inputs where it is met: those at even places, and those at odd ones.
  static VNNI_INLINE void put(const __m512i (&pair)[2], int at, std::int8_t* to) {
    const __m128i first = _mm512_cvtepi32_epi8(pair[0]), second = _mm512_cvtepi32_epi8(pair[1]);
    const __m128i low = _mm_set1_epi16(255);
    const __m128i evens = _mm_packus_epi16(_mm_and_si128(first, low), _mm_and_si128(second, low));
    const __m128i odds = _mm_packus_epi16(_mm_srli_epi16(first, 8), _mm_srli_epi16(second, 8));
    _mm_store_si128(reinterpret_cast<__m128i*>(to + at / 2), evens);
    _mm_store_si128(reinterpret_cast<__m128i*>(to + kRegister + at / 2), odds);
  }
};

template <>
struct Codes<8> {
  static constexpr int kCount = 64, kMiddle = 128, kParts = 2;

  __m512i all;

  VNNI_INLINE explicit Codes(const std::uint8_t* from) : all(_mm512_loadu_si512(from)) {}
  VNNI_INLINE Codes() : all(_mm512_set1_epi8(static_cast<char>(kMiddle))) {}

  static VNNI_INLINE void put(const __m512i (&pair)[2], int at, std::int8_t* to) {
    for (int i = 0; i < 2; ++i)
      _mm_store_si128(reinterpret_cast<__m128i*>(to + at + 16 * i), _mm512_cvtepi32_epi8(pair[i]));
  }
};

// Adds the products of N columns' codes with bytes of inputs.
template <int N>
VNNI_INLINE void add_products(const Codes<4> (&codes)[N], const std::int8_t* inputs, __m512i (&sums)[N]) {
  const __m512i evens = _mm512_load_si512(inputs), odds = _mm512_load_si512(inputs + kRegister);
#pragma GCC unroll 8
  for (int n = 0; n < N; ++n) sums[n] = _mm512_dpbusd_epi32(sums[n], codes[n].even, evens);
#pragma GCC unroll 8
  for (int n = 0; n < N; ++n) sums[n] = _mm512_dpbusd_epi32(sums[n], codes[n].odd, odds);
}

template <int N>
VNNI_INLINE void add_products(const Codes<8> (&codes)[N], const std::int8_t* inputs, __m512i (&sums)[N]) {
  const __m512i all = _mm512_load_si512(inputs);
#pragma GCC unroll 8
  for (int n = 0; n < N; ++n) sums[n] = _mm512_dpbusd_epi32(sums[n], codes[n].all, all);
}

// A row of inputs as it is met. For every register of codes: the highest bytes, the middle ones, the lowest, and what is
// taken away from each of the parts that sums have, the middle code times the lane's inputs. Behind all of them the
// groups' powers of two, and the groups' sums.
template <int Bits>
constexpr int kStep = 3 * Codes<Bits>::kCount + Codes<Bits>::kParts * kRegister;

template <int Bits>
constexpr long steps(long length) { return length / Codes<Bits>::kCount * kStep<Bits>; }

template <int Bits, int Group>
long room(int length) { return steps<Bits>(length) / 4 + 2l * length / Group; }

// Σ code · input in each lane, for N columns: the sums of the highest bytes are moved up by eight bits before those of
// the next. With codes of eight bits those of the lowest bytes are a part of their own, since all together take more
// than 32 bits. Columns take each step together, since a step waits for the one before it.
template <int Bits, int N>
VNNI_INLINE void add_up(const Codes<Bits> (&codes)[N], const std::int8_t* inputs,
                        __m512i (&sums)[Codes<Bits>::kParts][N]) {
  constexpr int kCount = Codes<Bits>::kCount, kLast = Codes<Bits>::kParts - 1;
#pragma GCC unroll 8
  for (int n = 0; n < N; ++n) sums[0][n] = _mm512_setzero_si512();
  add_products(codes, inputs, sums[0]);
#pragma GCC unroll 8
  for (int n = 0; n < N; ++n) sums[0][n] = _mm512_slli_epi32(sums[0][n], 8);
  add_products(codes, inputs + kCount, sums[0]);
#pragma GCC unroll 8
  for (int n = 0; n < N; ++n)
    sums[kLast][n] = kLast == 0 ? _mm512_slli_epi32(sums[0][n], 8) : _mm512_setzero_si512();
  add_products(codes, inputs + 2 * kCount, sums[kLast]);
}

// Σ (code - middle) · input in each lane, for N columns.
template <int Bits, int N>
VNNI_INLINE void products(const Codes<Bits> (&codes)[N], const std::int8_t* inputs, __m512 (&to)[N]) {
  constexpr int kParts = Codes<Bits>::kParts;
  __m512i sums[kParts][N];
  add_up(codes, inputs, sums);
  __m512 part[kParts][N];
#pragma GCC unroll 8
  for (int i = 0; i < kParts; ++i) {
    const __m512i middle = _mm512_load_si512(inputs + 3 * Codes<Bits>::kCount + i * kRegister);
#pragma GCC unroll 8
    for (int n = 0; n < N; ++n) part[i][n] = _mm512_cvtepi32_ps(_mm512_sub_epi32(sums[i][n], middle));
  }
#pragma GCC unroll 8
  for (int n = 0; n < N; ++n) {
    if constexpr (kParts == 1) to[n] = part[0][n];
    else to[n] = _mm512_fmadd_ps(part[0][n], _mm512_set1_ps(256), part[1][n]);
  }
}

VNNI_INLINE __m512 of_exponent(int exponent) {
  return _mm512_castsi512_ps(_mm512_set1_epi32((exponent + 127) << 23));
}

// The exponent of the power of two that a group's inputs are multiplied by, so that the largest byte is 127 at most.
// Numbers below 2^-100 count as that.
VNNI_INLINE int exponent_for(float largest) {
  std::int32_t bits;
  std::memcpy(&bits, &largest, sizeof bits);
  const int exponent = 22 - std::max((bits >> 23) - 127, -100);
  const float power = _mm512_cvtss_f32(of_exponent(exponent));
  return largest * power > 127 * 65536 ? exponent - 1 : exponent;
}

template <int Bits, int Group>
VNNI void arrange(const float* x, int length, float* to) {
  constexpr int kCount = Codes<Bits>::kCount;
  auto* planes = reinterpret_cast<std::int8_t*>(to);
  float* powers = to + steps<Bits>(length) / 4;
  float* group_sums = powers + length / Group;
  const __m512i half = _mm512_set1_epi32(128);
  for (int begin = 0; begin < length; begin += Group) {
    __m512 largest = _mm512_setzero_ps();
    __mmask16 is_odd = 0;
    for (int i = begin; i < begin + Group; i += 16) {
      const __m512 size = _mm512_abs_ps(_mm512_loadu_ps(x + i));
      is_odd |= _mm512_cmp_ps_mask(size, _mm512_set1_ps(__builtin_inff()), _CMP_NLT_UQ);
      largest = _mm512_max_ps(largest, size);
    }
    // With a number that is none, or infinite, so is the product.
    const int exponent = is_odd != 0 ? 0 : exponent_for(_mm512_reduce_max_ps(largest));
    const __m512 power = of_exponent(exponent);
    __m512i sum = _mm512_setzero_si512();
    for (int i = begin; i < begin + Group; i += 32) {
      __m512i pair[2];
      for (int j = 0; j < 2; ++j) {
        pair[j] = _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_loadu_ps(x + i + 16 * j), power));
        sum = _mm512_add_epi32(sum, pair[j]);
      }
      // From the lowest byte to the highest, each between -128 and 127.
      for (int plane = 2; plane >= 0; --plane) {
        Codes<Bits>::put(pair, i % kCount, planes + i / kCount * kStep<Bits> + plane * kCount);
        for (__m512i& it : pair) it = _mm512_srai_epi32(_mm512_add_epi32(it, half), 8);
      }
    }
    const float back = is_odd != 0 ? __builtin_nanf("") : _mm512_cvtss_f32(of_exponent(-exponent));
    // NaN and infinity have become whole numbers whose sum overflows.
    const int total = is_odd != 0 ? 0 : _mm512_reduce_add_epi32(sum);
    powers[begin / Group] = back;
    group_sums[begin / Group] = static_cast<float>(total) * back;
  }
  for (long step = 0; step < steps<Bits>(length); step += kStep<Bits>) {
    __m512i middle[Codes<Bits>::kParts][1];
    add_up({Codes<Bits>()}, planes + step, middle);
    for (int i = 0; i < Codes<Bits>::kParts; ++i)
      _mm512_store_si512(planes + step + 3 * kCount + i * kRegister, middle[i][0]);
  }
}

// Up to sixteen scales or biases; zeros for those that are not there.
VNNI_INLINE __m512 some(scales::Kind kind, const std::uint8_t* from, int first, __mmask16 there) {
  if (kind == scales::Kind::kFloat) return _mm512_maskz_loadu_ps(there, from + 4l * first);
  const __m256i bits = _mm256_maskz_loadu_epi16(there, from + 2l * first);
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
}

// N columns of M rows, `apart` from each other: see few_rows.cpp. Every sum has one accumulator, and its terms come in
// one order, whatever is beside it.
template <int Bits, int Group, int M, int N>
VNNI_INLINE void block(const float* x, long x_row, const packed::Rows& w, long apart, float* y,
                       long y_row) {
  constexpr int kCount = Codes<Bits>::kCount, kAtOnce = 16;
  const long length = static_cast<long>(w.groups) * Group;
  const __m512 middle = _mm512_set1_ps(Codes<Bits>::kMiddle);
  const auto inputs = [&](int m) { return reinterpret_cast<const std::int8_t*>(x + m * x_row); };
  const auto powers = [&](int m) { return x + m * x_row + steps<Bits>(length) / 4; };
  // The groups of a register's lanes.
  const __m512i lanes = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
  __m512 sums[M][N];
  for (int m = 0; m < M; ++m)
    for (int n = 0; n < N; ++n) sums[m][n] = _mm512_setzero_ps();
  for (int first = 0; first < w.groups; first += kAtOnce) {
    const int count = std::min(kAtOnce, w.groups - first);
    const auto there = static_cast<__mmask16>((1u << count) - 1);
    __m512 scales[M][N];
#pragma GCC unroll 8
    for (int n = 0; n < N; ++n) {
      const packed::Rows row = w.from(n * apart);
      row.fetch_scales(0, first);
      const __m512 scale = some(w.kind, row.scales, first, there);
      const __m512 bias = some(w.biases_kind, row.biases, first, there);
      const __m512 plus = _mm512_fmadd_ps(middle, scale, bias);
#pragma GCC unroll 8
      for (int m = 0; m < M; ++m) {
        const float* at = powers(m) + first;
        scales[m][n] = _mm512_mul_ps(scale, _mm512_maskz_loadu_ps(there, at));
        sums[m][n] = _mm512_fmadd_ps(plus, _mm512_maskz_loadu_ps(there, at + w.groups), sums[m][n]);
      }
    }
    const int begin = first * Group, end = begin + count * Group;
    for (int at = begin; at < end; at += kCount) {
      const __m512i group = _mm512_srli_epi32(
          _mm512_add_epi32(_mm512_mullo_epi32(lanes, _mm512_set1_epi32(kCount / 16)),
                           _mm512_set1_epi32(at - begin)),
          __builtin_ctz(Group));
      const long step = static_cast<long>(at / kCount) * kStep<Bits>;
      Codes<Bits> codes[N];
#pragma GCC unroll 8
      for (int n = 0; n < N; ++n) {
        const std::uint8_t* from = w.words + n * apart * w.words_row + at / 8 * Bits;
        codes[n] = Codes<Bits>(from);
        // Rows of so few bytes end before the processor has seen enough of them.
        __builtin_prefetch(from + packed::kWordsAhead);
      }
#pragma GCC unroll 8
      for (int m = 0; m < M; ++m) {
        __m512 found[N];
        products(codes, inputs(m) + step, found);
#pragma GCC unroll 8
        for (int n = 0; n < N; ++n)
          sums[m][n] = _mm512_fmadd_ps(found[n], _mm512_permutexvar_ps(group, scales[m][n]), sums[m][n]);
      }
    }
  }
  for (int m = 0; m < M; ++m)
    for (int n = 0; n < N; ++n) y[m * y_row + n * apart] = _mm512_reduce_add_ps(sums[m][n]);
}

template <int Bits, int Group, int M, int N>
VNNI_INLINE void columns(const float* x, long x_row, const packed::Rows& w, int n, float* y,
                         long y_row) {
  const int apart = n / N;
  for (int at = 0; at < apart; ++at)
    block<Bits, Group, M, N>(x, x_row, w.from(at), apart, y + at, y_row);
  for (int rest = N * apart; rest < n; ++rest)
    block<Bits, Group, M, 1>(x, x_row, w.from(rest), 0, y + rest, y_row);
}

// Four columns at a time, for one row as well: see add_up.
template <int Bits, int Group>
VNNI void multiply(int m, const float* x, long x_row, const packed::Rows& w, int n, float* y,
                   long y_row) {
  for (; m >= 4; m -= 4, x += 4 * x_row, y += 4 * y_row)
    columns<Bits, Group, 4, 4>(x, x_row, w, n, y, y_row);
  for (; m >= 2; m -= 2, x += 2 * x_row, y += 2 * y_row)
    columns<Bits, Group, 2, 4>(x, x_row, w, n, y, y_row);
  if (m == 1) columns<Bits, Group, 1, 4>(x, x_row, w, n, y, y_row);
}

bool is_known() {
  return is_wide() && __builtin_cpu_supports("avx512vnni");
}

template <int Bits>
packed::Meeting meeting(int group) {
  switch (group) {
    case 32: return {multiply<Bits, 32>, arrange<Bits, 32>, room<Bits, 32>};
    case 64: return {multiply<Bits, 64>, arrange<Bits, 64>, room<Bits, 64>};
    case 128: return {multiply<Bits, 128>, arrange<Bits, 128>, room<Bits, 128>};
  }
  return {};
}

}  // namespace

packed::Meeting packed::on_vnni(Code code, int bits, int group, long length) {
  if (!is_known() || code != Code::kWhole || length % Codes<4>::kCount != 0) return {};
  if (bits == 4) return meeting<4>(group);
  return bits == 8 ? meeting<8>(group) : Meeting{};
}

#else

packed::Meeting packed::on_vnni(Code, int, int, long) { return {}; }

#endif
