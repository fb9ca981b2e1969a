// Vectors of sixteen floats, and what is done with them.
//
// They are GCC's own (`vector_size`), so one text serves every processor. A function marked
// FOR_EACH_PROCESSOR is compiled for AVX-512, for AVX2 and for the baseline of x86-64, and the loader
// picks; everything that it calls in here becomes part of it.

#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#define INLINE inline __attribute__((always_inline))

#if defined(__x86_64__) && !defined(FOR_EACH_PROCESSOR)
#define FOR_EACH_PROCESSOR \
  __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
// For a function that is called where `is_wide()`: where sixteen floats fill one register.
#define FOR_WIDE __attribute__((target("arch=x86-64-v4")))
#else
#ifndef FOR_EACH_PROCESSOR
#define FOR_EACH_PROCESSOR
#endif
#define FOR_WIDE
#endif

namespace vectors {

inline bool is_wide() {
#ifdef __x86_64__
  static const bool known =
      __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512vl");
  return known;
#else
  return false;
#endif
}

constexpr int kLanes = 16;
using Lanes = float __attribute__((vector_size(4 * kLanes)));
using Words = std::int32_t __attribute__((vector_size(4 * kLanes)));

// The upper half of a float's bits.
struct Bf16 {
  std::uint16_t bits;
};

template <typename Vector>
INLINE Vector load_as(const void* from) {
  Vector vector;
  std::memcpy(&vector, from, sizeof vector);
  return vector;
}

template <typename Vector, typename Other>
INLINE Vector same_bits(const Other& other) {
  static_assert(sizeof(Vector) == sizeof(Other));
  return load_as<Vector>(&other);
}

INLINE Lanes load(const float* from) { return load_as<Lanes>(from); }

INLINE Lanes load(const Bf16* from) {
  using Halves = std::uint16_t __attribute__((vector_size(2 * kLanes)));
  using Unsigned = std::uint32_t __attribute__((vector_size(4 * kLanes)));
  return same_bits<Lanes>(__builtin_convertvector(load_as<Halves>(from), Unsigned) << 16);
}

INLINE float widened(float value) { return value; }

INLINE float widened(Bf16 value) {
  return same_bits<float>(static_cast<std::uint32_t>(value.bits) << 16);
}

INLINE void store(float* to, const Lanes& lanes) { std::memcpy(to, &lanes, sizeof lanes); }

INLINE Lanes all(float value) { return value - Lanes{}; }

INLINE float sum(const Lanes& lanes) {
  using Half = float __attribute__((vector_size(2 * kLanes)));
  using Quarter = float __attribute__((vector_size(kLanes)));
  const auto* at = reinterpret_cast<const float*>(&lanes);
  const Half half = load_as<Half>(at) + load_as<Half>(at + 8);
  const auto* at_half = reinterpret_cast<const float*>(&half);
  const Quarter quarter = load_as<Quarter>(at_half) + load_as<Quarter>(at_half + 4);
  return (quarter[0] + quarter[2]) + (quarter[1] + quarter[3]);
}

// Sixteen floats in two registers of AVX2. Of a vector that is wider than its registers GCC makes moves
// through memory; these are the same numbers in the same order.
using Half = float __attribute__((vector_size(2 * kLanes)));

struct Halves {
  Half low, high;
};

INLINE Halves operator*(const Halves& a, const Halves& b) { return {a.low * b.low, a.high * b.high}; }
INLINE Halves operator+(const Halves& a, const Halves& b) { return {a.low + b.low, a.high + b.high}; }
INLINE Halves& operator+=(Halves& a, const Halves& b) { return a = a + b; }

INLINE void store(float* to, const Halves& lanes) {
  std::memcpy(to, &lanes.low, sizeof lanes.low);
  std::memcpy(to + 8, &lanes.high, sizeof lanes.high);
}

INLINE float sum(const Halves& lanes) {
  using Quarter = float __attribute__((vector_size(kLanes)));
  const Half half = lanes.low + lanes.high;
  const auto* at = reinterpret_cast<const float*>(&half);
  const Quarter quarter = load_as<Quarter>(at) + load_as<Quarter>(at + 4);
  return (quarter[0] + quarter[2]) + (quarter[1] + quarter[3]);
}

// Sixteen numbers as floats, in either kind of vector.
template <typename Vector, typename Number>
INLINE Vector load_to(const Number* from) {
  if constexpr (sizeof(Number) == 4) {
    if constexpr (std::is_same_v<Vector, Halves>)
      return {load_as<Half>(from), load_as<Half>(from + 8)};
    else return load(from);
  } else {
    using Numbers = std::uint16_t __attribute__((vector_size(kLanes)));
    using Wide = std::uint32_t __attribute__((vector_size(2 * kLanes)));
    const auto half = [](const Number* at) {
      return same_bits<Half>(__builtin_convertvector(load_as<Numbers>(at), Wide) << 16);
    };
    if constexpr (std::is_same_v<Vector, Halves>) return {half(from), half(from + 8)};
    else return load(from);
  }
}

INLINE Lanes larger(const Lanes& a, const Lanes& b) { return a > b ? a : b; }

// e to the power of x, to about one unit in the last place; 0 below the normal numbers.
//
// x = n·ln 2 + r with |r| ≤ ln 2 / 2, a polynomial for e^r (Cephes, expf), and n into the exponent.
INLINE Lanes exp(const Lanes& x) {
  const Lanes lowest = all(-87.33654f), highest = all(88.37626f);
  const Lanes bounded = x > highest ? highest : (x < lowest ? lowest : x);
  // Adding and taking away 1.5 · 2^23 rounds to a whole number.
  const Lanes shifter = all(12582912.0f);
  const Lanes n = (bounded * 1.44269504f + shifter) - shifter;
  const Lanes r = bounded - n * 0.693359375f + n * 2.12194440e-4f;
  Lanes p = all(1.9875691500e-4f);
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * (r * r) + r + 1.0f;
  const Words exponent = (__builtin_convertvector(n, Words) + 127) << 23;
  const Lanes power = p * same_bits<Lanes>(exponent);
  return x < lowest ? Lanes{} : power;
}

}  // namespace vectors
