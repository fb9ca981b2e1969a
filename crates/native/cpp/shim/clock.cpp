// mlx-rs seeds its default random state from a Mach clock, by this name, on every platform.

#include <chrono>
#include <cstdint>

extern "C" std::uint64_t mach_approximate_time() {
  return std::chrono::steady_clock::now().time_since_epoch().count();
}
