// Gates in one pass over both: silu(gate) · up, that of a feed-forward layer, and sigmoid(gate) · up.

#include <algorithm>

#include "mlxgk.h"
#include "ops/gate.h"
#include "ops/layout.h"
#include "ops/op.h"
#include "ops/vectors.h"
#include "ops/workers.h"

using namespace vectors;

namespace {

INLINE Lanes gated(const Lanes& gate, const Lanes& up, bool silu) {
  return (silu ? gate : all(1.0f)) / (1.0f + exp(-gate)) * up;
}

FOR_EACH_PROCESSOR
void gate_row(const float* gate, const float* up, float* to, int count, bool silu) {
  int i = 0;
  for (; i + kLanes <= count; i += kLanes) store(to + i, gated(load(gate + i), load(up + i), silu));
  if (i == count) return;
  float ends[2][kLanes] = {};
  std::copy(gate + i, gate + count, ends[0]);
  std::copy(up + i, up + count, ends[1]);
  store(ends[0], gated(load(ends[0]), load(ends[1]), silu));
  std::copy_n(ends[0], count - i, to + i);
}

// The gradients by gate and up, from that by the result.
INLINE void descend(Lanes& gate, Lanes& up, const Lanes& by, bool silu) {
  const Lanes share = 1.0f / (1.0f + exp(-gate));
  const Lanes by_share = by * up;
  up = by * (silu ? gate : all(1.0f)) * share;
  gate = by_share * share * (silu ? 1.0f + gate * (1.0f - share) : 1.0f - share);
}

FOR_EACH_PROCESSOR
void descend_row(const float* gate, const float* up, const float* by, float* by_gate, float* by_up,
                 int count, bool silu) {
  int i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    Lanes one = load(gate + i), other = load(up + i);
    descend(one, other, load(by + i), silu);
    store(by_gate + i, one);
    store(by_up + i, other);
  }
  if (i == count) return;
  float ends[3][kLanes] = {};
  std::copy(gate + i, gate + count, ends[0]);
  std::copy(up + i, up + count, ends[1]);
  std::copy(by + i, by + count, ends[2]);
  Lanes one = load(ends[0]), other = load(ends[1]);
  descend(one, other, load(ends[2]), silu);
  store(ends[0], one);
  store(ends[1], other);
  std::copy_n(ends[0], count - i, by_gate + i);
  std::copy_n(ends[1], count - i, by_up + i);
}

// Calls `work(row)` for all of `count` rows of `length`, on all threads.
template <typename Work>
void each_row(long count, long length, const Work& work) {
  // Elements that keep a core busy for a few microseconds.
  constexpr long kElements = 1 << 12;
  const long rows = std::max(1l, kElements / length);
  workers::share(workers::chunks(count, rows), [&](int chunk, int) {
    const long first = chunk * rows, end = std::min(count, first + rows);
    for (long row = first; row < end; ++row) work(row);
  });
}

class Task {
 public:
  Task(const op::Arrays& inputs, op::Arrays& outputs, bool silu)
      : silu_(silu), gate_(inputs[0]), up_(inputs[1]), to_(outputs[0].data<float>()) {}

  void run() {
    gate_.ready();
    up_.ready();
    const long length = gate_.length();
    each_row(gate_.count(), length, [&](long row) {
      gate_row(gate_.at(row), up_.at(row), to_ + row * length, static_cast<int>(length),
               silu_);
    });
  }

 private:
  bool silu_;
  layout::Rows<float> gate_, up_;
  float* to_;
};

class Descent {
 public:
  Descent(const op::Arrays& inputs, op::Arrays& outputs, bool silu)
      : silu_(silu),
        gate_(inputs[0]),
        up_(inputs[1]),
        by_(inputs[2]),
        by_gate_(outputs[0].data<float>()),
        by_up_(outputs[1].data<float>()) {}

  void run() {
    gate_.ready();
    up_.ready();
    by_.ready();
    const long length = gate_.length();
    each_row(gate_.count(), length, [&](long row) {
      const long at = row * length;
      descend_row(gate_.at(row), up_.at(row), by_.at(row), by_gate_ + at, by_up_ + at,
                  static_cast<int>(length), silu_);
    });
  }

 private:
  bool silu_;
  layout::Rows<float> gate_, up_, by_;
  float *by_gate_, *by_up_;
};

op::array gated(const op::array& gate, const op::array& up, bool silu, op::Stream stream) {
  using namespace mlx::core;
  const auto composed = [silu](const op::Arrays& inputs) {
    const array share = sigmoid(inputs[0]);
    return op::Arrays{multiply(silu ? multiply(inputs[0], share) : share, inputs[1])};
  };
  op::Gradient gradient{"GateGradient", 2, op::task<Descent>(silu)};
  return op::make({"Gate", {gate.shape()}, op::task<Task>(silu), composed, gradient}, {gate, up},
                  stream);
}

}  // namespace

void gate::row(const float* gate, const float* up, float* to, int count) {
  gate_row(gate, up, to, count, true);
}

op::array gate::silu(const op::array& gate, const op::array& up, op::Stream stream) {
  return gated(gate, up, true, stream);
}

const char* mlxgk_gate(mlx_array* result, mlx_array gate, mlx_array up, bool silu,
                       mlx_stream stream) {
  return op::give(result, [&] { return gated(op::of(gate), op::of(up), silu, op::of(stream)); });
}
