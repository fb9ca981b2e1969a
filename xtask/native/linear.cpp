// Products with bf16 weights in fp32: the weights are widened on their way into the registers, so a
// decoded token reads half the memory that fp32 weights would cost it, and gives the same numbers.

#include <algorithm>
#include <stdexcept>

#include "blas.h"
#include "few_rows.h"
#include "op.h"
#include "workers.h"

using namespace vectors;

namespace {

FOR_EACH_PROCESSOR
void widen(const Bf16* from, float* to, long count) {
  long i = 0;
  for (; i + kLanes <= count; i += kLanes) store(to + i, load(from + i));
  for (; i < count; ++i) to[i] = widened(from[i]);
}

struct Widening {
  const Bf16* from;
  float* to;
  long count;
  static constexpr long kChunk = 1 << 16;

  static void do_chunk(const void* context, int chunk) {
    const Widening& it = *static_cast<const Widening*>(context);
    const long at = chunk * kChunk;
    widen(it.from + at, it.to + at, std::min(kChunk, it.count - at));
  }

  void run() const {
    workers::share(static_cast<int>((count + kChunk - 1) / kChunk), do_chunk, this);
  }
};

// y = x·w', w of n × k without gaps.
class WideningProduct : public op::Kernel {
 public:
  void compute(const op::Arrays& inputs, op::array& output) const override {
    const op::Rows x(inputs[0]);
    const auto* w = reinterpret_cast<const Bf16*>(inputs[1].data<mlx::core::bfloat16_t>());
    const int m = x.count(), n = inputs[1].shape(0), k = inputs[1].shape(1);
    auto* y = output.data<float>();
    if (m <= few_rows::kMost) {
      if (m > 0) few_rows::multiply(m, n, k, x.data(), x.row(), w, k, y, n);
      return;
    }
    // Many rows are worth BLAS's way. A panel of weights is widened at a time, small enough to be
    // near by still when it is used.
    constexpr long kPanel = 1 << 20;
    const int panel = static_cast<int>(std::clamp<long>(kPanel / std::max(k, 1), 1, n));
    const std::unique_ptr<float[]> wide(new float[static_cast<long>(panel) * k]);
    for (int from = 0; from < n; from += panel) {
      const int columns = std::min(panel, n - from);
      Widening{w + static_cast<long>(from) * k, wide.get(), static_cast<long>(columns) * k}.run();
      cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, m, columns, k, 1, x.data(),
                  static_cast<int>(x.row()), wide.get(), k, 0, y + from, n);
    }
  }
};

op::array widening_product(const op::array& x, const op::array& weight) {
  using namespace mlx::core;
  const auto composed = [](const op::Arrays& inputs) {
    return matmul(inputs[0], transpose(astype(inputs[1], float32)));
  };
  const bool flat = weight.ndim() == 2 && weight.is_available() && weight.flags().row_contiguous;
  if (x.dtype() != float32 || weight.dtype() != mlx::core::bfloat16 || !flat || x.ndim() == 0 ||
      x.shape(-1) != weight.shape(1))
    throw std::invalid_argument("the product takes fp32 rows, and bf16 weights of the same length in memory");
  Shape shape = x.shape();
  shape.back() = weight.shape(0);
  return op::make("WideningProduct", std::make_shared<WideningProduct>(), composed, shape,
                  {x, weight});
}

}  // namespace

extern "C" const char* mlxgk_widening_product(mlx_array* result, mlx_array x, mlx_array weight) {
  return op::give(result, [&] { return widening_product(op::of(x), op::of(weight)); });
}
