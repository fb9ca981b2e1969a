#include "op.h"

#include <stdexcept>
#include <string>

#include "mlx/backend/cpu/encoder.h"
#include "mlx/primitives.h"
#include "mlx/transforms.h"

namespace op {

namespace {

class Op : public mlx::core::Primitive {
 public:
  Op(const char* name, std::shared_ptr<const Kernel> kernel,
     std::function<array(const Arrays&)> composed)
      : Primitive(mlx::core::default_stream(mlx::core::default_device())),
        name_(name),
        kernel_(std::move(kernel)),
        composed_(std::move(composed)) {}

  void eval_cpu(const Arrays& inputs, Arrays& outputs) override {
    array& output = outputs[0];
    output.set_data(mlx::core::allocator::malloc(output.nbytes()));
    // MLX keeps the memory of inputs and output until the work is done, but not the graph.
    Arrays held;
    for (const array& input : inputs) held.push_back(array::unsafe_weak_copy(input));
    mlx::core::cpu::get_command_encoder(stream()).dispatch(
        [kernel = kernel_, held = std::move(held),
         output = array::unsafe_weak_copy(output)]() mutable { kernel->compute(held, output); });
  }

  void eval_gpu(const Arrays&, Arrays&) override {
    throw std::runtime_error(std::string(name_) + " is an operation for the CPU");
  }

  Arrays vjp(const Arrays& primals, const Arrays& cotangents, const std::vector<int>& argnums,
             const Arrays&) override {
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
  std::shared_ptr<const Kernel> kernel_;
  std::function<array(const Arrays&)> composed_;
};

}  // namespace

array make(const char* name, std::shared_ptr<const Kernel> kernel,
           std::function<array(const Arrays&)> composed, mlx::core::Shape shape, Arrays inputs) {
  return array(std::move(shape), mlx::core::float32,
               std::make_shared<Op>(name, std::move(kernel), std::move(composed)),
               std::move(inputs));
}

namespace {

std::unique_ptr<float[]> row_major(const array& from) {
  std::unique_ptr<float[]> copy(new float[from.size()]);
  const int axes = static_cast<int>(from.ndim());
  std::vector<int> place(axes, 0);
  for (std::size_t i = 0; i < from.size(); ++i) {
    long at = 0;
    for (int axis = 0; axis < axes; ++axis) at += place[axis] * from.strides(axis);
    copy[i] = from.data<float>()[at];
    for (int axis = axes - 1; axis >= 0 && ++place[axis] == from.shape(axis); --axis)
      place[axis] = 0;
  }
  return copy;
}

}  // namespace

Rows::Rows(const array& from)
    : data_(from.data<float>()), row_(from.shape(-1)), count_(0), length_(from.shape(-1)) {
  if (from.size() == 0) return;
  count_ = static_cast<int>(from.size() / length_);
  // The leading axes are one if each spans the next inner one that has more than one place.
  bool even = length_ == 1 || from.strides(-1) == 1;
  long span = 0;
  for (int axis = static_cast<int>(from.ndim()) - 2; axis >= 0; --axis) {
    if (from.shape(axis) == 1) continue;
    if (span == 0) row_ = from.strides(axis);
    else even = even && from.strides(axis) == span;
    span = from.strides(axis) * from.shape(axis);
  }
  if (even) return;
  copy_ = row_major(from);
  data_ = copy_.get();
  row_ = length_;
}

Placed::Placed(const array& from) : array_(from), data_(from.data<float>()) {
  for (int axis = 0; axis < 3; ++axis) strides_[axis] = from.strides(axis);
  if (from.shape(3) == 1 || from.strides(3) == 1) return;
  copy_ = row_major(from);
  data_ = copy_.get();
  strides_[2] = from.shape(3);
  strides_[1] = strides_[2] * from.shape(2);
  strides_[0] = strides_[1] * from.shape(1);
}

}  // namespace op
