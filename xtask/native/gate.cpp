// The gate of a feed-forward layer, silu(gate) · up, in one pass over both.

#include <algorithm>
#include <stdexcept>

#include "op.h"
#include "vectors.h"
#include "workers.h"

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

class SiluGate : public op::Kernel {
 public:
  void compute(const op::Arrays& inputs, op::array& output) const override {
    const op::Rows gate(inputs[0]), up(inputs[1]);
    const int chunk = std::max(1, kChunk / std::max(gate.length(), 1));
    const Work work{gate, up, output.data<float>(), chunk};
    workers::share((gate.count() + chunk - 1) / chunk, do_chunk, &work);
  }

 private:
  // Elements that keep a core busy for a few microseconds.
  static constexpr int kChunk = 1 << 12;

  struct Work {
    const op::Rows& gate;
    const op::Rows& up;
    float* to;
    int chunk;
  };

  static void do_chunk(const void* context, int index) {
    const Work& it = *static_cast<const Work*>(context);
    const long length = it.gate.length();
    const int end = std::min(it.gate.count(), (index + 1) * it.chunk);
    for (long row = static_cast<long>(index) * it.chunk; row < end; ++row)
      gate_row(it.gate.data() + row * it.gate.row(), it.up.data() + row * it.up.row(),
               it.to + row * length, static_cast<int>(length));
  }
};

op::array silu_gate(const op::array& gate, const op::array& up) {
  using namespace mlx::core;
  const auto composed = [](const op::Arrays& inputs) {
    return multiply(multiply(inputs[0], sigmoid(inputs[0])), inputs[1]);
  };
  if (gate.dtype() != float32 || up.dtype() != float32 || gate.ndim() == 0 ||
      gate.shape() != up.shape())
    throw std::invalid_argument("the gate takes two fp32 arrays of one shape");
  return op::make("SiluGate", std::make_shared<SiluGate>(), composed, gate.shape(), {gate, up});
}

}  // namespace

extern "C" const char* mlxgk_silu_gate(mlx_array* result, mlx_array gate, mlx_array up) {
  return op::give(result, [&] { return silu_gate(op::of(gate), op::of(up)); });
}
