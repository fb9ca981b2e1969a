// Packed weights as they lie in memory, for the files that multiply with them.

#pragma once

#include <algorithm>

#include "ops/scales.h"

namespace packed {

using namespace vectors;

// What the bits of a number stand for.
enum class Code { kWhole, kE2m1, kE4m3 };

// How many groups' scales are widened at a time.
constexpr int kSegment = 64;

// Bytes that words and scales are fetched ahead. Of scales a row has so few that the processor does not recognise
// what it could fetch itself, and waiting for them took a third of a product's time.
constexpr int kWordsAhead = 2048, kScalesAhead = 256;

// Rows of whole groups; a number is what its bits stand for, times the scale of its group, plus the
// group's bias.
struct Rows {
  const std::uint8_t* words;
  long words_row;  // in bytes, as the other distances
  const std::uint8_t *scales, *biases;
  long scales_row, biases_row;
  scales::Kind kind, biases_kind;
  int groups, group;

  Rows from(long row) const {
    Rows rest = *this;
    rest.words += row * words_row;
    rest.scales += row * scales_row;
    if (biases != nullptr) rest.biases += row * biases_row;
    return rest;
  }

  // Fetches scales and biases that are met some rows after those of this group of the n-th row.
  void fetch_scales(long n, int group) const {
    __builtin_prefetch(scales + n * scales_row + group * scales::bytes_of(kind) + kScalesAhead);
    if (biases != nullptr)
      __builtin_prefetch(biases + n * biases_row + group * scales::bytes_of(biases_kind) + kScalesAhead);
  }

  // The scales and biases of `count` groups of the n-th row. Modes without biases have zeros.
  void widen(long n, int first, int count, float* to_scales, float* to_biases) const {
    fetch_scales(n, first);
    scales::widen(kind, scales + n * scales_row + first * scales::bytes_of(kind), count, to_scales);
    if (biases == nullptr) std::fill_n(to_biases, count, 0.0f);
    else
      scales::widen(biases_kind, biases + n * biases_row + first * scales::bytes_of(biases_kind),
                    count, to_biases);
  }
};

// Such rows whose scales and biases are floats.
struct FloatRows {
  const std::uint8_t* words;
  long words_row;  // in bytes
  const float *scales, *biases;
  long scales_row, biases_row;
  int groups, group;
};

// `count` rows become floats, one behind another.
using Unpack = void (*)(const FloatRows& w, int count, float* to);

// How whole numbers of so many bits do on this processor.
Unpack unpacking(int bits);

inline long as_long(int length) { return length; }

// How a few rows of inputs meet packed weights, in what form they do, and how many floats a row of that form takes.
struct Meeting {
  void (*multiply)(int m, const float* x, long x_row, const Rows& w, int n, float* y, long y_row) =
      nullptr;
  void (*arrange)(const float* x, int length, float* to) = nullptr;
  long (*room)(int length) = as_long;
};

inline void as_they_are(const float* x, int length, float* to) { std::copy_n(x, length, to); }

// Rows of weights become columns of floats, as many as turn.h turns together: `words` words of each, of
// four bytes, from the first of a group on. There are sixteen words at least.
using Turn = void (*)(const Rows& w, int group, int words, float* to);
constexpr int kFewestWords = 16;

// The ways of AVX-512, where the processor knows it; else none. With VNNI there is one for rows of some lengths.
Meeting on_avx512(Code code, int bits, int group);
Meeting on_vnni(Code code, int bits, int group, long length);
Turn turning_on_avx512(Code code, int bits);
Unpack unpacking_on_avx512(int bits);

}  // namespace packed
