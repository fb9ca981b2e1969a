// The scales of packed numbers.

#pragma once

#include "ops/vectors.h"

namespace scales {

using namespace vectors;

using Bytes = std::uint8_t __attribute__((vector_size(kLanes)));
using Unsigned = std::uint32_t __attribute__((vector_size(4 * kLanes)));

// Bytes as words. In two steps, for which compilers know instructions.
INLINE Unsigned widened(const Bytes& bytes) {
  using Halves = std::uint16_t __attribute__((vector_size(2 * kLanes)));
  return __builtin_convertvector(__builtin_convertvector(bytes, Halves), Unsigned);
}

// How scales are stored: as floats, as bf16, as fp16, as powers of two, as e4m3 numbers.
enum class Kind { kFloat, kBf16, kF16, kE8m0, kE4m3 };

inline int bytes_of(Kind kind) {
  return kind == Kind::kFloat ? 4 : kind == Kind::kBf16 || kind == Kind::kF16 ? 2 : 1;
}

// A sign, five bits of exponent and ten of mantissa.
INLINE Lanes of_f16(const std::uint16_t* from) {
  using Halves = std::uint16_t __attribute__((vector_size(2 * kLanes)));
  const Unsigned wide = __builtin_convertvector(load_as<Halves>(from), Unsigned);
  const Unsigned exponent = wide & 0x7c00, rest = wide & 0x7fff;
  // Infinity and NaN keep the largest exponent; subnormal numbers are multiples of 2^-24.
  const Unsigned large = (rest << 13) + (exponent == 0x7c00 ? Unsigned{} + (224u << 23)
                                                            : Unsigned{} + (112u << 23));
  const Lanes small = __builtin_convertvector(same_bits<Words>(rest), Lanes) * 0x1p-24f;
  const Unsigned value = exponent == 0 ? same_bits<Unsigned>(small) : large;
  return same_bits<Lanes>(value | (wide & 0x8000) << 16);
}

// 2^(bits - 127).
INLINE Lanes of_e8m0(const Bytes& bits) {
  const Unsigned wide = widened(bits);
  const Unsigned zero = Unsigned{} + 0x400000u;
  return same_bits<Lanes>(wide == 0 ? zero : wide << 23);
}

// A sign, four bits of exponent and three of mantissa.
template <typename Floats, typename Wide>
INLINE Floats of_e4m3_as(const Wide& wide) {
  const Wide rest = wide & 0x7f;
  // As if there were no subnormal numbers, which lie twice as far above 2^-7 as they should above 0.
  const Floats normal = same_bits<Floats>((rest << 20) + (120u << 23));
  const Floats small = normal * 2.0f - 0.015625f;
  const Floats value = rest < 8 ? small : normal;
  return same_bits<Floats>(same_bits<Wide>(value) | (wide & 0x80) << 24);
}

INLINE Lanes of_e4m3(const Bytes& bits) { return of_e4m3_as<Lanes>(widened(bits)); }

// `count` scales as floats.
void widen(Kind kind, const std::uint8_t* from, int count, float* to);

}  // namespace scales
