// Softmax attention with grouped key/value heads, one operation instead of seven.
//
// The queries that share a key/value head are rows of one product with its keys. A decoded token has
// few of them, and each key/value head is one chunk of work for one thread; a prompt has many, and
// goes through BLAS, a head at a time.

#include <algorithm>
#include <cstdlib>
#include <limits>
#include <optional>
#include <stdexcept>

#include "blas.h"
#include "few_rows.h"
#include "op.h"
#include "workers.h"

using namespace vectors;

namespace {

constexpr float kNothing = -std::numeric_limits<float>::infinity();

// c · tanh(s / c), through tanh(z) = 1 - 2 / (e^2z + 1).
FOR_EACH_PROCESSOR
void cap_scores(float* scores, int count, float cap) {
  for (int i = 0; i < count; i += kLanes) {
    const Lanes e = exp(load(scores + i) * (2.0f / cap));
    store(scores + i, cap * (1.0f - 2.0f / (e + 1.0f)));
  }
}

// Over a whole number of vectors, of which those past the last score are -inf. A row that may see
// nothing becomes zeros.
FOR_EACH_PROCESSOR
void softmax(float* scores, int count) {
  Lanes most = all(kNothing);
  for (int i = 0; i < count; i += kLanes) most = larger(most, load(scores + i));
  float top = kNothing;
  for (int i = 0; i < kLanes; ++i) top = std::max(top, most[i]);
  if (top == kNothing) {
    std::fill_n(scores, count, 0.0f);
    return;
  }
  Lanes total{};
  for (int i = 0; i < count; i += kLanes) {
    const Lanes power = exp(load(scores + i) - top);
    total += power;
    store(scores + i, power);
  }
  const float share = 1.0f / sum(total);
  for (int i = 0; i < count; i += kLanes) store(scores + i, load(scores + i) * share);
}

// out[row] = Σ weights[row][c] · values[c] for M rows and 64 columns of values at most.
template <int M, int N>
INLINE void mix_block(const float* weights, long weights_row, const float* values, long values_row,
                      int count, float* out, long out_row) {
  Lanes sums[M][N] = {};
  for (int c = 0; c < count; ++c) {
    Lanes value[N];
    for (int n = 0; n < N; ++n) value[n] = load(values + c * values_row + n * kLanes);
    for (int m = 0; m < M; ++m) {
      const float weight = weights[m * weights_row + c];
      for (int n = 0; n < N; ++n) sums[m][n] += weight * value[n];
    }
  }
  for (int m = 0; m < M; ++m)
    for (int n = 0; n < N; ++n) store(out + m * out_row + n * kLanes, sums[m][n]);
}

FOR_EACH_PROCESSOR
void mix(int rows, const float* weights, long weights_row, const float* values, long values_row,
         int count, int dim, float* out, long out_row) {
  for (int row = 0; row < rows;) {
    const int m = rows - row >= 4 ? 4 : rows - row >= 2 ? 2 : 1;
    const float* w = weights + row * weights_row;
    float* to = out + row * out_row;
    int d = 0;
    for (; d + 4 * kLanes <= dim; d += 4 * kLanes) {
      if (m == 4) mix_block<4, 4>(w, weights_row, values + d, values_row, count, to + d, out_row);
      if (m == 2) mix_block<2, 4>(w, weights_row, values + d, values_row, count, to + d, out_row);
      if (m == 1) mix_block<1, 4>(w, weights_row, values + d, values_row, count, to + d, out_row);
    }
    for (; d + kLanes <= dim; d += kLanes) {
      if (m == 4) mix_block<4, 1>(w, weights_row, values + d, values_row, count, to + d, out_row);
      if (m == 2) mix_block<2, 1>(w, weights_row, values + d, values_row, count, to + d, out_row);
      if (m == 1) mix_block<1, 1>(w, weights_row, values + d, values_row, count, to + d, out_row);
    }
    for (; d < dim; ++d)
      for (int i = 0; i < m; ++i) {
        float total = 0;
        for (int c = 0; c < count; ++c) total += w[i * weights_row + c] * values[c * values_row + d];
        to[i * out_row + d] = total;
      }
    row += m;
  }
}

struct Options {
  float scale;
  bool causal;
  std::optional<float> soft_cap;
};

// One call's arrays: queries [batch, heads, tokens, dim], keys and values [batch, groups, columns,
// dim], and what may be seen, [batch or 1, heads or 1, tokens, columns].
class Task {
 public:
  Task(const Options& options, const op::Arrays& inputs, op::array& output)
      : options_(options),
        queries_(inputs[0]),
        keys_(inputs[1]),
        values_(inputs[2]),
        seen_(inputs.size() > 3 ? &inputs[3] : nullptr),
        output_(output.data<float>()),
        groups_(keys_.shape(1)),
        columns_(keys_.shape(2)),
        tokens_(queries_.shape(2)),
        dim_(queries_.shape(3)),
        group_(queries_.shape(1) / groups_),
        rows_(group_ * tokens_),
        scores_row_((columns_ + kLanes - 1) / kLanes * kLanes),
        dim_row_((dim_ + kLanes - 1) / kLanes * kLanes) {}

