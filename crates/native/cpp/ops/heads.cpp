// Heads of queries and keys: cut out of a product's rows, through their norm, and rotated, in one pass.

#include <algorithm>
#include <optional>
#include <vector>

#include "mlxgk.h"
#include "ops/layout.h"
#include "ops/memory.h"
#include "ops/norm.h"
#include "ops/op.h"
#include "ops/rotate.h"
#include "ops/workers.h"

namespace {

// What is done to each head.
struct Form {
  int count;  // of arrays
  bool normed;
  float eps;
  int dim;
};

// Inputs are the arrays, cosines, sines and, where there are norms, a weight for each array.
class Task {
 public:
  Task(const op::Arrays& inputs, op::Arrays& outputs, const Form& form)
      : form_(form),
        tokens_(inputs[0].shape(1)),
        cos_(inputs[form.count]),
        sin_(inputs[form.count + 1]),
        table_per_row_(inputs[form.count].shape(0) > 1),
        normed_(static_cast<long>(workers::count()) * form.dim) {
    for (int i = 0; i < form.count; ++i) {
      Part part{layout::Rows<float>(inputs[i]), std::nullopt, inputs[i].shape(2) / form.dim,
                static_cast<long>(outputs[i].size()) / std::max(form.dim, 1),
                outputs[i].data<float>()};
      if (form.normed) part.weight.emplace(inputs[form.count + 2 + i]);
      parts_.push_back(std::move(part));
    }
  }

  void run() {
    cos_.ready();
    sin_.ready();
    long all = 0;
    for (Part& part : parts_) {
      part.x.ready();
      if (part.weight) part.weight->ready();
      all += part.count;
    }
    // Heads that keep a core busy for a few microseconds.
    const long size = std::max(1l, (1l << 12) / form_.dim);
    workers::share(workers::chunks(all, size), [&](int chunk, int worker) {
      const long from = chunk * size, end = std::min(all, from + size);
      for (long head = from; head < end; ++head)
        place(head, normed_.data() + static_cast<long>(worker) * form_.dim);
    });
  }

 private:
  // An array, how many heads a token of it has, and all of it.
  struct Part {
    layout::Rows<float> x;
    std::optional<layout::Rows<float>> weight;
    long heads, count;
    float* to;
  };

  // A head, counted over all arrays, in the order in which the inputs lie.
  void place(long at, float* normed) const {
    const Part* part = parts_.data();
    for (; at >= part->count; ++part) at -= part->count;
    const long row = at / part->heads, head = at % part->heads;
    const long batch = row / tokens_, token = row % tokens_;
    const float* x = part->x.at(row) + head * form_.dim;
    float* to = part->to + ((batch * part->heads + head) * tokens_ + token) * form_.dim;
    if (part->weight) {
      norm::row(x, part->weight->data(), normed, form_.dim, form_.eps);
      x = normed;
    }
    const long angle = (table_per_row_ ? batch * tokens_ : 0) + token;
    const int half = static_cast<int>(cos_.length());
    rotate::head(x, cos_.at(angle), sin_.at(2 * angle), sin_.at(2 * angle + 1), to, half);
    std::copy(x + 2 * half, x + form_.dim, to + 2 * half);
  }

  Form form_;
  long tokens_;
  layout::Rows<float> cos_, sin_;
  bool table_per_row_;
  // For each thread, a head after its norm.
  memory::Floats normed_;
  std::vector<Part> parts_;
};

op::Arrays turned_heads(const op::Arrays& inputs, const Form& form, op::Stream stream) {
  using namespace mlx::core;
  const auto one_by_one = [=](const op::Arrays& inputs) {
    op::Arrays heads;
    for (int i = 0; i < form.count; ++i) {
      const array& x = inputs[i];
      array by_token = reshape(x, {x.shape(0), x.shape(1), x.shape(2) / form.dim, form.dim});
      if (form.normed)
        by_token = norm::rms(by_token, inputs[form.count + 2 + i], form.eps, stream);
      heads.push_back(rotate::turn(transpose(by_token, {0, 2, 1, 3}), inputs[form.count],
                                   inputs[form.count + 1], stream));
    }
    return heads;
  };
  std::vector<Shape> shapes;
  for (int i = 0; i < form.count; ++i) {
    const Shape& x = inputs[i].shape();
    shapes.push_back({x[0], x[2] / form.dim, x[1], form.dim});
  }
  return op::make_all({"TurnedHeads", std::move(shapes), op::task<Task>(form), one_by_one}, inputs,
                      stream);
}

}  // namespace

const char* mlxgk_turned_heads(mlx_array* results, const mlx_array* xs, const mlx_array* weights,
                               int count, float eps, mlx_array cos, mlx_array sin, int dim,
                               mlx_stream stream) {
  return op::give_all(results, [&] {
    op::Arrays inputs = op::all_of(xs, count);
    inputs.push_back(op::of(cos));
    inputs.push_back(op::of(sin));
    for (int i = 0; weights != nullptr && i < count; ++i) inputs.push_back(op::of(weights[i]));
    return turned_heads(inputs, {count, weights != nullptr, eps, dim}, op::of(stream));
  });
}
