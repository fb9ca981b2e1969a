// bf16 weights, widened on their way into the registers: a decoded token reads half the memory that
// fp32 weights would cost it, and gives the same numbers.

#include <algorithm>

#include "ops/few_rows.h"
#include "ops/layout.h"
#include "ops/matrix.h"

using namespace vectors;

namespace {

FOR_EACH_PROCESSOR
void widen_row(const Bf16* from, float* to, long count) {
  long i = 0;
  for (; i + kLanes <= count; i += kLanes) store(to + i, load_to<Halves>(from + i));
  for (; i < count; ++i) to[i] = widened(from[i]);
}

class OfBf16 : public matrix::Matrix {
 public:
  explicit OfBf16(const op::array& weight) : weight_(weight) {}

  void ready() override { weight_.ready(); }

  void arrange(const float* x, float* to) const override { std::copy_n(x, weight_.length(), to); }

  void multiply(int m, const float* x, long x_row, long from, int count, float* y,
                long y_row) const override {
    few_rows::multiply_alone(m, count, static_cast<int>(weight_.length()), x, x_row,
                             weight_.at(from), weight_.row(), y, y_row);
  }

  void widen(long row, float* to) const override {
    widen_row(weight_.at(row), to, weight_.length());
  }

 private:
  layout::Rows<Bf16> weight_;
};

}  // namespace

std::unique_ptr<matrix::Matrix> matrix::of_bf16(const op::array& weight) {
  return std::make_unique<OfBf16>(weight);
}
