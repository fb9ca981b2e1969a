// With P = softmax(s · Q K') and the gradient G by P V:
//
//   by V: P' G      D = P ∘ (G V' - rows of Σ P ∘ G V')      by Q: s · D K      by K: s · D' Q
//
// P is computed again, a block of queries at a time, since keeping it would take the square of a text's
// length (FlashAttention; Dao et al., 2022). Under a causal mask a block meets only the columns that
// one of its queries may see, which saves almost half.
//
// A key/value head is a chunk of work for one thread, which alone writes the gradients by its keys and
// values.

#include "ops/attention_gradient.h"

#include <algorithm>

#include "ops/layout.h"
#include "ops/memory.h"
#include "ops/softmax.h"
#include "ops/vectors.h"
#include "ops/workers.h"
#include "shim/blas.h"

using namespace vectors;
using softmax::whole;

namespace {

struct Options {
  float scale;
  bool causal;
  std::optional<float> soft_cap;
};

// Makes shares of the powers of a row, and of the gradient by the shares that by the scores.
FOR_EACH_PROCESSOR
void descend_row(float* powers, float share, float* by, int count) {
  Lanes products{};
  for (int i = 0; i < count; i += kLanes) {
    const Lanes it = load(powers + i) * share;
    store(powers + i, it);
    products += it * load(by + i);
  }
  const float total = sum(products);
  for (int i = 0; i < count; i += kLanes)
    store(by + i, load(powers + i) * (load(by + i) - total));
}

// Takes the gradient by capped scores to that by what they were: 1 - (capped / cap)² times as much.
FOR_EACH_PROCESSOR
void descend_cap(const float* capped, float cap, float* by, int count) {
  for (int i = 0; i < count; i += kLanes) {
    const Lanes it = load(capped + i) * (1.0f / cap);
    store(by + i, load(by + i) * (1.0f - it * it));
  }
}

// Queries and the gradient by the output are [batch, heads, tokens, dim], keys and values [batch,
// groups, columns, dim].
class Descent {
 public:
  Descent(const op::Arrays& inputs, op::Arrays& outputs, const Options& options)
      : options_(options),
        queries_(inputs[0]),
        keys_(inputs[1]),
        values_(inputs[2]),
        by_(inputs.back()),
        sight_(inputs[0], inputs[1], inputs.size() > 4 ? &inputs[3] : nullptr, options.causal),
        by_queries_(outputs[0].data<float>()),
        by_keys_(outputs[1].data<float>()),
        by_values_(outputs[2].data<float>()),
        groups_(inputs[1].shape(1)),
        columns_(inputs[1].shape(2)),
        tokens_(inputs[0].shape(2)),
        dim_(inputs[0].shape(3)),
        heads_(inputs[0].shape(0) * groups_),
        group_(inputs[0].shape(1) / groups_),
        block_(std::min(tokens_, kBlock)),
        scores_row_(whole(columns_)),
        scores_(static_cast<long>(block_) * scores_row_),
        own_(2 * scores_ + scores_row_),
        scratch_(workers::count() * own_) {}

  void run() {
    queries_.ready();
    keys_.ready();
    values_.ready();
    by_.ready();
    std::fill_n(by_keys_, static_cast<long>(heads_) * columns_ * dim_, 0.0f);
    std::fill_n(by_values_, static_cast<long>(heads_) * columns_ * dim_, 0.0f);
    // A single head is BLAS's to share.
    std::optional<blas::OneThread> alone;
    if (heads_ > 1) alone.emplace();
    workers::share(heads_, [this](int head, int worker) {
      float* scratch = scratch_.data() + worker * own_;
      for (int query_head = 0; query_head < group_; ++query_head)
        for (int token = 0; token < tokens_; token += block_)
          descend(head, query_head, token, scratch);
    });
  }

 private:
  // A block of queries of one head, from `token` on.
  void descend(int head, int query_head, int token, float* scratch) const {
    const int batch = head / groups_, of_group = head % groups_;
    const int at = of_group * group_ + query_head;
    const int count = std::min(block_, tokens_ - token);
    const int columns = sight_.end(token + count - 1), width = whole(columns);
    const float *queries = queries_.at(batch, at, token), *by = by_.at(batch, at, token);
    const float *keys = keys_.at(batch, of_group), *values = values_.at(batch, of_group);
    const long of_keys = static_cast<long>(head) * columns_ * dim_;
    float *scores = scratch, *by_scores = scratch + scores_, *capped = by_scores + scores_;
    product(CblasNoTrans, CblasTrans, count, columns, dim_, options_.scale, queries, queries_.row(),
            keys, keys_.row(), 0, scores, scores_row_);
    product(CblasNoTrans, CblasTrans, count, columns, dim_, 1, by, by_.row(), values, values_.row(),
            0, by_scores, scores_row_);
    for (int row = 0; row < count; ++row) {
      float* to = scores + static_cast<long>(row) * scores_row_;
      float* by_row = by_scores + static_cast<long>(row) * scores_row_;
      std::fill(by_row + columns, by_row + width, 0.0f);
      if (options_.soft_cap) {
        softmax::cap_scores(to, width, *options_.soft_cap);
        std::copy_n(to, width, capped);
      }
      sight_.hide(batch, at, token + row, 0, columns, to);
      const float share = softmax::powers(to, width).share();
      descend_row(to, share, by_row, width);
      if (options_.soft_cap) descend_cap(capped, *options_.soft_cap, by_row, width);
    }
    float* by_queries = by_queries_ +
        ((static_cast<long>(head) * group_ + query_head) * tokens_ + token) * dim_;
    product(CblasTrans, CblasNoTrans, columns, dim_, count, 1, scores, scores_row_, by, by_.row(), 1,
            by_values_ + of_keys, dim_);
    product(CblasNoTrans, CblasNoTrans, count, dim_, columns, options_.scale, by_scores, scores_row_,
            keys, keys_.row(), 0, by_queries, dim_);
    product(CblasTrans, CblasNoTrans, columns, dim_, count, options_.scale, by_scores, scores_row_,
            queries, queries_.row(), 1, by_keys_ + of_keys, dim_);
  }

  static void product(CBLAS_TRANSPOSE a_trans, CBLAS_TRANSPOSE b_trans, int m, int n, int k,
                      float alpha, const float* a, int a_row, const float* b, int b_row, float beta,
                      float* c, int c_row) {
    cblas_sgemm(CblasRowMajor, a_trans, b_trans, m, n, k, alpha, a, a_row, b, b_row, beta, c, c_row);
  }

  // Queries in a block.
  static constexpr int kBlock = 64;

  const Options options_;
  layout::Heads<float> queries_, keys_, values_, by_;
  const softmax::Sight sight_;
  float *by_queries_, *by_keys_, *by_values_;
  int groups_, columns_, tokens_, dim_, heads_, group_, block_, scores_row_;
  long scores_;
  // A thread's scratch: two blocks of scores, powers and the gradient by them, and a row of capped ones.
  long own_;
  memory::Floats scratch_;
};

}  // namespace

op::Gradient attention::gradient(float scale, bool causal, std::optional<float> soft_cap) {
  return {"AttentionGradient", 3, op::task<Descent>(Options{scale, causal, soft_cap})};
}
