// The gate of a feed-forward layer, silu(gate) · up, in one pass over both.

#include <algorithm>

#include "mlxgk.h"
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

class Task {
 public:
  Task(const op::Arrays& inputs, op::array& output)
      : gate_(inputs[0]), up_(inputs[1]), to_(output.data<float>()) {}

  void run() {
    gate_.ready();
    up_.ready();
    const long length = gate_.length(), rows = std::max(1l, kElements / length);
    workers::share(workers::chunks(gate_.count(), rows), [&](int chunk, int) {
      const long first = chunk * rows, end = std::min(gate_.count(), first + rows);
      for (long row = first; row < end; ++row)
        gate_row(gate_.at(row), up_.at(row), to_ + row * length, static_cast<int>(length));
    });
  }

 private:
  // Elements that keep a core busy for a few microseconds.
  static constexpr long kElements = 1 << 12;

  layout::Rows<float> gate_, up_;
  float* to_;
};

op::array silu_gate(const op::array& gate, const op::array& up, op::Stream stream) {
  using namespace mlx::core;
  const auto prepare = [](const op::Arrays& inputs, array& output) {
    return op::work<Task>(inputs, output);
  };
  const auto composed = [](const op::Arrays& inputs) {
    return multiply(multiply(inputs[0], sigmoid(inputs[0])), inputs[1]);
  };
  return op::make("SiluGate", prepare, composed, gate.shape(), {gate, up}, stream);
}

}  // namespace

const char* mlxgk_silu_gate(mlx_array* result, mlx_array gate, mlx_array up, mlx_stream stream) {
  return op::give(result, [&] { return silu_gate(op::of(gate), op::of(up), op::of(stream)); });
}
