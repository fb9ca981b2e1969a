#include "ops/softmax.h"

#include <algorithm>

using namespace vectors;

namespace softmax {

// Through tanh(z) = 1 - 2 / (e^2z + 1).
FOR_EACH_PROCESSOR
void cap_scores(float* scores, int count, float cap) {
  for (int i = 0; i < count; i += kLanes) {
    const Lanes e = exp(load(scores + i) * (2.0f / cap));
    store(scores + i, cap * (1.0f - 2.0f / (e + 1.0f)));
  }
}

FOR_EACH_PROCESSOR
Powers powers(float* scores, int count) {
  Lanes most = all(kNothing);
  for (int i = 0; i < count; i += kLanes) most = larger(most, load(scores + i));
  float top = kNothing;
  for (int i = 0; i < kLanes; ++i) top = std::max(top, most[i]);
  if (top == kNothing) {
    const bool is_nan = std::any_of(scores, scores + count, [](float it) { return it != it; });
    if (!is_nan) {
      std::fill_n(scores, count, 0.0f);
      return {kNothing, 0};
    }
    top = 0;
  }
  Lanes total{};
  for (int i = 0; i < count; i += kLanes) {
    const Lanes power = exp(load(scores + i) - top);
    total += power;
    store(scores + i, power);
  }
  return {top, sum(total)};
}

FOR_EACH_PROCESSOR
void scale(const float* from, float factor, float* to, long count, bool add) {
  for (long i = 0; i < count; ++i) to[i] = (add ? to[i] : 0.0f) + from[i] * factor;
}

Sight::Sight(const op::array& queries, const op::array& keys, const op::array* seen, bool causal)
    : causal_(causal),
      tokens_(queries.shape(2)),
      columns_(keys.shape(2)),
      seen_(seen == nullptr ? nullptr : seen->data<bool>()) {
  for (int axis = 0; seen != nullptr && axis < 4; ++axis)
    steps_[axis] = seen->shape(axis) == 1 ? 0 : seen->strides(axis);
}

void Sight::hide(int batch, int head, int token, int from, int count, float* scores) const {
  const int visible = std::clamp(end(token) - from, 0, count);
  if (seen_ != nullptr) {
    const bool* seen = seen_ + batch * steps_[0] + head * steps_[1] + token * steps_[2] +
                       from * steps_[3];
    for (int i = 0; i < visible; ++i)
      if (!seen[i * steps_[3]]) scores[i] = kNothing;
  }
  std::fill(scores + visible, scores + whole(count), kNothing);
}

}  // namespace softmax
