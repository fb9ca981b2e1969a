// Exits while another thread multiplies matrices, as a program does that leaves MLX work after.

#include <chrono>
#include <thread>
#include <vector>

extern "C" void cblas_sgemm(int, int, int, int, int, int, float, const float*, int, const float*,
                            int, float, float*, int);

int main() {
  constexpr int kRowMajor = 101, kNoTrans = 111, n = 128;
  std::thread([] {
    const std::vector<float> a(n * n, 1), b(n * n, 1);
    std::vector<float> c(n * n);
    while (true)
      cblas_sgemm(kRowMajor, kNoTrans, kNoTrans, n, n, n, 1, a.data(), n, b.data(), n, 0, c.data(),
                  n);
  }).detach();
  std::this_thread::sleep_for(std::chrono::milliseconds(20));
}
