// Rotary positions: x · cos + rotate_half(x) · sin on the leading dimensions of every head.

#include <algorithm>
#include <stdexcept>

#include "op.h"
#include "vectors.h"
#include "workers.h"

using namespace vectors;

namespace {

FOR_EACH_PROCESSOR
void rotate_head(const float* x, const float* cos, const float* sin, float* to, int half) {
  int i = 0;
  for (; i + kLanes <= half; i += kLanes) {
    const Lanes first = load(x + i), second = load(x + half + i), turn = load(cos + i);
    store(to + i, first * turn + second * load(sin + i));
    store(to + half + i, second * turn + first * load(sin + half + i));
  }
  for (; i < half; ++i) {
    to[i] = x[i] * cos[i] + x[half + i] * sin[i];
    to[half + i] = x[half + i] * cos[i] + x[i] * sin[half + i];
  }
}

// x [batch, heads, tokens, dim]; cos [batch or 1, 1, tokens, 1, half], and sin [batch or 1, 1, tokens,
// 2, half], once with a minus sign and once without.
class Rotate : public op::Kernel {
 public:
  void compute(const op::Arrays& inputs, op::array& output) const override {
    const op::array& x = inputs[0];
    const op::Rows cos(inputs[1]), sin(inputs[2]);
    const op::Placed from(x);
    const Work work{from, cos, sin, inputs[1].shape(0) > 1, output.data<float>()};
    workers::share(x.shape(0) * x.shape(1), do_chunk, &work);
  }

 private:
  struct Work {
    const op::Placed& x;
    // Without gaps: the tables are made in one piece.
    const op::Rows& cos;
    const op::Rows& sin;
    bool per_row;
    float* to;
  };

  static void do_chunk(const void* context, int chunk) {
    const Work& it = *static_cast<const Work*>(context);
    const int heads = it.x.shape(1), tokens = it.x.shape(2), dim = it.x.shape(3);
    const int batch = chunk / heads, head = chunk % heads, half = it.cos.length();
    for (int token = 0; token < tokens; ++token) {
      const float* x = it.x.at(batch, head, token);
      float* to = it.to + (static_cast<long>(chunk) * tokens + token) * dim;
      const long angle = (it.per_row ? batch * tokens : 0) + token;
      rotate_head(x, it.cos.data() + angle * half, it.sin.data() + 2 * angle * half, to, half);
      std::copy(x + 2 * half, x + dim, to + 2 * half);
    }
  }
};

op::array rotate(const op::array& x, const op::array& cos, const op::array& sin) {
  using namespace mlx::core;
  const auto composed = [](const op::Arrays& inputs) {
    const int half = inputs[1].shape(-1), dim = inputs[0].shape(-1);
    const op::Arrays parts = split(inputs[0], Shape{half, 2 * half}, -1);
    const array cos = squeeze(inputs[1], 3);
    const op::Arrays sins = split(inputs[2], 2, 3);
    const array minus = squeeze(sins[0], 3), plus = squeeze(sins[1], 3);
    op::Arrays turned{parts[0] * cos + parts[1] * minus, parts[1] * cos + parts[0] * plus};
    if (2 * half < dim) turned.push_back(parts[2]);
    return concatenate(turned, -1);
  };
  const auto is = [&](const array& table, int halves) {
    return table.ndim() == 5 && (table.shape(0) == 1 || table.shape(0) == x.shape(0)) &&
           table.shape(1) == 1 && table.shape(2) == x.shape(2) && table.shape(3) == halves &&
           2 * table.shape(4) <= x.shape(3);
  };
  const bool fits = x.ndim() == 4 && is(cos, 1) && is(sin, 2) && cos.shape(0) == sin.shape(0) &&
                    cos.shape(4) == sin.shape(4);
  if (!fits || x.dtype() != float32 || cos.dtype() != float32 || sin.dtype() != float32)
    throw std::invalid_argument("the rotation's fp32 heads, cosines and sines do not fit together");
  return op::make("Rotate", std::make_shared<Rotate>(), composed, x.shape(), {x, cos, sin});
}

}  // namespace

extern "C" const char* mlxgk_rotate(mlx_array* result, mlx_array x, mlx_array cos, mlx_array sin) {
  return op::give(result, [&] { return rotate(op::of(x), op::of(cos), op::of(sin)); });
}
