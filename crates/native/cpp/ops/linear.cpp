// Products with bf16 weights in fp32: the weights are widened on their way into the registers, so a
// decoded token reads half the memory that fp32 weights would cost it, and gives the same numbers.

#include <algorithm>
#include <optional>

#include "mlxgk.h"
#include "ops/few_rows.h"
#include "ops/layout.h"
#include "ops/memory.h"
#include "ops/op.h"
#include "ops/workers.h"
#include "shim/blas.h"

using namespace vectors;

namespace {

FOR_EACH_PROCESSOR
void widen(const Bf16* from, float* to, long count) {
  long i = 0;
  for (; i + kLanes <= count; i += kLanes) store(to + i, load(from + i));
  for (; i < count; ++i) to[i] = widened(from[i]);
}

// y = x·w', x of m × k, w of n × k.
class Task {
 public:
  Task(const op::Arrays& inputs, op::array& output)
      : x_(inputs[0]),
        w_(inputs[1]),
        y_(output.data<float>()),
        n_(inputs[1].shape(0)),
        k_(inputs[1].shape(1)),
        m_(static_cast<int>(output.size() / n_)),
        panel_(static_cast<int>(std::clamp<long>(kPanel / std::max(k_, 1), 1, n_))) {
    if (m_ > few_rows::kMost) wide_.emplace(static_cast<long>(panel_) * k_);
  }

  void run() {
    x_.ready();
    w_.ready();
    if (k_ == 0) {
      std::fill_n(y_, static_cast<long>(m_) * n_, 0.0f);
    } else if (m_ <= few_rows::kMost) {
      few_rows::multiply(m_, n_, k_, x_.data(), x_.row(), w_.data(), w_.row(), y_, n_);
    } else {
      many();
    }
  }

 private:
  // Many rows are worth BLAS's way. A panel of weights is widened at a time, small enough to be near
  // by still when it is used.
  void many() {
    for (int from = 0; from < n_; from += panel_) {
      const int columns = std::min(panel_, n_ - from);
      const long rows = std::max(1, kChunk / k_);
      workers::share(workers::chunks(columns, rows), [&](int chunk, int) {
        const long first = chunk * rows, end = std::min<long>(columns, first + rows);
        for (long row = first; row < end; ++row)
          widen(w_.at(from + row), wide_->data() + row * k_, k_);
      });
      cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, m_, columns, k_, 1, x_.data(),
                  static_cast<int>(x_.row()), wide_->data(), k_, 0, y_ + from, n_);
    }
  }

  // Weights in a panel, and in a chunk of work.
  static constexpr long kPanel = 1 << 20;
  static constexpr int kChunk = 1 << 16;

  layout::Rows<float> x_;
  layout::Rows<Bf16> w_;
  float* y_;
  int n_, k_, m_, panel_;
  std::optional<memory::Floats> wide_;
};

op::array widening_product(const op::array& x, const op::array& weight, op::Stream stream) {
  using namespace mlx::core;
  const auto prepare = [](const op::Arrays& inputs, array& output) {
    return op::work<Task>(inputs, output);
  };
  const auto composed = [](const op::Arrays& inputs) {
    return matmul(inputs[0], transpose(astype(inputs[1], float32)));
  };
  Shape shape = x.shape();
  shape.back() = weight.shape(0);
  return op::make("WideningProduct", prepare, composed, shape, {x, weight}, stream);
}

}  // namespace

const char* mlxgk_widening_product(mlx_array* result, mlx_array x, mlx_array weight,
                                   mlx_stream stream) {
  return op::give(result,
                  [&] { return widening_product(op::of(x), op::of(weight), op::of(stream)); });
}
