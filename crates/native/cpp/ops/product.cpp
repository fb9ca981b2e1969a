// Products with weights as they are stored: with one matrix, and with the matrices of the experts
// that a router has chosen.
//
// A few rows meet the weights in registers, which read them once. Many rows are worth turning the
// weights around, a block at a time.

#include <algorithm>
#include <limits>
#include <optional>
#include <vector>

#include "mlxgk.h"
#include "ops/few_rows.h"
#include "ops/layout.h"
#include "ops/many_rows.h"
#include "ops/matrix.h"
#include "ops/memory.h"
#include "ops/op.h"
#include "ops/workers.h"
#include "shim/blas.h"

namespace {

using Make = std::function<std::unique_ptr<matrix::Matrix>(const op::Arrays& weights)>;

// Rows begin at multiples of 64 bytes.
long whole(long count) { return (count + 15) / 16 * 16; }

// How many rows of weights are a chunk of work for `m` rows of inputs: it takes a core a few
// microseconds, several times as long as handing it over. Chunks are about equal.
int chunk_of(long m, long n, long k) {
  const long products = std::clamp<long>(m * n * k / 16, 1 << 16, 1 << 18);
  const long most = std::max<long>(products / std::max<long>(m * k, 1), 1);
  const long rows = (n + workers::chunks(n, most) - 1) / std::max(workers::chunks(n, most), 1);
  return static_cast<int>(std::min<long>((rows + 23) / 24 * 24, n));
}

// y = x·w', x of m × k, w of n × k.
class Product {
 public:
  Product(const op::Arrays& inputs, op::Arrays& outputs, const Make& make, int n)
      : weights_(make({inputs.begin() + 1, inputs.end()})),
        x_(inputs[0]),
        y_(outputs[0].data<float>()),
        n_(n),
        k_(inputs[0].shape(-1)),
        m_(static_cast<int>(outputs[0].size() / n_)),
        x_row_(whole(weights_->room())),
        few_(is_few() ? m_ * x_row_ : 0),
        many_(is_few() ? nullptr : memory::share(many_rows::scratch(m_, k_))) {}

  void run() {
    x_.ready();
    weights_->ready();
    if (k_ == 0) {
      std::fill_n(y_, static_cast<long>(m_) * n_, 0.0f);
    } else if (is_few()) {
      few();
    } else {
      const std::lock_guard<std::mutex> guard(many_->in_use);
      many_rows::multiply(m_, n_, k_, {x_.data(), x_.row(), false}, *weights_, 0, y_, n_, false,
                          many_->floats.data());
    }
  }

 private:
  bool is_few() const { return m_ <= few_rows::kMost; }

  void few() {
    for (int row = 0; row < m_; ++row)
      weights_->arrange(x_.at(row), few_.data() + row * x_row_);
    const int chunk = chunk_of(m_, n_, k_);
    workers::share(workers::chunks(n_, chunk), [&](int index, int) {
      const int from = index * chunk;
      weights_->multiply(m_, few_.data(), x_row_, from, std::min(chunk, n_ - from), y_ + from, n_);
    });
  }

  std::unique_ptr<matrix::Matrix> weights_;
  layout::Rows<float> x_;
  float* y_;
  int n_, k_, m_;
  long x_row_;
  // Inputs of a few rows, arranged; what a product of many takes.
  memory::Floats few_;
  std::shared_ptr<memory::Shared> many_;
};

// The gradient by x, by·w, from that by y, of m × n. Rows of weights become floats, a panel at a time.
class Descent {
 public:
  Descent(const op::Arrays& inputs, op::Arrays& outputs, const Make& make)
      : weights_(make({inputs.begin() + 1, inputs.end() - 1})),
        by_(inputs.back()),
        by_x_(outputs[0].data<float>()),
        n_(inputs.back().shape(-1)),
        k_(inputs[0].shape(-1)),
        m_(static_cast<int>(outputs[0].size() / k_)),
        most_(static_cast<int>(std::clamp<long>(kPanel / std::max(k_, 1), 1, std::max(n_, 1)))),
        panel_(static_cast<long>(most_) * k_) {}

  void run() {
    by_.ready();
    weights_->ready();
    if (n_ == 0) std::fill_n(by_x_, static_cast<long>(m_) * k_, 0.0f);
    for (int from = 0; from < n_; from += most_) {
      const int count = std::min(most_, n_ - from);
      widen(from, count);
      cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasNoTrans, m_, k_, count, 1, by_.data() + from,
                  static_cast<int>(by_.row()), panel_.data(), k_, from > 0 ? 1 : 0, by_x_, k_);
    }
  }

 private:
  // Weights in a panel, and in a chunk of it that a thread widens.
  static constexpr long kPanel = 1 << 20;
  static constexpr long kChunk = 1 << 16;

