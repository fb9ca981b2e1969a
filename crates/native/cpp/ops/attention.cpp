// Softmax attention with grouped key/value heads, one operation instead of seven.
//
// The queries that share a key/value head are rows of one product with its keys. A decoded token has
// few of them. Its columns are cut into parts (Flash-Decoding; Dao et al., 2023), each of which is a
// chunk of work for one thread, and joined in their order: the parts follow from the number of columns
// alone, so the result does not depend on how many threads there are. A prompt has many rows, and goes
// through matrix products (shim/blas.h), a head at a time.
//
// Packed keys and values become floats a stretch at a time, small enough to be near by still when it
// is used. A decoded token reads each column once, so what counts is how many bytes that takes.

#include <algorithm>
#include <cmath>
#include <optional>

#include "mlxgk.h"
#include "ops/attention_gradient.h"
#include "ops/columns.h"
#include "ops/few_rows.h"
#include "ops/layout.h"
#include "ops/memory.h"
#include "ops/op.h"
#include "ops/softmax.h"
#include "ops/vectors.h"
#include "ops/workers.h"
#include "shim/blas.h"

using namespace vectors;
using softmax::kNothing;
using softmax::Powers;
using softmax::scale;
using softmax::whole;

namespace {

// out[row] = Σ weights[row][c] · values[c] for M rows and 64 columns of values at most, added to what
// is there or in its place.
template <int M, int N>
INLINE void mix_block(const float* weights, long weights_row, const float* values, long values_row,
                      int count, float* out, long out_row, bool add) {
  Lanes sums[M][N] = {};
  for (int m = 0; add && m < M; ++m)
    for (int n = 0; n < N; ++n) sums[m][n] = load(out + m * out_row + n * kLanes);
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
         int count, int dim, float* out, long out_row, bool add) {
  for (int row = 0; row < rows;) {
    const int m = rows - row >= 4 ? 4 : rows - row >= 2 ? 2 : 1;
    const float* w = weights + row * weights_row;
    float* to = out + row * out_row;
    int d = 0;
    for (; d + 4 * kLanes <= dim; d += 4 * kLanes) {
      const float* from = values + d;
      if (m == 4) mix_block<4, 4>(w, weights_row, from, values_row, count, to + d, out_row, add);
      if (m == 2) mix_block<2, 4>(w, weights_row, from, values_row, count, to + d, out_row, add);
      if (m == 1) mix_block<1, 4>(w, weights_row, from, values_row, count, to + d, out_row, add);
    }
    for (; d + kLanes <= dim; d += kLanes) {
      const float* from = values + d;
      if (m == 4) mix_block<4, 1>(w, weights_row, from, values_row, count, to + d, out_row, add);
      if (m == 2) mix_block<2, 1>(w, weights_row, from, values_row, count, to + d, out_row, add);
      if (m == 1) mix_block<1, 1>(w, weights_row, from, values_row, count, to + d, out_row, add);
    }
    for (; d < dim; ++d)
      for (int i = 0; i < m; ++i) {
        float total = add ? to[i * out_row + d] : 0;
        for (int c = 0; c < count; ++c) total += w[i * weights_row + c] * values[c * values_row + d];
        to[i * out_row + d] = total;
      }
    row += m;
  }
}

// How keys and values are packed.
struct Packing {
  int group, bits;
};

struct Options {
  float scale;
  bool causal;
  std::optional<float> soft_cap;
  std::optional<Packing> packing;
  // Whether the inputs say what may be seen.
  bool has_seen;

