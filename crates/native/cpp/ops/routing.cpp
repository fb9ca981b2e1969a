// Which experts of a mixture a token is fed to, and how much each counts. For a single token MLX takes about ten
// operations for this, each of them longer to hand over than to compute.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <optional>
#include <vector>

#include "mlxgk.h"
#include "ops/layout.h"
#include "ops/memory.h"
#include "ops/op.h"
#include "ops/softmax.h"
#include "ops/vectors.h"
#include "ops/workers.h"

using namespace vectors;

namespace {

// What an expert's score is, as mlxgk.h numbers it.
enum Scores { kSoftmax, kLogits, kSigmoid };

// As mlxgk.h describes it.
struct Routing {
  int scores, chosen, groups, kept, judged_by;
  bool normalise;
  float epsilon, least_sum, scale, cap;
};

// Over a whole number of vectors.
FOR_EACH_PROCESSOR
void sigmoids(float* scores, int count) {
  for (int i = 0; i < count; i += kLanes) store(scores + i, 1.0f / (1.0f + exp(-load(scores + i))));
}

// NaN is above all numbers, as in torch.
inline bool is_above(float one, float other) {
  return one > other || (std::isnan(one) && !std::isnan(other));
}

// The places of the `count` highest values, the highest first, and of equal ones the first.
void best(const float* values, int length, int count, std::uint32_t* places) {
  int found = 0;
  for (int place = 0; place < length; ++place) {
    int at = found;
    while (at > 0 && is_above(values[place], values[places[at - 1]])) --at;
    if (at == count) continue;
    found = std::min(found + 1, count);
    std::move_backward(places + at, places + found - 1, places + found);
    places[at] = place;
  }
}

class Task {
 public:
  Task(const op::Arrays& inputs, op::Arrays& outputs, const Routing& how)
      : how_(how),
        logits_(inputs[0]),
        chosen_(outputs[0].data<std::uint32_t>()),
        shares_(outputs[1].data<float>()),
        experts_(inputs[0].shape(-1)),
        room_(softmax::whole(experts_)),
        floats_(3l * workers::count() * room_),
        places_(static_cast<long>(workers::count()) * room_) {
    if (inputs.size() > 1) correction_.emplace(inputs[1]);
  }

  void run() {
    // Elements that keep a core busy for a few microseconds.
    constexpr long kElements = 1 << 11;
    logits_.ready();
    if (correction_) correction_->ready();
    const long rows = std::max(1l, kElements / experts_);
    workers::share(workers::chunks(logits_.count(), rows), [&](int chunk, int worker) {
      const long first = chunk * rows, end = std::min(logits_.count(), first + rows);
      for (long row = first; row < end; ++row) route(row, worker);
    });
  }

 private:
  void route(long row, int worker) {
    float* scores = floats_.data() + 3l * worker * room_;
    float* judged = scores + room_;
    std::uint32_t* chosen = chosen_ + row * how_.chosen;
    score(logits_.at(row), scores);
    std::copy_n(scores, experts_, judged);
    if (correction_)
      for (int i = 0; i < experts_; ++i) judged[i] += correction_->data()[i];
    if (how_.kept < how_.groups) mask(judged, judged + room_, places_.data() + worker * room_);
    best(judged, experts_, how_.chosen, chosen);
    share(scores, chosen, shares_ + row * how_.chosen);
  }

  void score(const float* logits, float* scores) const {
    std::copy_n(logits, experts_, scores);
    std::fill(scores + experts_, scores + room_, softmax::kNothing);
    if (how_.cap != 0) {
      for (int i = 0; i < experts_; ++i) scores[i] = how_.cap * std::tanh(scores[i] / how_.cap);
    }
    if (how_.scores == kSoftmax) {
      const float share = softmax::powers(scores, experts_).share();
      softmax::scale(scores, share, scores, experts_, false);
    } else if (how_.scores == kSigmoid) {
      sigmoids(scores, experts_);
    }
  }

