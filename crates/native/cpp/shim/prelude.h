// Included before every mlx-c source. mlx-c is written for Apple's compiler and an Arm processor;
// this supplies the two things it takes for granted there.

#pragma once

// Half-precision numbers. mlx-c offers its 16-bit accessors only where the compiler has Arm's own
// types, and mlx-rs needs them everywhere. Both types are MLX's structs in the published Linux
// libraries, on x86-64 and on Arm alike, so mlx-c's header for them is skipped and MLX's named.
#define MLX_HALF_H
#define HAS_FLOAT16
#define HAS_BFLOAT16
#include "mlx/types/half_types.h"
using mlx::core::bfloat16_t;
using mlx::core::float16_t;

// std::format, which GNU's library has from g++ 13 on. mlx-c needs it for the text of five errors,
// all with bare `{}` fields; adding to `std` is against the letter of the standard, but the name is
// mlx-c's, not ours.
#include <version>
#ifdef __cpp_lib_format
#include <format>
#else
#include <sstream>
#include <string>
#include <string_view>

namespace std {

template <typename... Args>
string format(string_view pattern, const Args&... args) {
  ostringstream text;
  const auto field = [&](const auto& value) {
    const auto brace = pattern.find("{}");
    text << pattern.substr(0, brace) << value;
    pattern.remove_prefix(brace == string_view::npos ? pattern.size() : brace + 2);
  };
  (field(args), ...);
  text << pattern;
  return text.str();
}

} // namespace std
#endif
