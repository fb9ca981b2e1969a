// RMS norm, x / sqrt(mean(x²) + ε) · w over the last axis, in one pass where MLX takes eleven.

#include <algorithm>
#include <cmath>

#include "mlxgk.h"
#include "ops/layout.h"
#include "ops/memory.h"
#include "ops/norm.h"
#include "ops/op.h"
#include "ops/vectors.h"
#include "ops/workers.h"

using namespace vectors;

namespace {

// 1 / sqrt(mean(x²) + ε)
INLINE float inverse_root(float squares, int count, float eps) {
  return 1.0f / std::sqrt(squares / static_cast<float>(count) + eps);
}

FOR_EACH_PROCESSOR
void norm_row(const float* x, const float* weight, float* to, int count, float eps) {
  Lanes squares{};
  int i = 0;
  for (; i + kLanes <= count; i += kLanes) squares += load(x + i) * load(x + i);
  float total = sum(squares);
  for (int j = i; j < count; ++j) total += x[j] * x[j];
  const float scale = inverse_root(total, count, eps);
  for (i = 0; i + kLanes <= count; i += kLanes)
    store(to + i, load(x + i) * scale * load(weight + i));
  for (; i < count; ++i) to[i] = x[i] * scale * weight[i];
}

// The gradient by a row from that by its norm, `by`, and what the row adds to that by the weight. With
// s = 1 / sqrt(mean(x²) + ε) these are s · (by · w - x · s² · mean(by · w · x)) and by · x · s.
FOR_EACH_PROCESSOR
void descend_row(const float* x, const float* weight, const float* by, float* by_x,
                 float* by_weight, int count, float eps) {
  Lanes squares{}, products{};
  int i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    const Lanes it = load(x + i);
    squares += it * it;
    products += load(by + i) * load(weight + i) * it;
  }
  float square = sum(squares), product = sum(products);
  for (int j = i; j < count; ++j) {
    square += x[j] * x[j];
    product += by[j] * weight[j] * x[j];
  }
  const float scale = inverse_root(square, count, eps);
  const float share = scale * scale * product / static_cast<float>(count);
  for (i = 0; i + kLanes <= count; i += kLanes) {
    const Lanes it = load(x + i), by_it = load(by + i);
    store(by_x + i, scale * (by_it * load(weight + i) - it * share));
    store(by_weight + i, load(by_weight + i) + by_it * it * scale);
  }
  for (; i < count; ++i) {
    by_x[i] = scale * (by[i] * weight[i] - x[i] * share);
    by_weight[i] += by[i] * x[i] * scale;
  }
}

class Task {
 public:
  Task(const op::Arrays& inputs, op::Arrays& outputs, float eps)
      : x_(inputs[0]), weight_(inputs[1]), to_(outputs[0].data<float>()), eps_(eps) {}

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

// The gradients by rows and weight. What the rows of a part add to the latter is summed up by itself;
// the parts follow from the number of rows alone, so the result does not depend on that of the threads.
class Descent {
 public:
  Descent(const op::Arrays& inputs, op::Arrays& outputs, float eps)
      : x_(inputs[0]),
        weight_(inputs[1]),
        by_(inputs[2]),
        by_x_(outputs[0].data<float>()),
        by_weight_(outputs[1].data<float>()),
        eps_(eps),
        rows_(std::max(kRows, (x_.count() + kParts - 1) / kParts)),
        parts_(workers::chunks(x_.count(), rows_)),
        sums_(parts_ * x_.length()) {}

  void run() {
    x_.ready();
    weight_.ready();
    by_.ready();
    const long length = x_.length();
    workers::share(parts_, [&](int part, int) {
      float* sums = sums_.data() + part * length;
      std::fill_n(sums, length, 0.0f);
      const long first = part * rows_, end = std::min(x_.count(), first + rows_);
      for (long row = first; row < end; ++row)
        descend_row(x_.at(row), weight_.data(), by_.at(row), by_x_ + row * length, sums,
                    static_cast<int>(length), eps_);
    });
    std::fill_n(by_weight_, length, 0.0f);
    for (int part = 0; part < parts_; ++part)
      for (long i = 0; i < length; ++i) by_weight_[i] += sums_.data()[part * length + i];
  }

 private:
  // The fewest rows in a part, and the most parts.
  static constexpr long kRows = 16, kParts = 64;

  layout::Rows<float> x_, weight_, by_;
  float *by_x_, *by_weight_;
  float eps_;
  long rows_;
  int parts_;
  memory::Floats sums_;
};

}  // namespace

void norm::row(const float* x, const float* weight, float* to, int count, float eps) {
  norm_row(x, weight, to, count, eps);
}

op::array norm::rms(const op::array& x, const op::array& weight, float eps, op::Stream stream) {
  using namespace mlx::core;
  const auto composed = [eps](const op::Arrays& inputs) {
    const array mean_square = mean(square(inputs[0]), -1, true);
    return op::Arrays{inputs[0] * rsqrt(mean_square + array(eps)) * inputs[1]};
  };
  op::Gradient gradient{"RmsNormGradient", 2, op::task<Descent>(eps)};
  return op::make({"RmsNorm", {x.shape()}, op::task<Task>(eps), composed, gradient}, {x, weight},
                  stream);
}

const char* mlxgk_rms_norm(mlx_array* result, mlx_array x, mlx_array weight, float eps,
                           mlx_stream stream) {
  return op::give(result, [&] { return norm::rms(op::of(x), op::of(weight), eps, op::of(stream)); });
}
