// What the operations have in common: MLX primitives on the CPU around the kernels.
#pragma once
#include <algorithm>
#include <cstring>
#include <optional>
#include <stdexcept>
#include <vector>

#include "kernels.h"
#include "mlx/backend/common/utils.h"
#include "mlx/backend/cpu/encoder.h"
#include "mlx/mlx.h"
#include "mlx/primitives.h"
#include "mlx/utils.h"
#include "pool.h"

namespace mx = mlx::core;

namespace musicgen {

using Maybe = std::optional<mx::array>;

inline void require(bool condition, const char* what) {
  if (!condition) throw std::invalid_argument(what);
}

inline mx::Stream cpu() { return mx::default_stream(mx::Device(mx::Device::cpu)); }

inline Format format_of(const mx::array& a) {
  require(a.dtype() == mx::float32 || a.dtype() == mx::float16, "only float32 and float16 are supported");
  return a.dtype() == mx::float16 ? Format::float16 : Format::float32;
}

// Scratch of the thread that asks, and of one user; it grows to the largest call and stays.
template <class T, class User = void>
T* scratch(size_t size) {
  thread_local std::vector<T> memory;
  if (memory.size() < size) memory.resize(size);
  return memory.data();
}

// Memory for `out`: that of `in`, if it is of the same size and nobody else needs it.
inline void make_room(mx::array& out, const mx::array& in) {
  if (in.size() == out.size() && mx::is_donatable(in, out))
    out.copy_shared_buffer(in);
  else
    out.set_data(mx::allocator::malloc(out.nbytes()));
}

class CpuPrimitive : public mx::Primitive {
 public:
  using mx::Primitive::Primitive;
  void eval_gpu(const std::vector<mx::array>&, std::vector<mx::array>&) override {
    throw std::runtime_error("this operation runs on the CPU only");
  }
};

// `a` with its rows one behind the other. So lie weights, once they are there, and what these operations make: then
// nothing is added to the graph.
inline mx::array row_contiguous(const mx::array& a, mx::Stream stream) {
  if (a.status() == mx::array::Status::available && a.flags().row_contiguous) return a;
  if (a.has_primitive() && dynamic_cast<const CpuPrimitive*>(&a.primitive())) return a;
  return mx::contiguous(a, false, stream);
}

}  // namespace musicgen
