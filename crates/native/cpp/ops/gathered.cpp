// Products with the matrices of the experts that a router has chosen.

#include <algorithm>
#include <limits>
#include <vector>

#include "ops/few_rows.h"
#include "ops/layout.h"
#include "ops/many_rows.h"
#include "ops/memory.h"
#include "ops/product.h"
#include "ops/workers.h"

using product::Make;
using product::whole;

namespace {

// y[p] = x[p]·w[chosen[p]]' for every place p of `chosen`, x[p] of rows × k, w of experts × n × k. Of
// the axes of `x` that `chosen` spans, some may be 1.
class Gathered {
 public:
  Gathered(const op::Arrays& inputs, op::Arrays& outputs, const Make& make, int experts, int n)
      : weights_(make({inputs.begin() + 2, inputs.end()})),
        x_(inputs[0]),
        chosen_(inputs[1]),
        y_(outputs[0].data<float>()),
        experts_(experts),
        n_(n),
        k_(inputs[0].shape(-1)),
        rows_(inputs[0].shape(-2)),
        count_(static_cast<long>(inputs[1].size()) * rows_),
        from_(sources(inputs[0].shape(), inputs[1].shape())),
        order_(inputs[1].size()),
        first_(experts + 2),
        next_(experts + 1),
        few_(experts),
        chunk_(product::chunk_of(1, n_, k_)),
        x_row_(whole(std::max<long>(k_, weights_->room()))),
        inputs_(count_ * x_row_),
        outputs_(static_cast<long>(workers::count()) * few_rows::kMost * chunk_),
        many_(count_ > few_rows::kMost ? count_ * n_ : 0),
        scratch_(count_ > few_rows::kMost
                     ? memory::share(many_rows::scratch(static_cast<int>(count_), k_))
                     : nullptr) {}

  void run() {
    x_.ready();
    chosen_.ready();
    weights_->ready();
    if (k_ == 0) {
      std::fill_n(y_, count_ * n_, 0.0f);
      return;
    }
    sort();
    int few = 0;
    for (int expert = 0; expert < experts_; ++expert) {
      const long rows = rows_of(expert);
      if (rows > 0 && rows <= few_rows::kMost) few_[few++] = expert;
      place(expert, rows <= few_rows::kMost);
    }
    const int per = workers::chunks(n_, chunk_);
    workers::share(few * per, [&](int chunk, int worker) {
      meet(few_[chunk / per], chunk % per * chunk_,
           outputs_.data() + static_cast<long>(worker) * few_rows::kMost * chunk_);
    });
    if (scratch_ != nullptr) {
      const std::lock_guard<std::mutex> guard(scratch_->in_use);
      for (int expert = 0; expert < experts_; ++expert)
        if (rows_of(expert) > few_rows::kMost) multiply(expert);
    }
    // There is no such expert.
    for (long place = first_[experts_]; place < first_[experts_ + 1]; ++place)
      std::fill_n(y_ + order_[place] * rows_ * n_, static_cast<long>(rows_) * n_,
                  std::numeric_limits<float>::quiet_NaN());
  }

 private:
  // For each place of `chosen`, the first of its rows of `x`.
  static std::vector<long> sources(const mlx::core::Shape& x, const mlx::core::Shape& chosen) {
    std::vector<long> from{0};
    for (std::size_t axis = 0; axis < chosen.size(); ++axis) {
      std::vector<long> inner;
      for (const long outer : from)
        for (int i = 0; i < chosen[axis]; ++i)
          inner.push_back(outer * x[axis] + (x[axis] == 1 ? 0 : i));
      from = std::move(inner);
    }
    for (long& it : from) it *= x[x.size() - 2];
    return from;
  }

  int expert_at(long place) const {
    const std::uint32_t expert = chosen_.data()[place];
    return expert < static_cast<std::uint32_t>(experts_) ? static_cast<int>(expert) : experts_;
  }

  // The places in the order of their experts, those that name none last.
  void sort() {
    const long places = static_cast<long>(order_.size());
    std::fill(first_.begin(), first_.end(), 0);
    for (long place = 0; place < places; ++place) ++first_[expert_at(place) + 1];
    for (std::size_t i = 1; i < first_.size(); ++i) first_[i] += first_[i - 1];
    std::copy(first_.begin(), first_.end() - 1, next_.begin());
    for (long place = 0; place < places; ++place) order_[next_[expert_at(place)]++] = place;
  }

  long rows_of(int expert) const { return (first_[expert + 1] - first_[expert]) * rows_; }
  float* inputs_of(int expert) const { return inputs_.data() + first_[expert] * rows_ * x_row_; }

  // Copies an expert's inputs, one behind another.
  void place(int expert, bool arranged) const {
    float* to = inputs_of(expert);
    for (long place = first_[expert]; place < first_[expert + 1]; ++place)
      for (int row = 0; row < rows_; ++row, to += x_row_) {
        const float* x = x_.at(from_[order_[place]] + row);
        if (arranged) weights_->arrange(x, to);
        else std::copy_n(x, k_, to);
      }
  }

  // Puts an expert's outputs of `count` columns, from `column` on, where they belong.
  void spread(int expert, const float* from, long row, int column, int count) const {
    for (long place = first_[expert]; place < first_[expert + 1]; ++place)
      for (int i = 0; i < rows_; ++i, from += row)
        std::copy_n(from, count, y_ + (order_[place] * rows_ + i) * n_ + column);
  }

  void meet(int expert, int column, float* outputs) const {
    const int count = std::min(chunk_, n_ - column);
    weights_->multiply(static_cast<int>(rows_of(expert)), inputs_of(expert), x_row_,
                       static_cast<long>(expert) * n_ + column, count, outputs, count);
    spread(expert, outputs, count, column, count);
  }

  void multiply(int expert) const {
    many_rows::multiply(static_cast<int>(rows_of(expert)), n_, k_, {inputs_of(expert), x_row_, false},
                        *weights_, static_cast<long>(expert) * n_, many_.data(), n_, false,
                        scratch_->floats.data());
    spread(expert, many_.data(), n_, 0, n_);
  }

  std::unique_ptr<matrix::Matrix> weights_;
  layout::Rows<float> x_;
  layout::Flat<std::uint32_t> chosen_;
  float* y_;
  int experts_, n_, k_, rows_;
  long count_;
  // By place of `chosen`: its source in x, and those in the order of their experts. By expert: its
  // first among the latter, and the next to be put there. The experts of few rows.
  std::vector<long> from_, order_, first_, next_;
  std::vector<int> few_;
  int chunk_;
  long x_row_;
  memory::Floats inputs_, outputs_, many_;
  std::shared_ptr<memory::Shared> scratch_;
};

}  // namespace

op::array product::gathered(const op::array& x, const op::array& chosen, const op::Arrays& weights,
                            const Storage& storage, op::Stream stream) {
  const int experts = weights[0].shape(0), n = weights[0].shape(-2);
  op::Arrays inputs{x, chosen};
  inputs.insert(inputs.end(), weights.begin(), weights.end());
  const auto in_mlx = [composed = storage.composed](const op::Arrays& inputs) {
    return op::Arrays{composed(inputs[0], {inputs.begin() + 2, inputs.end()}, inputs[1])};
  };
  auto out = chosen.shape();
  out.push_back(x.shape(-2));
  out.push_back(n);
  return op::make({"GatheredProduct", {out}, op::task<Gathered>(storage.make, experts, n), in_mlx},
                  std::move(inputs), stream);
}