  // Where the keys begin among the inputs, the values, and what may be seen.
  int keys() const { return 1; }
  int values() const { return packing ? 4 : 2; }
  const op::array* seen_of(const op::Arrays& inputs) const {
    return has_seen ? &inputs[packing ? 7 : 3] : nullptr;
  }
};

std::unique_ptr<columns::Columns> columns_at(const op::Arrays& inputs, int at,
                                             const Options& options) {
  if (!options.packing) return columns::of_floats(inputs[at]);
  return columns::of_packed(&inputs[at], options.packing->group, options.packing->bits);
}

// One call's arrays: queries [batch, heads, tokens, dim], keys and values [batch, groups, columns,
// dim], each as one array or packed into three, and what may be seen, [batch or 1, heads or 1,
// tokens or 1, columns or 1].
class Task {
 public:
  Task(const op::Arrays& inputs, op::Arrays& outputs, const Options& options)
      : options_(options),
        queries_(inputs[0]),
        keys_(columns_at(inputs, options.keys(), options)),
        values_(columns_at(inputs, options.values(), options)),
        sight_(inputs[0], inputs[1], options.seen_of(inputs), options.causal),
        output_(outputs[0].data<float>()),
        groups_(inputs[1].shape(1)),
        columns_(inputs[1].shape(2)),
        tokens_(inputs[0].shape(2)),
        dim_(inputs[0].shape(3)),
        heads_(inputs[0].shape(0) * groups_),
        group_(inputs[0].shape(1) / groups_),
        rows_(group_ * tokens_),
        dim_row_(whole(dim_)),
        is_few_(rows_ <= few_rows::kMost),
        parts_(is_few_ ? workers::chunks(columns_, kPart) : 1),
        scores_row_(whole(is_few_ ? std::min(columns_, kPart) : columns_)),
        band_(is_few_ ? rows_ : std::clamp(kBand / std::max(scores_row_, 1), kRows, rows_)),
        workers_(is_few_ ? workers::count() : 1),
        stretch_(is_few_ ? std::min({keys_->stretch(), kPart, columns_}) : columns_),
        scaled_(static_cast<long>(workers_) * rows_ * dim_row_),
        scores_(static_cast<long>(workers_) * band_ * scores_row_),
        powers_(static_cast<long>(heads_) * parts_ * rows_),
        mixed_(parts_ > 1 ? static_cast<long>(heads_) * parts_ * rows_ * dim_ : 0),
        unpacked_row_(std::max(keys_->scratch(stretch_), values_->scratch(stretch_))),
        // Of many rows, the keys and the values of a head.
        unpacked_((is_few_ ? workers_ : 2) * unpacked_row_) {}

  void run() {
    queries_.ready();
    keys_->ready();
    values_->ready();
    if (columns_ == 0) {
      std::fill_n(output_, static_cast<long>(heads_) * rows_ * dim_, 0.0f);
    } else if (is_few_) {
      few();
    } else {
      for (int head = 0; head < heads_; ++head) many(head);
    }
  }

 private:
  void few() {
    workers::share(heads_ * parts_, [this](int chunk, int worker) {
      const int head = chunk / parts_, from = chunk % parts_ * kPart;
      const int count = std::min(kPart, columns_ - from);
      float* queries = scaled_.data() + static_cast<long>(worker) * rows_ * dim_row_;
      float* scores = scores_.data() + static_cast<long>(worker) * rows_ * scores_row_;
      Powers* powers = powers_.data() + static_cast<long>(chunk) * rows_;
      scale_queries(head, queries);
      float* unpacked = unpacked_.data() + worker * unpacked_row_;
      for (int done = 0; done < count; done += stretch_) {
        const int some = std::min(stretch_, count - done);
        const auto keys = floats(*keys_, head, from + done, some, unpacked);
        few_rows::multiply_alone(rows_, some, dim_, queries, dim_row_, keys.data, keys.row,
                                 scores + done, scores_row_);
      }
      for (int row = 0; row < rows_; ++row)
        powers[row] = weigh(head, row, from, count, scores + row * scores_row_);
      float* out = parts_ == 1 ? to(head) : mixed(chunk);
      for (int done = 0; done < count; done += stretch_) {
        const int some = std::min(stretch_, count - done);
        const auto values = floats(*values_, head, from + done, some, unpacked);
        mix(rows_, scores + done, scores_row_, values.data, values.row, some, dim_, out, dim_,
            done > 0);
      }
      if (parts_ == 1) join(head);
    });
    if (parts_ > 1) workers::share(heads_, [this](int head, int) { join(head); });
  }

