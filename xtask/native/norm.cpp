// RMS norm, x / sqrt(mean(x²) + ε) · w over the last axis, in one pass where MLX takes eleven.

#include <cmath>
#include <stdexcept>

#include "op.h"
#include "vectors.h"
#include "workers.h"

using namespace vectors;

namespace {

FOR_EACH_PROCESSOR
void norm_row(const float* x, const float* weight, float* to, int count, float eps) {
  Lanes squares{};
  int i = 0;
  for (; i + kLanes <= count; i += kLanes) squares += load(x + i) * load(x + i);
  float total = sum(squares);
  for (int j = i; j < count; ++j) total += x[j] * x[j];
  const float scale = 1.0f / std::sqrt(total / static_cast<float>(count) + eps);
  for (i = 0; i + kLanes <= count; i += kLanes)
    store(to + i, load(x + i) * scale * load(weight + i));
  for (; i < count; ++i) to[i] = x[i] * scale * weight[i];
}

class RmsNorm : public op::Kernel {
 public:
  explicit RmsNorm(float eps) : eps_(eps) {}

  void compute(const op::Arrays& inputs, op::array& output) const override {
    const op::Rows x(inputs[0]), weight(inputs[1]);
    const Work work{x, weight.data(), output.data<float>(), eps_};
    workers::share((x.count() + kRows - 1) / kRows, do_chunk, &work);
  }

 private:
  // Rows in a chunk of work.
  static constexpr int kRows = 16;

  struct Work {
    const op::Rows& x;
    const float* weight;
    float* to;
    float eps;
  };

  static void do_chunk(const void* context, int chunk) {
    const Work& it = *static_cast<const Work*>(context);
    const long length = it.x.length();
    const int end = std::min(it.x.count(), (chunk + 1) * kRows);
    for (long row = static_cast<long>(chunk) * kRows; row < end; ++row)
      norm_row(it.x.data() + row * it.x.row(), it.weight, it.to + row * length,
               static_cast<int>(length), it.eps);
  }

  float eps_;
};

op::array rms_norm(const op::array& x, const op::array& weight, float eps) {
  using namespace mlx::core;
  const auto composed = [eps](const op::Arrays& inputs) {
    const array mean_square = mean(square(inputs[0]), -1, true);
    return inputs[0] * rsqrt(mean_square + array(eps)) * inputs[1];
  };
  if (x.dtype() != float32 || weight.dtype() != float32 || x.ndim() == 0 || weight.ndim() != 1 ||
      x.shape(-1) != weight.shape(0))
    throw std::invalid_argument("the norm takes fp32 rows and one fp32 weight per column");
  return op::make("RmsNorm", std::make_shared<RmsNorm>(eps), composed, x.shape(), {x, weight});
}

}  // namespace

extern "C" const char* mlxgk_rms_norm(mlx_array* result, mlx_array x, mlx_array weight, float eps) {
  return op::give(result, [&] { return rms_norm(op::of(x), op::of(weight), eps); });
}
