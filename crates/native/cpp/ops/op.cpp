#include "ops/op.h"

#include <algorithm>
#include <numeric>
#include <stdexcept>

#include "mlx/backend/cpu/encoder.h"
#include "mlx/primitives.h"
#include "mlx/transforms.h"
#include "mlx/utils.h"

namespace op {

namespace {

class Op : public mlx::core::Primitive {
 public:
  Op(Operation operation, Stream stream) : Primitive(stream), op_(std::move(operation)) {}

  void eval_cpu(const Arrays& inputs, Arrays& outputs) override {
    bool is_empty = true;
    for (array& output : outputs) {
      output.set_data(mlx::core::allocator::malloc(output.nbytes()));
      is_empty = is_empty && output.size() == 0;
    }
    if (is_empty) return;
    // MLX keeps the memory of inputs and outputs until the work is done.
    mlx::core::cpu::get_command_encoder(stream()).dispatch(op_.prepare(inputs, outputs));
  }

  void eval_gpu(const Arrays&, Arrays&) override {
    throw std::runtime_error(std::string(op_.name) + " is an operation for the CPU");
  }

  Arrays vjp(const Arrays& primals, const Arrays& cotangents, const std::vector<int>& argnums,
             const Arrays&) override {
    const mlx::core::StreamContext here(stream());
    const Gradient& own = op_.gradient;
    const auto is_own = [&](int at) { return at < own.count; };
    if (!std::all_of(argnums.begin(), argnums.end(), is_own))
      return through(op_.composed, primals, cotangents, argnums);
    const Arrays all = gradients(primals, cotangents[0]);
    Arrays wanted;
    for (const int at : argnums) wanted.push_back(all[at]);
    return wanted;
  }

  const char* name() const override { return op_.name; }

 private:
  // The gradients by some inputs, through MLX's own operations.
  static Arrays through(const Composed& composed, const Arrays& primals, const Arrays& cotangents,
                        const std::vector<int>& argnums) {
    const std::function<Arrays(const Arrays&)> of_chosen = [&](const Arrays& chosen) {
      Arrays inputs = primals;
      for (std::size_t i = 0; i < argnums.size(); ++i) inputs[argnums[i]] = chosen[i];
      return composed(inputs);
    };
    Arrays chosen;
    for (const int at : argnums) chosen.push_back(primals[at]);
    Arrays of_floats;
    for (const array& it : cotangents)
      if (mlx::core::issubdtype(it.dtype(), mlx::core::floating)) of_floats.push_back(it);
    return mlx::core::vjp(of_chosen, chosen, of_floats).second;
  }

  // The gradients by the first inputs, through the operation for that.
  Arrays gradients(const Arrays& primals, const array& cotangent) {
    const auto composed = [composed = op_.composed, count = op_.gradient.count](const Arrays& inputs) {
      std::vector<int> first(count);
      std::iota(first.begin(), first.end(), 0);
      return through(composed, {inputs.begin(), inputs.end() - 1}, {inputs.back()}, first);
    };
    Operation gradient{op_.gradient.name, {}, op_.gradient.prepare, composed};
    for (int i = 0; i < op_.gradient.count; ++i) gradient.shapes.push_back(primals[i].shape());
    Arrays inputs = primals;
    inputs.push_back(cotangent);
    return make_all(std::move(gradient), std::move(inputs), stream());
  }

  Operation op_;
};

}  // namespace

Arrays make_all(Operation operation, Arrays inputs, Stream stream) {
  auto shapes = std::move(operation.shapes);
  auto types = std::move(operation.types);
  if (types.empty()) types.assign(shapes.size(), mlx::core::float32);
  return array::make_arrays(std::move(shapes), types,
                            std::make_shared<Op>(std::move(operation), stream), inputs);
}

}  // namespace op