  // Scales the parts of a head to their common largest score, and adds them up.
  void join(int head) {
    const long first = static_cast<long>(head) * parts_;
    for (int row = 0; row < rows_; ++row) {
      const auto of = [&](int part) { return powers_[(first + part) * rows_ + row]; };
      float top = kNothing, total = 0;
      for (int part = 0; part < parts_; ++part) top = std::max(top, of(part).top);
      // A row that may see nothing has zeros in every part.
      const auto factor = [&](int part) {
        return top == kNothing ? 0.0f : std::exp(of(part).top - top);
      };
      for (int part = 0; part < parts_; ++part) total += factor(part) * of(part).total;
      const float share = top == kNothing ? 0.0f : 1.0f / total;
      float* out = to(head) + static_cast<long>(row) * dim_;
      for (int part = 0; part < parts_; ++part) {
        const float* from = parts_ == 1 ? out : mixed(first + part) + static_cast<long>(row) * dim_;
        scale(from, factor(part) * share, out, dim_, part > 0);
      }
    }
  }

  // A band of rows at a time: the scores of a long prompt are far more than a cache holds, and may be
  // more than memory does.
  void many(int head) {
    scale_queries(head, scaled_.data());
    const auto all = [&](const columns::Columns& it, float* scratch) {
      return it.shared_floats(head / groups_, head % groups_, 0, columns_, scratch);
    };
    const auto keys = all(*keys_, unpacked_.data());
    const auto values = all(*values_, unpacked_.data() + unpacked_row_);
    for (int from = 0; from < rows_; from += band_) {
      const int count = std::min(band_, rows_ - from);
      float* scores = scores_.data();
      cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, count, columns_, dim_, 1,
                  scaled_.data() + static_cast<long>(from) * dim_row_, dim_row_, keys.data,
                  keys.row, 0, scores, scores_row_);
      workers::share(workers::chunks(count, kRows), [&](int chunk, int) {
        const int end = std::min(count, (chunk + 1) * kRows);
        for (int row = chunk * kRows; row < end; ++row) {
          float* weights = scores + static_cast<long>(row) * scores_row_;
          const Powers it = weigh(head, from + row, 0, columns_, weights);
          scale(weights, it.share(), weights, scores_row_, false);
        }
      });
      cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasNoTrans, count, dim_, columns_, 1, scores,
                  scores_row_, values.data, values.row, 0,
                  to(head) + static_cast<long>(from) * dim_, dim_);
    }
  }

  // Keys or values of one head of one batch row, in that order.
  columns::Floats floats(const columns::Columns& all, int head, int from, int count,
                         float* scratch) const {
    return all.floats(head / groups_, head % groups_, from, count, scratch);
  }

  // The output lies like the queries would: a group's rows one after another.
  float* to(int head) { return output_ + static_cast<long>(head) * rows_ * dim_; }

  // What a part of a head's columns gives.
  float* mixed(long part) { return mixed_.data() + part * rows_ * dim_; }

  void scale_queries(int head, float* to) const {
    const long first = static_cast<long>(head % groups_) * group_;
    for (int row = 0; row < rows_; ++row)
      scale(queries_.at(head / groups_, first + row / tokens_, row % tokens_), options_.scale,
            to + row * static_cast<long>(dim_row_), dim_, false);
  }

  // One query's scores with `count` columns become their powers.
  Powers weigh(int head, int row, int from, int count, float* scores) const {
    if (options_.soft_cap) softmax::cap_scores(scores, whole(count), *options_.soft_cap);
    const int query_head = head % groups_ * group_ + row / tokens_;
    sight_.hide(head / groups_, query_head, row % tokens_, from, count, scores);
    return softmax::powers(scores, whole(count));
  }

  // Columns in a part of a head with few rows.
  static constexpr int kPart = 512;
  // Rows of scores in a chunk of work, and scores in a band of rows (4 MB).
  static constexpr int kRows = 8;
  static constexpr int kBand = 1 << 20;

  const Options options_;
  layout::Heads<float> queries_;
  std::unique_ptr<columns::Columns> keys_, values_;
  const softmax::Sight sight_;
  float* output_;
  int groups_, columns_, tokens_, dim_, heads_, group_, rows_, dim_row_;
  bool is_few_;
  int parts_, scores_row_, band_, workers_, stretch_;
  // By worker; by head, part and row; by head and part.
  memory::Floats scaled_, scores_;
  std::vector<Powers> powers_;
  memory::Floats mixed_;
  long unpacked_row_;
  memory::Floats unpacked_;
};

