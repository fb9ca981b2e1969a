// Products with the matrices of the experts that a router has chosen.

#include <algorithm>
#include <limits>
#include <optional>
#include <vector>

#include "ops/few_rows.h"
#include "ops/gate.h"
#include "ops/layout.h"
#include "ops/many_rows.h"
#include "ops/memory.h"
#include "ops/product.h"
#include "ops/softmax.h"
#include "ops/workers.h"

using product::Make;
using product::whole;

namespace {

enum Kind {
  // The products.
  kPlain,
  // silu(y[0]) · y[1] of two matrices, or of one that has the rows of both. A row of `x` meets the experts of all
  // places of the last axis of `chosen`.
  kGated,
  // Their sum along the last axis of `chosen`, each times its share.
  kMixed,
};

// y[p] = x[p]·w[chosen[p]]' for every place p of `chosen`, x[p] of rows × k, w of experts × n × k, and what becomes
// of that.
class Gathered {
 public:
  // There are `count` matrices, all stored alike.
  Gathered(const op::Arrays& inputs, op::Arrays& outputs, const Make& make, Kind kind, int count,
           int experts, int n)
      : parts_(parts(inputs, make, kind, count)),
        kind_(kind),
        x_(inputs[0]),
        chosen_(inputs[1]),
        experts_(experts),
        n_(n),
        k_(inputs[0].shape(-1)),
        rows_(kind == kPlain ? inputs[0].shape(-2) : 1),
        count_(static_cast<long>(inputs[1].size()) * rows_),
        axis_(kind == kPlain ? 1 : inputs[1].shape(-1)),
        from_(sources(inputs, kind)),
        order_(inputs[1].size()),
        first_(experts + 2),
        next_(experts + 1),
        few_(experts),
        x_row_(whole(std::max<long>(k_, parts_[0].weights->room()))),
        inputs_(count_ * x_row_),
        outputs_(static_cast<long>(workers::count()) * room()),
        many_(count_ > few_rows::kMost ? count_ * n_ * static_cast<long>(parts_.size()) : 0),
        unmixed_(kind == kMixed ? count_ * n_ : 0),
        scratch_(count_ > few_rows::kMost
                     ? memory::share(many_rows::scratch(static_cast<int>(count_), k_))
                     : nullptr) {
    if (kind == kMixed) shares_.emplace(inputs[2]);
    result_ = outputs[0].data<float>();
    y_ = kind == kMixed ? unmixed_.data() : result_;
  }

  void run() {
    x_.ready();
    chosen_.ready();
    if (shares_) shares_->ready();
    for (const Part& part : parts_) part.weights->ready();
    if (k_ == 0) std::fill_n(y_, count_ * n_, 0.0f);
    else multiply();
    if (kind_ == kMixed) mix();
  }

 private:
  // A matrix of the chosen expert, whose rows are `rows` apart from those of the next, from `first` on.
  struct Part {
    std::unique_ptr<matrix::Matrix> weights;
    long rows, first;

    long row(int expert) const { return expert * rows + first; }
  };

  static std::vector<Part> parts(const op::Arrays& inputs, const Make& make, Kind kind, int count) {
    std::vector<Part> parts;
    const auto weights = inputs.begin() + (kind == kMixed ? 3 : 2);
    const auto each = (inputs.end() - weights) / count;
    for (int i = 0; i < count; ++i) {
      const auto first = weights + i * each;
      parts.push_back({make({first, first + each}), first->shape(-2), 0});
    }
    if (kind == kGated && count == 1) {
      const long rows = parts[0].rows;
      parts.push_back({make({weights, inputs.end()}), rows, rows / 2});
    }
    return parts;
  }

  // What the products of a few rows with an expert take: of a part, and of all.
  long room_of_part() const { return std::min<long>(few_rows::kMost, count_) * n_; }
  long room() const { return static_cast<long>(parts_.size()) * room_of_part(); }

  void multiply() {
    sort();
    int few = 0;
    for (int expert = 0; expert < experts_; ++expert) {
      const long rows = rows_of(expert);
      if (rows > 0 && rows <= few_rows::kMost) few_[few++] = expert;
      place(expert, rows <= few_rows::kMost);
    }
    meet_few(few);
    if (scratch_ != nullptr) {
      const std::lock_guard<std::mutex> guard(scratch_->in_use);
      for (int expert = 0; expert < experts_; ++expert)
        if (rows_of(expert) > few_rows::kMost) meet_many(expert);
    }
    // There is no such expert.
    for (long place = first_[experts_]; place < first_[experts_ + 1]; ++place)
      std::fill_n(y_ + order_[place] * rows_ * n_, static_cast<long>(rows_) * n_,
                  std::numeric_limits<float>::quiet_NaN());
  }

  // Adds up the products of the last axis of `chosen`.
  void mix() const {
    workers::share(static_cast<int>(count_ / axis_), [this](int token, int) {
      const long first = token * axis_;
      for (long place = first; place < first + axis_; ++place)
        softmax::scale(y_ + place * n_, shares_->data()[place], result_ + long{token} * n_, n_,
                       place > first);
    });
  }

  // For each place of `chosen`, the first of its rows of `x`.
  static std::vector<long> sources(const op::Arrays& inputs, Kind kind) {
    if (kind == kPlain) return sources(inputs[0].shape(), inputs[1].shape());
    std::vector<long> from(inputs[1].size());
    const long same = kind == kGated ? inputs[1].shape(-1) : 1;
    for (std::size_t place = 0; place < from.size(); ++place)
      from[place] = static_cast<long>(place) / same;
    return from;
  }