  void widen(int first, int count) {
    const int share = static_cast<int>(std::max(1l, kChunk / k_));
    workers::share(workers::chunks(count, share), [&](int chunk, int) {
      const int end = std::min(count, (chunk + 1) * share);
      for (int row = chunk * share; row < end; ++row)
        weights_->widen(first + row, 0, k_, panel_.data() + static_cast<long>(row) * k_);
    });
  }

  std::unique_ptr<matrix::Matrix> weights_;
  layout::Rows<float> by_;
  float* by_x_;
  int n_, k_, m_, most_;
  memory::Floats panel_;
};

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
        chunk_(chunk_of(1, n_, k_)),
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

// What is multiplied by `weights`, in MLX's own operations.
using Composed = std::function<op::array(const op::array& x, const op::Arrays& weights,
                                         const std::optional<op::array>& chosen)>;

// The product of `x` with a matrix, or with those that `chosen` names, of [.., n, k].
op::array product(const op::array& x, const mlx_array& chosen, const op::Arrays& weights,
                  const Make& make, const Composed& composed, op::Stream stream) {
  const auto& shape = weights[0].shape();
  const int n = weights[0].shape(-2);
  op::Arrays inputs{x};
  if (chosen.ctx == nullptr) {
    inputs.insert(inputs.end(), weights.begin(), weights.end());
    const auto in_mlx = [composed](const op::Arrays& inputs) {
      return op::Arrays{composed(inputs[0], {inputs.begin() + 1, inputs.end()}, std::nullopt)};
    };
    auto out = x.shape();
    out.back() = n;
    op::Gradient gradient{"ProductGradient", 1, op::task<Descent>(make)};
    return op::make({"Product", {out}, op::task<Product>(make, n), in_mlx, gradient},
                    std::move(inputs), stream);
  }
  inputs.push_back(op::of(chosen));
  inputs.insert(inputs.end(), weights.begin(), weights.end());
  const int experts = shape[0];
  const auto in_mlx = [composed](const op::Arrays& inputs) {
    return op::Arrays{composed(inputs[0], {inputs.begin() + 2, inputs.end()}, inputs[1])};
  };
  auto out = op::of(chosen).shape();
  out.push_back(x.shape(-2));
  out.push_back(n);
  return op::make({"GatheredProduct", {out}, op::task<Gathered>(make, experts, n), in_mlx},
                  std::move(inputs), stream);
}

op::array widening_product(const op::array& x, const op::array& weight, const mlx_array& chosen,
                           op::Stream stream) {
  using namespace mlx::core;
  const auto composed = [](const array& x, const op::Arrays& weights,
                           const std::optional<array>& chosen) {
    const array columns = swapaxes(astype(weights[0], float32), -1, -2);
    return chosen ? gather_mm(x, columns, std::nullopt, chosen) : matmul(x, columns);
  };
  const auto make = [](const op::Arrays& weights) { return matrix::of_bf16(weights[0]); };
  return product(x, chosen, {weight}, make, composed, stream);
}

op::array packed_product(const op::array& x, const op::Arrays& weights, const mlx_array& chosen,
                         const matrix::Packing& packing, op::Stream stream) {
  using namespace mlx::core;
  const auto composed = [packing](const array& x, const op::Arrays& weights,
                                  const std::optional<array>& chosen) {
    static const char* const kModes[] = {"affine", "mxfp4", "mxfp8", "nvfp4"};
    const bool affine = weights.size() > 2;
    const array scales = affine ? astype(weights[1], float32) : weights[1];
    std::optional<array> biases;
    if (affine) biases = astype(weights[2], float32);
    const auto [mode, group, bits] = packing;
    return chosen ? gather_qmm(x, weights[0], scales, biases, std::nullopt, chosen, true, group,
                               bits, kModes[mode])
                  : quantized_matmul(x, weights[0], scales, biases, true, group, bits, kModes[mode]);
  };
  const auto make = [packing](const op::Arrays& weights) {
    return matrix::of_packed(weights, packing);
  };
  return product(x, chosen, weights, make, composed, stream);
}

}  // namespace

const char* mlxgk_widening_product(mlx_array* result, mlx_array x, mlx_array weight,
                                   mlx_array chosen, mlx_stream stream) {
  return op::give(result, [&] {
    return widening_product(op::of(x), op::of(weight), chosen, op::of(stream));
  });
}

const char* mlxgk_packed_product(mlx_array* result, mlx_array x, mlx_array words, mlx_array scales,
                                 mlx_array biases, mlx_array chosen, int mode, int group_size,
                                 int bits, mlx_stream stream) {
  return op::give(result, [&] {
    op::Arrays weights{op::of(words), op::of(scales)};
    if (biases.ctx != nullptr) weights.push_back(op::of(biases));
    return packed_product(op::of(x), weights, chosen, {mode, group_size, bits}, op::of(stream));
  });
}
