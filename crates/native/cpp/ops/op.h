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

// Prepares the work for inputs whose layout is known and whose content is not yet there. `output` has
// memory, row-major, and is not empty. Memory that the work needs is taken here, on the caller's
// thread, which can be told that there is none.
using Prepare = std::function<Work(const Arrays& inputs, array& output)>;

// The same in MLX's own operations. Gradients are taken through it.
using Composed = std::function<array(const Arrays& inputs)>;

// An operation of one float output.
array make(const char* name, Prepare prepare, Composed composed, mlx::core::Shape shape,
           Arrays inputs, Stream stream);

// Work that is a task, made now, whose `run` is called later.
template <typename Task, typename... Arguments>
Work work(Arguments&&... arguments) {
  auto task = std::make_shared<Task>(std::forward<Arguments>(arguments)...);
  return [task = std::move(task)] { task->run(); };
}

// What is behind a handle of MLX's C interface.
inline const array& of(mlx_array handle) { return *static_cast<const array*>(handle.ctx); }
inline Stream of(mlx_stream handle) { return *static_cast<const Stream*>(handle.ctx); }

// Puts what `make` returns behind an empty handle, for a caller in C. Returns null, or a message, to
// be read before the thread's next call.
template <typename Make>
const char* give(mlx_array* result, Make make) {
  try {
    result->ctx = new array(make());
    return nullptr;
  } catch (const std::exception& e) {
    thread_local std::string what;
    what = e.what();
    return what.c_str();
  }
}

}  // namespace op
