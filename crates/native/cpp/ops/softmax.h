// The scores of a query with its columns, and what they become: powers, whose shares of their sum are
// the softmax.

#pragma once

#include <limits>
#include <optional>

#include "ops/op.h"
#include "ops/vectors.h"

namespace softmax {

// The score of what may not be seen.
constexpr float kNothing = -std::numeric_limits<float>::infinity();

// The largest of some scores, and the sum of e^(score - largest).
struct Powers {
  float top, total;

  // What a power is multiplied by to be its share; where nothing may be seen, all are 0.
  float share() const { return top == kNothing ? 0.0f : 1.0f / total; }
};

// Scores fill a whole number of vectors.
inline int whole(int count) {
  return (count + vectors::kLanes - 1) / vectors::kLanes * vectors::kLanes;
}

// Replaces scores by c · tanh(score / c).
void cap_scores(float* scores, int count, float cap);

// Replaces scores by e^(score - largest), over a whole number of vectors, of which those past the last
// score are -inf. Where all are, nothing may be seen, and they become zeros.
Powers powers(float* scores, int count);

// to[i] = from[i] · factor, added to what is there or in its place.
void scale(const float* from, float factor, float* to, long count, bool add);

// What queries, [batch, heads, tokens, dim], may see of keys, [batch, groups, columns, ..].
class Sight {
 public:
  // `seen` is null or booleans of [batch or 1, heads or 1, tokens or 1, columns or 1].
  Sight(const op::array& queries, const op::array& keys, const op::array* seen, bool causal);

  // A token sees none of the columns from here on.
  int end(int token) const { return causal_ ? columns_ - (tokens_ - 1 - token) : columns_; }

  // Hides what a query may not see of `count` columns from `from` on, and what follows up to a whole
  // number of vectors.
  void hide(int batch, int head, int token, int from, int count, float* scores) const;

 private:
  bool causal_;
  int tokens_, columns_;
  const bool* seen_;
  long steps_[4];
};

}  // namespace softmax
