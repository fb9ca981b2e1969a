// The gate of a feed-forward layer, silu(gate) · up, in one pass over both.

#include <algorithm>

#include "mlxgk.h"
#include "ops/gate.h"
#include "ops/layout.h"
#include "ops/op.h"
#include "ops/vectors.h"
#include "ops/workers.h"

using namespace vectors;

namespace {

INLINE Lanes gated(const Lanes& gate, const Lanes& up) { return gate / (1.0f + exp(-gate)) * up; }

FOR_EACH_PROCESSOR
void gate_row(const float* gate, const float* up, float* to, int count) {
  int i = 0;
  for (; i + kLanes <= count; i += kLanes) store(to + i, gated(load(gate + i), load(up + i)));
  if (i == count) return;
  float ends[2][kLanes] = {};
  std::copy(gate + i, gate + count, ends[0]);
  std::copy(up + i, up + count, ends[1]);
  store(ends[0], gated(load(ends[0]), load(ends[1])));
  std::copy_n(ends[0], count - i, to + i);
}

// The gradients by gate and up, from that by the result.
INLINE void descend(Lanes& gate, Lanes& up, const Lanes& by) {
  const Lanes share = 1.0f / (1.0f + exp(-gate));
  const Lanes by_silu = by * up;
  up = by * gate * share;
  gate = by_silu * share * (1.0f + gate * (1.0f - share));
}

FOR_EACH_PROCESSOR
void descend_row(const float* gate, const float* up, const float* by, float* by_gate, float* by_up,
                 int count) {
  int i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    Lanes one = load(gate + i), other = load(up + i);
    descend(one, other, load(by + i));
    store(by_gate + i, one);
    store(by_up + i, other);
  }
  if (i == count) return;
  float ends[3][kLanes] = {};
  std::copy(gate + i, gate + count, ends[0]);
  std::copy(up + i, up + count, ends[1]);
  std::copy(by + i, by + count, ends[2]);
  Lanes one = load(ends[0]), other = load(ends[1]);
  descend(one, other, load(ends[2]));
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
  Task(const op::Arrays& inputs, op::Arrays& outputs)
      : gate_(inputs[0]), up_(inputs[1]), to_(outputs[0].data<float>()) {}

  void run() {
    gate_.ready();
    up_.ready();
    const long length = gate_.length();
    each_row(gate_.count(), length, [&](long row) {
      gate_row(gate_.at(row), up_.at(row), to_ + row * length, static_cast<int>(length));
    });
  }

 private:
  layout::Rows<float> gate_, up_;
  float* to_;
};

class Descent {
 public:
  Descent(const op::Arrays& inputs, op::Arrays& outputs)
      : gate_(inputs[0]),
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
                  static_cast<int>(length));
    });
  }

 private:
  layout::Rows<float> gate_, up_, by_;
  float *by_gate_, *by_up_;
};

}  // namespace

void gate::row(const float* gate, const float* up, float* to, int count) {
  gate_row(gate, up, to, count);
}

op::array gate::silu(const op::array& gate, const op::array& up, op::Stream stream) {
  using namespace mlx::core;
  const auto composed = [](const op::Arrays& inputs) {
    return op::Arrays{multiply(multiply(inputs[0], sigmoid(inputs[0])), inputs[1])};
  };
  op::Gradient gradient{"SiluGateGradient", 2, op::task<Descent>()};
  return op::make({"SiluGate", {gate.shape()}, op::task<Task>(), composed, gradient}, {gate, up},
                  stream);
}

const char* mlxgk_silu_gate(mlx_array* result, mlx_array gate, mlx_array up, mlx_stream stream) {
  return op::give(result, [&] { return gate::silu(op::of(gate), op::of(up), op::of(stream)); });
}
