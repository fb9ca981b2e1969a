// Operations of our own inside MLX's graph, for its CPU backend.
//
// On a GPU MLX's own kernels do all this. Its CPU backend, as published for Linux, knows neither
// vectors nor threads outside BLAS, and widens weights by writing them out again.

#pragma once

#include <exception>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "mlx/c/array.h"
#include "mlx/c/stream.h"
#include "mlx/mlx.h"

namespace op {

using mlx::core::array;
using mlx::core::Stream;
using Arrays = std::vector<array>;

// What is done on MLX's thread, when the inputs are there.
using Work = std::function<void()>;

// Prepares the work for inputs whose layout is known and whose content is not yet there. The outputs
// have memory, row-major, and one of them at least is not empty. Memory that the work needs is taken
// here, on the caller's thread, which can be told that there is none (the products of shim/blas.h take
// their own, and do with less where there is none).
using Prepare = std::function<Work(const Arrays& inputs, Arrays& outputs)>;

// The same in MLX's own operations, but for outputs of whole numbers, which have no gradient. Gradients
// are taken through it where there is no other way.
using Composed = std::function<Arrays(const Arrays& inputs)>;

// Gradients of an operation of one output as an operation of our own.
struct Gradient {
  const char* name = nullptr;
  // How many inputs, from the first on, it gives gradients by, each of the input's shape. Others are
  // constants to it.
  int count = 0;
  // Of the operation's inputs and, behind them, the gradient by its output.
  Prepare prepare;
};

// An operation whose outputs are floats, or of `types` where there are any.
struct Operation {
  const char* name;
  std::vector<mlx::core::Shape> shapes;
  Prepare prepare;
  Composed composed;
  Gradient gradient = {};
  std::vector<mlx::core::Dtype> types = {};
};

// Its outputs.
Arrays make_all(Operation operation, Arrays inputs, Stream stream);

// The output of an operation that has one.
inline array make(Operation operation, Arrays inputs, Stream stream) {
  return make_all(std::move(operation), std::move(inputs), stream)[0];
}

// Prepares a task, `Task(inputs, outputs, rest..)`, whose `run` is the work.
template <typename Task, typename... Rest>
Prepare task(Rest... rest) {
  return [rest...](const Arrays& inputs, Arrays& outputs) -> Work {
    auto task = std::make_shared<Task>(inputs, outputs, rest...);
    return [task = std::move(task)] { task->run(); };
  };
}

// What is behind a handle of MLX's C interface.
inline const array& of(mlx_array handle) { return *static_cast<const array*>(handle.ctx); }
inline Stream of(mlx_stream handle) { return *static_cast<const Stream*>(handle.ctx); }

// What is behind `count` handles.
inline Arrays all_of(const mlx_array* handles, int count) {
  Arrays arrays;
  for (int i = 0; i < count; ++i) arrays.push_back(of(handles[i]));
  return arrays;
}

// Puts the arrays that `make` returns behind as many empty handles, for a caller in C. Returns null, or a
// message, to be read before the thread's next call.
template <typename Make>
const char* give_all(mlx_array* results, Make make) {
  try {
    for (array& made : make()) (results++)->ctx = new array(std::move(made));
    return nullptr;
  } catch (const std::exception& e) {
    thread_local std::string what;
    what = e.what();
    return what.c_str();
  }
}

// The same for one array.
template <typename Make>
const char* give(mlx_array* result, Make make) {
  return give_all(result, [&] { return Arrays{make()}; });
}

}  // namespace op