  // The same where some of the axes of `x` that `chosen` spans are 1.
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
        if (arranged) parts_[0].weights->arrange(x, to);
        else std::copy_n(x, k_, to);
      }
  }

  // Puts an expert's outputs of `count` columns, from `column` on, where they belong.
  void spread(int expert, const float* from, long row, int column, int count) const {
    for (long place = first_[expert]; place < first_[expert + 1]; ++place)
      for (int i = 0; i < rows_; ++i, from += row)
        std::copy_n(from, count, y_ + (order_[place] * rows_ + i) * n_ + column);
  }

  // The first `count` of the experts of few rows, whose columns are shared out as if they were those of one.
  void meet_few(int count) const {
    const std::vector<int> bounds =
        product::chunks_for(1, count * n_, k_ * static_cast<int>(parts_.size()));
    workers::share(static_cast<int>(bounds.size()) - 1, [&](int chunk, int worker) {
      for (int from = bounds[chunk]; from < bounds[chunk + 1];) {
        const int column = from % n_, columns = std::min(n_ - column, bounds[chunk + 1] - from);
        meet(few_[from / n_], column, columns, outputs_.data() + worker * room());
        from += columns;
      }
    });
  }

  void meet(int expert, int column, int count, float* outputs) const {
    const int rows = static_cast<int>(rows_of(expert));
    float* up = outputs + room_of_part();
    for (const Part& part : parts_)
      part.weights->multiply(rows, inputs_of(expert), x_row_, part.row(expert) + column, count,
                             &part == parts_.data() ? outputs : up, count);
    if (kind_ == kGated) gate::row(outputs, up, outputs, rows * count);
    spread(expert, outputs, count, column, count);
  }

  void meet_many(int expert) const {
    const int rows = static_cast<int>(rows_of(expert));
    float* up = many_.data() + count_ * n_;
    for (const Part& part : parts_)
      many_rows::multiply(rows, n_, k_, {inputs_of(expert), x_row_, false}, *part.weights,
                          part.row(expert), &part == parts_.data() ? many_.data() : up, n_, false,
                          scratch_->floats.data());
    if (kind_ == kGated)
      workers::share(rows, [&](int row, int) {
        float* gate = many_.data() + long{row} * n_;
        gate::row(gate, up + long{row} * n_, gate, n_);
      });
    spread(expert, many_.data(), n_, 0, n_);
  }

  std::vector<Part> parts_;
  Kind kind_;
  layout::Rows<float> x_;
  layout::Flat<std::uint32_t> chosen_;
  std::optional<layout::Flat<float>> shares_;
  float *y_, *result_;
  int experts_, n_, k_, rows_;
  // How many products there are, and how many places the last axis of `chosen` has.
  long count_, axis_;
  // By place of `chosen`: its source in x, and those in the order of their experts. By expert: its
  // first among the latter, and the next to be put there. The experts of few rows.
  std::vector<long> from_, order_, first_, next_;
  std::vector<int> few_;
  long x_row_;
  memory::Floats inputs_, outputs_, many_, unmixed_;
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
  const auto task = op::task<Gathered>(storage.make, kPlain, 1, experts, n);
  return op::make({"GatheredProduct", {out}, task, in_mlx}, std::move(inputs), stream);
}

op::array product::gathered_gate(const op::array& x, const op::array& chosen,
                                 const op::Arrays& weights, int count, const Storage& storage,
                                 op::Stream stream) {
  const int experts = weights[0].shape(0), n = weights[0].shape(-2) / (count == 1 ? 2 : 1);
  op::Arrays inputs{x, chosen};
  inputs.insert(inputs.end(), weights.begin(), weights.end());
  const auto one_by_one = [=](const op::Arrays& inputs) {
    op::Arrays ys;
    const op::array rows = mlx::core::expand_dims(inputs[0], {-2, -3});
    const auto each = (inputs.size() - 2) / count;
    for (int i = 0; i < count; ++i) {
      const auto first = inputs.begin() + 2 + i * each;
      const op::array y = gathered(rows, inputs[1], {first, first + each}, storage, stream);
      ys.push_back(mlx::core::squeeze(y, -2));
    }
    if (count == 1) ys = mlx::core::split(ys[0], 2, -1);
    return op::Arrays{gate::silu(ys[0], ys[1], stream)};
  };
  auto out = chosen.shape();
  out.push_back(n);
  const auto task = op::task<Gathered>(storage.make, kGated, count, experts, n);
  return op::make({"GatheredGate", {out}, task, one_by_one}, std::move(inputs), stream);
}

op::array product::mixed(const op::array& x, const op::array& chosen, const op::array& shares,
                         const op::Arrays& weights, const Storage& storage, op::Stream stream) {
  using namespace mlx::core;
  const int experts = weights[0].shape(0), n = weights[0].shape(-2);
  op::Arrays inputs{x, chosen, shares};
  inputs.insert(inputs.end(), weights.begin(), weights.end());
  const auto one_by_one = [=](const op::Arrays& inputs) {
    const array rows = expand_dims(inputs[0], -2);
    const array y = gathered(rows, inputs[1], {inputs.begin() + 3, inputs.end()}, storage, stream);
    return op::Arrays{sum(squeeze(y, -2) * expand_dims(inputs[2], -1), -2)};
  };
  auto out = chosen.shape();
  out.back() = n;
  const auto task = op::task<Gathered>(storage.make, kMixed, 1, experts, n);
  return op::make({"MixedProduct", {out}, task, one_by_one}, std::move(inputs), stream);
}
