// bf16 weights, widened on their way into the registers: a decoded token reads half the memory that
// fp32 weights would cost it, and gives the same numbers.

#include <algorithm>

#include "ops/few_rows.h"
#include "ops/layout.h"
#include "ops/matrix.h"
#include "ops/scales.h"

using namespace vectors;
using scales::Unsigned;

namespace {

FOR_EACH_PROCESSOR
void widen_row(const Bf16* from, float* to, long count) {
  long i = 0;
  for (; i + kLanes <= count; i += kLanes) store(to + i, load_to<Halves>(from + i));
  for (; i < count; ++i) to[i] = widened(from[i]);
}

// Words of two numbers are turned around, which takes half as many instructions as to turn numbers.
FOR_WIDE
void turn_words(const Bf16* from, long from_row, int length, float* to) {
  constexpr int kWidth = 2 * kLanes;
  for (int row = 0; row < kWidth; row += kLanes, from += kLanes * from_row, to += kLanes) {
    for (int done = 0; done < length; done += kWidth) {
      alignas(64) float words[kLanes * kLanes];
      turn::square<Lanes>(reinterpret_cast<const float*>(from + done), from_row / 2, words, kLanes);
      for (int i = 0; i < kLanes; ++i) {
        const auto both = load_as<Unsigned>(words + i * kLanes);
        const Unsigned first = both << 16, second = both & 0xffff0000u;
        std::memcpy(to + (done + 2 * i) * kWidth, &first, sizeof first);
        std::memcpy(to + (done + 2 * i + 1) * kWidth, &second, sizeof second);
      }
    }
  }
}

class OfBf16 : public matrix::Matrix {
 public:
  explicit OfBf16(const op::array& weight) : weight_(weight) {}

  void ready() override { weight_.ready(); }

  long room() const override { return weight_.length(); }

  void arrange(const float* x, float* to) const override { std::copy_n(x, weight_.length(), to); }

  void multiply(int m, const float* x, long x_row, long from, int count, float* y,
                long y_row) const override {
    few_rows::multiply_alone(m, count, static_cast<int>(weight_.length()), x, x_row,
                             weight_.at(from), weight_.row(), y, y_row);
  }

  void turn(long row, int count, int from, int length, float* scratch, float* to) const override {
    const bool has_words = weight_.row() % 2 == 0 && length % turn::width() == 0;
    if (is_wide() && count == turn::width() && has_words)
      return turn_words(weight_.at(row) + from, weight_.row(), length, to);
    Matrix::turn(row, count, from, length, scratch, to);
  }

 private:
  void widen(long row, int from, int length, float* to) const override {
    widen_row(weight_.at(row) + from, to, length);
  }

  layout::Rows<Bf16> weight_;
};

}  // namespace

std::unique_ptr<matrix::Matrix> matrix::of_bf16(const op::array& weight) {
  return std::make_unique<OfBf16>(weight);
}