  // Leaves out the experts outside the best groups.
  void mask(float* judged, float* of_groups, std::uint32_t* places) const {
    const int size = experts_ / how_.groups;
    for (int group = 0; group < how_.groups; ++group) {
      const float* of_group = judged + group * size;
      best(of_group, size, how_.judged_by, places);
      of_groups[group] = 0;
      for (int i = 0; i < how_.judged_by; ++i) of_groups[group] += of_group[places[i]];
    }
    best(of_groups, how_.groups, how_.kept, places);
    std::sort(places, places + how_.kept);
    for (int group = 0; group < how_.groups; ++group)
      if (!std::binary_search(places, places + how_.kept, static_cast<std::uint32_t>(group)))
        std::fill_n(judged + group * size, size, softmax::kNothing);
  }

  void share(const float* scores, const std::uint32_t* chosen, float* shares) const {
    const int count = how_.chosen;
    float top = softmax::kNothing, sum = how_.epsilon;
    for (int i = 0; i < count; ++i) {
      shares[i] = scores[chosen[i]];
      top = std::max(top, shares[i]);
    }
    if (how_.scores == kLogits) {
      float total = 0;
      for (int i = 0; i < count; ++i) total += shares[i] = std::exp(shares[i] - top);
      for (int i = 0; i < count; ++i) shares[i] /= total;
    }
    if (how_.normalise) {
      for (int i = 0; i < count; ++i) sum += shares[i];
      if (how_.least_sum != 0 && sum < how_.least_sum) sum = how_.least_sum;
      for (int i = 0; i < count; ++i) shares[i] /= sum;
    }
    for (int i = 0; i < count; ++i) shares[i] *= how_.scale;
  }

  Routing how_;
  layout::Rows<float> logits_;
  std::optional<layout::Flat<float>> correction_;
  std::uint32_t* chosen_;
  float* shares_;
  int experts_;
  long room_;
  // For each thread: scores, what experts are judged by, and groups; and the places of the best.
  memory::Floats floats_;
  std::vector<std::uint32_t> places_;
};

op::Arrays route(const op::Arrays& inputs, const Routing& how, op::Stream stream) {
  using namespace mlx::core;
  const auto composed = [how, stream](const op::Arrays& inputs) {
    const array chosen = route(inputs, how, stream)[0];
    array scores = inputs[0];
    if (how.cap != 0) scores = tanh(scores / how.cap) * how.cap;
    if (how.scores == kSoftmax) scores = mlx::core::softmax(scores, -1, true);
    if (how.scores == kSigmoid) scores = sigmoid(scores);
    array shares = take_along_axis(scores, chosen, -1);
    if (how.scores == kLogits) shares = mlx::core::softmax(shares, -1, true);
    if (how.normalise) {
      array total = sum(shares, -1, true) + how.epsilon;
      if (how.least_sum != 0) total = maximum(total, array(how.least_sum));
      shares = shares / total;
    }
    return op::Arrays{shares * how.scale};
  };
  auto shape = inputs[0].shape();
  shape.back() = how.chosen;
  auto results = op::make_all(
      {"Route", {shape, shape}, op::task<Task>(how), composed, {}, {uint32, float32}}, inputs, stream);
  // What uses the choice need not have a gradient by it.
  if (inputs[0].is_tracer()) results[0] = stop_gradient(results[0], stream);
  return results;
}

}  // namespace

const char* mlxgk_route(mlx_array* results, mlx_array logits, mlx_array correction, int scores,
                        int chosen, int groups, int kept, int judged_by, bool normalise,
                        float epsilon, float least_sum, float scale, float cap, mlx_stream stream) {
  return op::give_all(results, [&] {
    op::Arrays inputs{op::of(logits)};
    if (correction.ctx != nullptr) inputs.push_back(op::of(correction));
    const Routing how{scores,    chosen,  groups,    kept,  judged_by,
                      normalise, epsilon, least_sum, scale, cap};
    return route(inputs, how, op::of(stream));
  });
}
