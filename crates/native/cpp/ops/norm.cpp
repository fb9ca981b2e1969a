// RMS norm, x / sqrt(mean(x²) + ε) · w over the last axis, in one pass where MLX takes eleven.

#include <algorithm>
#include <cmath>

#include "mlxgk.h"
#include "ops/layout.h"
#include "ops/op.h"
#include "ops/vectors.h"
#include "ops/workers.h"

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

class Task {
 public:
  Task(const op::Arrays& inputs, op::array& output, float eps)
      : x_(inputs[0]), weight_(inputs[1]), to_(output.data<float>()), eps_(eps) {}

  void run() {
    x_.ready();
    weight_.ready();
    workers::share(workers::chunks(x_.count(), kRows), [this](int chunk, int) {
      const long length = x_.length(), first = static_cast<long>(chunk) * kRows;
      const long end = std::min(x_.count(), first + kRows);
      for (long row = first; row < end; ++row)
        norm_row(x_.at(row), weight_.data(), to_ + row * length, static_cast<int>(length), eps_);
    });
  }

 private:
  // Rows in a chunk of work.
  static constexpr long kRows = 16;

  layout::Rows<float> x_, weight_;
  float* to_;
  float eps_;
};

op::array rms_norm(const op::array& x, const op::array& weight, float eps, op::Stream stream) {
  using namespace mlx::core;
  const auto prepare = [eps](const op::Arrays& inputs, array& output) {
    return op::work<Task>(inputs, output, eps);
  };
  const auto composed = [eps](const op::Arrays& inputs) {
    const array mean_square = mean(square(inputs[0]), -1, true);
    return inputs[0] * rsqrt(mean_square + array(eps)) * inputs[1];
  };
  return op::make("RmsNorm", prepare, composed, x.shape(), {x, weight}, stream);
}

}  // namespace

const char* mlxgk_rms_norm(mlx_array* result, mlx_array x, mlx_array weight, float eps,
                           mlx_stream stream) {
  return op::give(result, [&] { return rms_norm(op::of(x), op::of(weight), eps, op::of(stream)); });
}