  void run() {
    const int heads = queries_.shape(0) * groups_;
    if (rows_ <= few_rows::kMost) {
      workers::share(heads, [](const void* task, int head) {
        const Task& it = *static_cast<const Task*>(task);
        it.few(head);
      }, this);
    } else {
      for (int head = 0; head < heads; ++head) many(head);
    }
  }

 private:
  // Memory at the beginning of a cache line.
  struct Buffer {
    explicit Buffer(long count)
        : data(static_cast<float*>(std::aligned_alloc(64, sizeof(float) * count))) {}
    ~Buffer() { std::free(data); }
    Buffer(const Buffer&) = delete;
    Buffer& operator=(const Buffer&) = delete;
    float* data;
  };

  void few(int head) const {
    const Buffer queries(static_cast<long>(rows_) * dim_row_);
    const Buffer scores(static_cast<long>(rows_) * scores_row_);
    scaled_queries(head, queries.data);
    few_rows::multiply_alone(rows_, columns_, dim_, queries.data, dim_row_, at(keys_, head),
                             keys_.row(), scores.data, scores_row_);
    for (int row = 0; row < rows_; ++row) weigh(head, row, scores.data + row * scores_row_);
    mix(rows_, scores.data, scores_row_, at(values_, head), values_.row(), columns_, dim_,
        to(head), dim_);
  }

  // A band of rows at a time: the scores of a long prompt are far more than a cache holds, and may be
  // more than memory does.
  void many(int head) const {
    const int band = std::clamp(kBand / scores_row_, kRows, rows_);
    const Buffer queries(static_cast<long>(rows_) * dim_row_);
    const Buffer scores(static_cast<long>(band) * scores_row_);
    scaled_queries(head, queries.data);
    for (int from = 0; from < rows_; from += band) {
      const int count = std::min(band, rows_ - from);
      cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, count, columns_, dim_, 1,
                  queries.data + static_cast<long>(from) * dim_row_, dim_row_, at(keys_, head),
                  keys_.row(), 0, scores.data, scores_row_);
      const Band work{this, head, from, count, scores.data};
      workers::share((count + kRows - 1) / kRows, weigh_rows, &work);
      cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasNoTrans, count, dim_, columns_, 1, scores.data,
                  scores_row_, at(values_, head), values_.row(), 0,
                  to(head) + static_cast<long>(from) * dim_, dim_);
    }
  }

  struct Band {
    const Task* task;
    int head, from, count;
    float* scores;
  };

  static void weigh_rows(const void* context, int chunk) {
    const Band& it = *static_cast<const Band*>(context);
    const int end = std::min(it.count, (chunk + 1) * kRows);
    for (int row = chunk * kRows; row < end; ++row)
      it.task->weigh(it.head, it.from + row,
                     it.scores + static_cast<long>(row) * it.task->scores_row_);
  }

  // Keys or values of one head of one batch row, in that order.
  const float* at(const op::Placed& array, int head) const {
    return array.at(head / groups_, head % groups_);
  }

  // The output lies like the queries would: a group's rows behind one another.
  float* to(int head) const { return output_ + static_cast<long>(head) * rows_ * dim_; }

  void scaled_queries(int head, float* to) const {
    const long first = static_cast<long>(head % groups_) * group_;
    for (int row = 0; row < rows_; ++row) {
      const float* from = queries_.at(head / groups_, first + row / tokens_, row % tokens_);
      for (int i = 0; i < dim_; ++i) to[row * static_cast<long>(dim_row_) + i] = from[i] * options_.scale;
    }
  }

  // Scores of one query become its weights.
  void weigh(int head, int row, float* scores) const {
    int count = columns_;
    const int token = row % tokens_;
    if (options_.causal) count -= tokens_ - 1 - token;
    if (options_.soft_cap) cap_scores(scores, scores_row_, *options_.soft_cap);
    if (seen_ != nullptr) {
      const auto step = [&](int axis) { return seen_->shape(axis) == 1 ? 0 : seen_->strides(axis); };
      const int query_head = head % groups_ * group_ + row / tokens_;
      const bool* seen = seen_->data<bool>() + head / groups_ * step(0) + query_head * step(1) +
                         token * step(2);
      for (int i = 0; i < count; ++i)
        if (!seen[i * step(3)]) scores[i] = kNothing;
    }
    std::fill(scores + count, scores + scores_row_, kNothing);
    softmax(scores, scores_row_);
  }

  // Rows of scores in a chunk of work, and scores in a band of rows (4 MB).
  static constexpr int kRows = 8;
  static constexpr int kBand = 1 << 20;

  const Options& options_;
  const op::Placed queries_, keys_, values_;
  const op::array* seen_;
  float* output_;
  int groups_, columns_, tokens_, dim_, group_, rows_, scores_row_, dim_row_;
};

