#include "ops/op.h"

#include <stdexcept>

#include "mlx/backend/cpu/encoder.h"
#include "mlx/primitives.h"
#include "mlx/transforms.h"
#include "mlx/utils.h"

namespace op {

namespace {

class Op : public mlx::core::Primitive {
 public:
  Op(const char* name, Prepare prepare, Composed composed, Stream stream)
      : Primitive(stream),
        name_(name),
        prepare_(std::move(prepare)),
        composed_(std::move(composed)) {}

  void eval_cpu(const Arrays& inputs, Arrays& outputs) override {
    array& output = outputs[0];
    output.set_data(mlx::core::allocator::malloc(output.nbytes()));
    if (output.size() == 0) return;
    // MLX keeps the memory of inputs and output until the work is done.
    mlx::core::cpu::get_command_encoder(stream()).dispatch(prepare_(inputs, output));
  }

  void eval_gpu(const Arrays&, Arrays&) override {
    throw std::runtime_error(std::string(name_) + " is an operation for the CPU");
  }

  Arrays vjp(const Arrays& primals, const Arrays& cotangents, const std::vector<int>& argnums,
             const Arrays&) override {
    const mlx::core::StreamContext here(stream());
    const std::function<Arrays(const Arrays&)> of_chosen = [&](const Arrays& chosen) {
      Arrays inputs = primals;
      for (std::size_t i = 0; i < argnums.size(); ++i) inputs[argnums[i]] = chosen[i];
      return Arrays{composed_(inputs)};
    };
    Arrays chosen;
    for (const int at : argnums) chosen.push_back(primals[at]);
    return mlx::core::vjp(of_chosen, chosen, cotangents).second;
  }

  const char* name() const override { return name_; }

 private:
  const char* name_;
  Prepare prepare_;
  Composed composed_;
};

}  // namespace

array make(const char* name, Prepare prepare, Composed composed, mlx::core::Shape shape,
           Arrays inputs, Stream stream) {
  return array(std::move(shape), mlx::core::float32,
               std::make_shared<Op>(name, std::move(prepare), std::move(composed), stream),
               std::move(inputs));
}

}  // namespace op
