// The log-probability of one id per row of logits, without a softmax of all. A vocabulary makes this the
// longest row there is, so each pass over it counts.

#include <algorithm>
#include <cmath>
#include <limits>

#include "mlxgk.h"
#include "ops/layout.h"
#include "ops/op.h"
#include "ops/vectors.h"
#include "ops/workers.h"

using namespace vectors;

namespace {

// The largest x, and log Σ e^(x - largest). What is taken from x in two steps is not rounded to the size
// of their sum.
struct LogSum {
  float top, rest;
};

// The sums of stretches are added up in double.
FOR_EACH_PROCESSOR
LogSum log_sum(const float* x, long count) {
  constexpr long kStretch = 1024;
  Lanes most = all(-std::numeric_limits<float>::infinity());
  long i = 0;
  for (; i + kLanes <= count; i += kLanes) most = larger(most, load(x + i));
  float top = most[0];
  for (int lane = 1; lane < kLanes; ++lane) top = std::max(top, most[lane]);
  for (long j = i; j < count; ++j) top = std::max(top, x[j]);
  double total = 0;
  for (long from = 0; from < i; from += kStretch) {
    Lanes powers{};
    for (long j = from; j < std::min(i, from + kStretch); j += kLanes)
      powers += exp(load(x + j) - top);
    total += sum(powers);
  }
  for (; i < count; ++i) total += std::exp(x[i] - top);
  return {top, static_cast<float>(std::log(total))};
}

// to = -by · e^(x - sum)
FOR_EACH_PROCESSOR
void descend_row(const float* x, const LogSum& sum, float by, float* to, long count) {
  long i = 0;
  for (; i + kLanes <= count; i += kLanes)
    store(to + i, exp(load(x + i) - sum.top - sum.rest) * -by);
  for (; i < count; ++i) to[i] = std::exp(x[i] - sum.top - sum.rest) * -by;
}

// Logits of [rows, vocabulary] and ids of [rows].
class Rows {
 public:
  explicit Rows(const op::Arrays& inputs) : logits_(inputs[0]), ids_(inputs[1]) {}

  void ready() {
    logits_.ready();
    ids_.ready();
  }

  // Calls `work(row, logits, id)` for each row, on all threads; `id` is that of no logit where there is
  // none.
  template <typename Work>
  void each(const Work& work) const {
    const long length = logits_.length(), rows = std::max(1l, kElements / std::max(1l, length));
    workers::share(workers::chunks(logits_.count(), rows), [&](int chunk, int) {
      const long first = chunk * rows, end = std::min(logits_.count(), first + rows);
      for (long row = first; row < end; ++row) work(row, logits_.at(row), long{ids_.data()[row]});
    });
  }

  long length() const { return logits_.length(); }

 private:
  // Elements that keep a core busy for a few microseconds.
  static constexpr long kElements = 1 << 12;

  layout::Rows<float> logits_;
  layout::Flat<std::uint32_t> ids_;
};

class Task {
 public:
  Task(const op::Arrays& inputs, op::Arrays& outputs)
      : rows_(inputs), to_(outputs[0].data<float>()) {}

  void run() {
    rows_.ready();
    rows_.each([this](long row, const float* logits, long id) {
      const LogSum sum = log_sum(logits, rows_.length());
      to_[row] = id < rows_.length() ? logits[id] - sum.top - sum.rest
                                     : std::numeric_limits<float>::quiet_NaN();
    });
  }

 private:
  Rows rows_;
  float* to_;
};

// The gradient by the logits: by · (1 at the id, else 0, less the probability).
class Descent {
 public:
  Descent(const op::Arrays& inputs, op::Arrays& outputs)
      : rows_(inputs), by_(inputs[2]), to_(outputs[0].data<float>()) {}

  void run() {
    rows_.ready();
    by_.ready();
    rows_.each([this](long row, const float* logits, long id) {
      const long length = rows_.length();
      const float by = by_.data()[row];
      float* to = to_ + row * length;
      descend_row(logits, log_sum(logits, length), by, to, length);
      if (id < length) to[id] += by;
    });
  }

 private:
  Rows rows_;
  layout::Flat<float> by_;
  float* to_;
};

op::array token_logprobs(const op::array& logits, const op::array& ids, op::Stream stream) {
  using namespace mlx::core;
  const auto composed = [](const op::Arrays& inputs) {
    const auto &logits = inputs[0], &ids = inputs[1];
    const array last(static_cast<std::uint32_t>(logits.shape(-1) - 1), uint32);
    // MLX does not look whether there is such a logit.
    const array chosen = take_along_axis(logits, expand_dims(minimum(ids, last), -1), -1);
    const array sums = squeeze(chosen - logsumexp(logits, -1, true), -1);
    return op::Arrays{where(ids <= last, sums, array(std::numeric_limits<float>::quiet_NaN()))};
  };
  op::Gradient gradient{"TokenLogprobsGradient", 1, op::task<Descent>()};
  return op::make({"TokenLogprobs", {ids.shape()}, op::task<Task>(), composed, gradient},
                  {logits, ids}, stream);
}

}  // namespace

const char* mlxgk_token_logprobs(mlx_array* result, mlx_array logits, mlx_array ids,
                                 mlx_stream stream) {
  return op::give(result, [&] { return token_logprobs(op::of(logits), op::of(ids), op::of(stream)); });
}