class Attention : public op::Kernel {
 public:
  explicit Attention(Options options) : options_(options) {}

  void compute(const op::Arrays& inputs, op::array& output) const override {
    if (output.size() > 0) Task(options_, inputs, output).run();
  }

 private:
  Options options_;
};

op::array composed(const Options& options, const op::Arrays& inputs) {
  using namespace mlx::core;
  const int heads = inputs[0].shape(1), groups = inputs[1].shape(1);
  const int tokens = inputs[0].shape(2), columns = inputs[1].shape(2);
  const array keys = repeat(inputs[1], heads / groups, 1);
  const array values = repeat(inputs[2], heads / groups, 1);
  array scores = matmul(inputs[0] * array(options.scale), swapaxes(keys, -1, -2));
  if (options.soft_cap) {
    const array cap(*options.soft_cap);
    scores = tanh(scores / cap) * cap;
  }
  const array nothing(kNothing);
  if (inputs.size() > 3) scores = where(inputs[3], scores, nothing);
  if (options.causal) {
    const array last = expand_dims(arange(columns - tokens, columns, 1), 1);
    scores = where(less_equal(expand_dims(arange(0, columns, 1), 0), last), scores, nothing);
  }
  return matmul(softmax(scores, -1, true), values);
}

op::array attention(const Options& options, op::Arrays inputs) {
  using namespace mlx::core;
  const array &queries = inputs[0], &keys = inputs[1], &values = inputs[2];
  for (int i = 0; i < 3; ++i)
    if (inputs[i].dtype() != float32 || inputs[i].ndim() != 4)
      throw std::invalid_argument("attention takes fp32 arrays of four axes");
  const bool fits = keys.shape() == values.shape() && queries.shape(0) == keys.shape(0) &&
                    queries.shape(3) == keys.shape(3) && keys.shape(1) > 0 &&
                    queries.shape(1) % keys.shape(1) == 0;
  if (!fits) throw std::invalid_argument("attention's queries, keys and values do not fit together");
  if (inputs.size() > 3) {
    array& seen = inputs[3];
    if (seen.dtype() != bool_) throw std::invalid_argument("attention takes a mask of booleans");
    Shape shape(4, 1);
    std::copy_backward(seen.shape().begin(), seen.shape().end(), shape.end());
    if (seen.ndim() < 4) seen = reshape(seen, shape);
  }
  const auto in_mlx = [options](const op::Arrays& inputs) { return composed(options, inputs); };
  const Shape shape = queries.shape();
  return op::make("Attention", std::make_shared<Attention>(options), in_mlx, shape,
                  std::move(inputs));
}

}  // namespace

// Without a mask `seen` is empty. With `soft_cap` 0 there is none.
extern "C" const char* mlxgk_attention(mlx_array* result, mlx_array queries, mlx_array keys,
                                       mlx_array values, mlx_array seen, float scale, bool causal,
                                       float soft_cap) {
  return op::give(result, [&] {
    op::Arrays inputs{op::of(queries), op::of(keys), op::of(values)};
    if (seen.ctx != nullptr) inputs.push_back(op::of(seen));
    const Options options{scale, causal,
                          soft_cap > 0 ? std::optional<float>(soft_cap) : std::nullopt};
    return attention(options, std::move(inputs));
  });
}