op::Arrays composed(const Options& options, const op::Arrays& inputs) {
  using namespace mlx::core;
  const int heads = inputs[0].shape(1), groups = inputs[1].shape(1);
  const int tokens = inputs[0].shape(2), columns = inputs[1].shape(2);
  const auto repeated = [&](int at) {
    if (!options.packing) return repeat(inputs[at], heads / groups, 1);
    const array scales = astype(inputs[at + 1], float32), biases = astype(inputs[at + 2], float32);
    const auto [group, bits] = *options.packing;
    return repeat(dequantize(inputs[at], scales, biases, group, bits), heads / groups, 1);
  };
  const array keys = repeated(options.keys()), values = repeated(options.values());
  array scores = matmul(inputs[0] * array(options.scale), swapaxes(keys, -1, -2));
  if (options.soft_cap) {
    const array cap(*options.soft_cap);
    scores = tanh(scores / cap) * cap;
  }
  const array nothing(kNothing);
  if (const array* seen = options.seen_of(inputs)) scores = where(*seen, scores, nothing);
  if (options.causal) {
    const array last = expand_dims(arange(columns - tokens, columns, 1), 1);
    scores = where(less_equal(expand_dims(arange(0, columns, 1), 0), last), scores, nothing);
  }
  return {matmul(mlx::core::softmax(scores, -1, true), values)};
}

op::array attention(const Options& options, op::Arrays inputs, op::Stream stream) {
  const auto in_mlx = [options](const op::Arrays& inputs) { return composed(options, inputs); };
  const auto shape = inputs[0].shape();
  const char* name = options.packing ? "PackedAttention" : "Attention";
  op::Gradient gradient;
  if (!options.packing)
    gradient = attention::gradient(options.scale, options.causal, options.soft_cap);
  return op::make({name, {shape}, op::task<Task>(options), in_mlx, gradient}, std::move(inputs),
                  stream);
}

const char* give(mlx_array* result, std::initializer_list<mlx_array> arrays, mlx_array seen,
                 const Options& options, mlx_stream stream) {
  return op::give(result, [&] {
    op::Arrays inputs;
    for (const mlx_array& it : arrays) inputs.push_back(op::of(it));
    if (seen.ctx != nullptr) inputs.push_back(op::of(seen));
    return attention(options, std::move(inputs), op::of(stream));
  });
}

std::optional<float> cap_of(float soft_cap) {
  return soft_cap > 0 ? std::optional<float>(soft_cap) : std::nullopt;
}

}  // namespace

const char* mlxgk_attention(mlx_array* result, mlx_array queries, mlx_array keys, mlx_array values,
                            mlx_array seen, float scale, bool causal, float soft_cap,
                            mlx_stream stream) {
  const Options options{scale, causal, cap_of(soft_cap), std::nullopt, seen.ctx != nullptr};
  return give(result, {queries, keys, values}, seen, options, stream);
}

const char* mlxgk_packed_attention(mlx_array* result, mlx_array queries, mlx_array keys,
                                   mlx_array key_scales, mlx_array key_biases, mlx_array values,
                                   mlx_array value_scales, mlx_array value_biases, mlx_array seen,
                                   int group_size, int bits, float scale, bool causal,
                                   float soft_cap, mlx_stream stream) {
  const Packing packing{group_size, bits};
  const Options options{scale, causal, cap_of(soft_cap), packing, seen.ctx != nullptr};
  return give(
      result,
      {queries, keys, key_scales, key_biases, values, value_scales, value_biases},
      seen, options, stream);
}
