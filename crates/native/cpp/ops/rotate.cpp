// Rotary positions: x · cos + rotate_half(x) · sin on the leading dimensions of every head.

#include <algorithm>

#include "mlxgk.h"
#include "ops/layout.h"
#include "ops/op.h"
#include "ops/rotate.h"
#include "ops/vectors.h"
#include "ops/workers.h"

using namespace vectors;

namespace {

// `minus` and `plus` are the sines, with a minus sign and without.
FOR_EACH_PROCESSOR
void rotate_head(const float* x, const float* cos, const float* minus, const float* plus, float* to,
                 int half) {
  int i = 0;
  for (; i + kLanes <= half; i += kLanes) {
    const Lanes first = load(x + i), second = load(x + half + i), turn = load(cos + i);
    store(to + i, first * turn + second * load(minus + i));
    store(to + half + i, second * turn + first * load(plus + i));
  }
  for (; i < half; ++i) {
    to[i] = x[i] * cos[i] + x[half + i] * minus[i];
    to[half + i] = x[half + i] * cos[i] + x[i] * plus[i];
  }
}

// The gradient by `x` is that by the result, turned back: with the other sines.
class Task {
 public:
  Task(const op::Arrays& inputs, op::Arrays& outputs, bool back)
      : x_(inputs[back ? 3 : 0]),
        cos_(inputs[1]),
        sin_(inputs[2]),
        table_per_row_(inputs[1].shape(0) > 1),
        back_(back),
        to_(outputs[0].data<float>()) {}

  void run() {
    x_.ready();
    cos_.ready();
    sin_.ready();
    const long heads = x_.shape(1), tokens = x_.shape(2), dim = x_.shape(3), half = cos_.length();
    workers::share(static_cast<int>(x_.shape(0) * heads), [&](int chunk, int) {
      const long batch = chunk / heads, head = chunk % heads;
      for (long token = 0; token < tokens; ++token) {
        const float* x = x_.at(batch, head, token);
        float* to = to_ + (chunk * tokens + token) * dim;
        const long angle = (table_per_row_ ? batch * tokens : 0) + token;
        const float *minus = sin_.at(2 * angle), *plus = sin_.at(2 * angle + 1);
        rotate_head(x, cos_.at(angle), back_ ? plus : minus, back_ ? minus : plus, to,
                    static_cast<int>(half));
        std::copy(x + 2 * half, x + dim, to + 2 * half);
      }
    });
  }

 private:
  layout::Heads<float> x_;
  layout::Rows<float> cos_, sin_;
  bool table_per_row_, back_;
  float* to_;
};

}  // namespace

void rotate::head(const float* x, const float* cos, const float* minus, const float* plus, float* to,
                  int half) {
  rotate_head(x, cos, minus, plus, to, half);
}

op::array rotate::turn(const op::array& x, const op::array& cos, const op::array& sin,
                       op::Stream stream) {
  using namespace mlx::core;
  const auto composed = [](const op::Arrays& inputs) {
    const int half = inputs[1].shape(-1), dim = inputs[0].shape(-1);
    const op::Arrays parts = split(inputs[0], Shape{half, 2 * half}, -1);
    const array cos = squeeze(inputs[1], 3);
    const op::Arrays sins = split(inputs[2], 2, 3);
    const array minus = squeeze(sins[0], 3), plus = squeeze(sins[1], 3);
    op::Arrays turned{parts[0] * cos + parts[1] * minus, parts[1] * cos + parts[0] * plus};
    if (2 * half < dim) turned.push_back(parts[2]);
    return op::Arrays{concatenate(turned, -1)};
  };
  op::Gradient gradient{"RotateBack", 1, op::task<Task>(true)};
  return op::make({"Rotate", {x.shape()}, op::task<Task>(false), composed, gradient}, {x, cos, sin},
                  stream);
}

const char* mlxgk_rotate(mlx_array* result, mlx_array x, mlx_array cos, mlx_array sin,
                         mlx_stream stream) {
  return op::give(result,
                  [&] { return rotate::turn(op::of(x), op::of(cos), op::of(sin), op::of(stream)); });
}
