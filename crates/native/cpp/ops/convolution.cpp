// A causal convolution of each channel by itself, over a few tokens, and silu of the result: in one pass over
// inputs that stay near by, where MLX takes one per token that is seen.

#include <algorithm>
#include <cmath>
#include <optional>

#include "mlxgk.h"
#include "ops/layout.h"
#include "ops/op.h"
#include "ops/vectors.h"
#include "ops/workers.h"

using namespace vectors;

namespace {

// Tokens in a chunk of work, and channels that are done for all of them before the next.
constexpr int kTokens = 16, kChannels = 512;

// Tokens that follow each other, and all that they see.
struct Band {
  int tokens, width, channels;
  const float* const* x;  // rows, as many as tokens and width - 1 before them
  const float* weight;
  long weight_row;
  const float* bias;  // or null
  bool silu;
  float* to;  // rows of `channels`
};

FOR_EACH_PROCESSOR
void convolve(const Band& it) {
  for (int from = 0; from < it.channels; from += kChannels) {
    const int end = std::min(it.channels, from + kChannels);
    for (int token = 0; token < it.tokens; ++token) {
      const float* const* x = it.x + token;
      float* to = it.to + static_cast<long>(token) * it.channels;
      int at = from;
      for (; at + kLanes <= end; at += kLanes) {
        Lanes y{};
        for (int i = 0; i < it.width; ++i)
          y += load(x[i] + at) * load(it.weight + i * it.weight_row + at);
        if (it.bias != nullptr) y += load(it.bias + at);
        store(to + at, it.silu ? y / (1.0f + exp(-y)) : y);
      }
      for (; at < end; ++at) {
        float y = 0;
        for (int i = 0; i < it.width; ++i) y += x[i][at] * it.weight[i * it.weight_row + at];
        if (it.bias != nullptr) y += it.bias[at];
        to[at] = it.silu ? y / (1.0f + std::exp(-y)) : y;
      }
    }
  }
}

class Task {
 public:
  Task(const op::Arrays& inputs, op::Arrays& outputs, bool silu)
      : x_(inputs[0]),
        before_(inputs[1]),
        weight_(inputs[2]),
        tokens_(inputs[0].shape(1)),
        width_(inputs[2].shape(0)),
        rows_(workers::count() * (kTokens + width_)),
        silu_(silu),
        to_(outputs[0].data<float>()) {
    if (inputs.size() > 3) bias_.emplace(inputs[3]);
  }

  void run() {
    x_.ready();
    before_.ready();
    weight_.ready();
    if (bias_) bias_->ready();
    const int bands = workers::chunks(tokens_, kTokens);
    const long batch = x_.count() / tokens_;
    workers::share(static_cast<int>(batch * bands), [&](int chunk, int worker) {
      const long row = chunk / bands, first = static_cast<long>(chunk % bands) * kTokens;
      const int tokens = static_cast<int>(std::min<long>(kTokens, tokens_ - first));
      const float** x = rows_.data() + worker * (kTokens + width_);
      for (int i = 0; i < tokens + width_ - 1; ++i) {
        const long token = first + i - (width_ - 1);
        x[i] = token < 0 ? before_.at(row * (width_ - 1) + token + width_ - 1)
                         : x_.at(row * tokens_ + token);
      }
      const long channels = x_.length();
      convolve({tokens, width_, static_cast<int>(channels), x, weight_.data(), weight_.row(),
                bias_ ? bias_->data() : nullptr, silu_, to_ + (row * tokens_ + first) * channels});
    });
  }

 private:
  layout::Rows<float> x_, before_, weight_;
  std::optional<layout::Flat<float>> bias_;
  long tokens_;
  int width_;
  std::vector<const float*> rows_;
  bool silu_;
  float* to_;
};

op::array causal_convolution(const op::Arrays& inputs, bool silu, op::Stream stream) {
  using namespace mlx::core;
  const auto composed = [silu](const op::Arrays& inputs) {
    const array all = concatenate({inputs[1], inputs[0]}, 1);
    const int batch = inputs[0].shape(0), tokens = inputs[0].shape(1), channels = inputs[0].shape(2);
    array y = inputs.size() > 3 ? inputs[3] : array(0.0f);
    for (int i = 0; i < inputs[2].shape(0); ++i)
      y = y + slice(all, {0, i, 0}, {batch, i + tokens, channels}) *
                  slice(inputs[2], {i, 0}, {i + 1, channels});
    return op::Arrays{silu ? y * sigmoid(y) : y};
  };
  return op::make({"CausalConvolution", {inputs[0].shape()}, op::task<Task>(silu), composed}, inputs,
                  stream);
}

}  // namespace

const char* mlxgk_causal_convolution(mlx_array* result, mlx_array x, mlx_array before,
                                     mlx_array weight, mlx_array bias, bool silu,
                                     mlx_stream stream) {
  return op::give(result, [&] {
    op::Arrays inputs{op::of(x), op::of(before), op::of(weight)};
    if (bias.ctx != nullptr) inputs.push_back(op::of(bias));
    return causal_convolution(inputs, silu, op::of(stream));
  });
}
