// Shared by all operations: MLX CPU primitives around the kernels.
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

using OptionalArray = std::optional<mx::array>;

inline void require(bool condition, const char* message) {
  if (!condition) throw std::invalid_argument(message);
}

inline mx::Stream cpu_stream() { return mx::default_stream(mx::Device(mx::Device::cpu)); }

inline ElementType element_type_of(const mx::array& a) {
  require(a.dtype() == mx::float32 || a.dtype() == mx::float16, "only float32 and float16 are supported");
  return a.dtype() == mx::float16 ? ElementType::float16 : ElementType::float32;
}

// A scratch buffer per calling thread and `User`. It grows to the largest size requested and is never freed.
template <class T, class User = void>
T* scratch(size_t size) {
  thread_local std::vector<T> memory;
  if (memory.size() < size) memory.resize(size);
  return memory.data();
}

// Allocates `out`, reusing the buffer of `in` if it has the same size and no other reference.
inline void donate_or_allocate(mx::array& out, const mx::array& in) {
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

// `a` as a row-contiguous array. Evaluated weights and the outputs of these operations already are; for them nothing
// is added to the graph.
inline mx::array row_contiguous(const mx::array& a, mx::Stream stream) {
  if (a.status() == mx::array::Status::available && a.flags().row_contiguous) return a;
  if (a.has_primitive() && dynamic_cast<const CpuPrimitive*>(&a.primitive())) return a;
  return mx::contiguous(a, false, stream);
}

}  // namespace musicgen
