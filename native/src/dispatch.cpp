// Selects one of the compiled instruction sets at run time.
#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <string>

#include "kernels.h"

namespace musicgen {
namespace portable { extern const Kernels table; }
#if defined(__x86_64__)
namespace avx2 { extern const Kernels table; }
namespace avx512 { extern const Kernels table; }
namespace avx512vnni { extern const Kernels table; }
#endif

int supported_kernels(const Kernels** out, int capacity) {
  int count = 0;
  auto add = [&](const Kernels& table) {
    if (count < capacity) out[count++] = &table;
  };
  add(portable::table);
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c")) {
    add(avx2::table);
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")) {
      add(avx512::table);
      if (__builtin_cpu_supports("avx512vnni")) add(avx512vnni::table);
    }
  }
#endif
  return count;
}

const Kernels& kernels() {
  static const Kernels& selected = []() -> const Kernels& {
    const Kernels* tables[8];
    const int count = supported_kernels(tables, 8);
    const char* requested = std::getenv("MUSICGEN_MLX_CPU");
    if (!requested || !*requested) return *tables[count - 1];
    for (int i = 0; i < count; i++)
      if (!std::strcmp(tables[i]->name, requested)) return *tables[i];
    throw std::invalid_argument(std::string("MUSICGEN_MLX_CPU=") + requested + " is not supported by this processor");
  }();
  return selected;
}

}  // namespace musicgen
