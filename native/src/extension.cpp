// The kernels as MLX operations on the CPU, and their Python names.
#include <nanobind/nanobind.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/variant.h>
#include <nanobind/stl/vector.h>

#include <cmath>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "kernels.h"
#include "mlx/backend/common/utils.h"
#include "mlx/backend/cpu/encoder.h"
#include "mlx/mlx.h"
#include "mlx/primitives.h"
#include "mlx/utils.h"
#include "pool.h"

namespace mx = mlx::core;
namespace nb = nanobind;
using namespace nb::literals;

namespace musicgen {
namespace {

void require(bool condition, const char* what) {
  if (!condition) throw std::invalid_argument(what);
}

mx::Stream cpu() { return mx::default_stream(mx::Device(mx::Device::cpu)); }

Format format_of(const mx::array& a) {
  require(a.dtype() == mx::float32 || a.dtype() == mx::float16, "only float32 and float16 are supported");
  return a.dtype() == mx::float16 ? Format::float16 : Format::float32;
}

// Scratch of the thread that runs a stream's operations; it grows to the largest call and stays.
template <class T>
T* scratch(size_t size) {
  thread_local std::vector<T> memory;
  if (memory.size() < size) memory.resize(size);
  return memory.data();
}

// Memory for `out`: that of `in`, if it is of the same size and nobody else needs it.
void make_room(mx::array& out, const mx::array& in) {
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

struct LinearOptions {
  int bits;  // 0: float32
  bool norm, bias, gelu, residual, eight_bit_activations;
  float eps;
  bool operator==(const LinearOptions&) const = default;
};

class LinearPrimitive : public CpuPrimitive {
 public:
  LinearPrimitive(mx::Stream stream, LinearOptions options) : CpuPrimitive(stream), options_(options) {}
  const char* name() const override { return "MusicgenLinear"; }
  bool is_equivalent(const mx::Primitive& other) const override {
    return options_ == static_cast<const LinearPrimitive&>(other).options_;
  }

  void eval_cpu(const std::vector<mx::array>& inputs, std::vector<mx::array>& outputs) override {
    auto& out = outputs[0];
    out.set_data(mx::allocator::malloc(out.nbytes()));
    if (out.size() == 0) return;
    const mx::array& x = inputs[0];
    const mx::array& w = inputs[1];
    size_t next = 2;
    const auto floats = [&] { return inputs[next++].data<float>(); };

    Linear a{};
    a.inputs = x.shape(-1);
    a.rows = static_cast<int>(x.size() / a.inputs);
    a.outputs = w.shape(0);
    a.kind = options_.bits == 0 ? Weights::dense : options_.bits == 8 ? Weights::bits8 : Weights::bits4;
    a.w = w.data<void>();
    if (options_.bits) {
      a.scale_format = format_of(inputs[next]);
      a.scales = inputs[next++].data<void>();
      a.biases = inputs[next++].data<void>();
    }
    const float* norm_weight = options_.norm ? floats() : nullptr;
    const float* norm_bias = options_.norm ? floats() : nullptr;
    a.bias = options_.bias ? floats() : nullptr;
    a.residual = options_.residual ? floats() : nullptr;
    a.gelu = options_.gelu;
    a.x = x.data<float>();
    a.y = out.data<float>();
    const LinearOptions options = options_;
    mx::cpu::get_command_encoder(stream()).dispatch([a, norm_weight, norm_bias, options]() mutable {
      prepare(a, norm_weight, norm_bias, options);
      Pool& pool = Pool::get();
      // Pieces of some 64 KB of weights, at least a few for each thread.
      const size_t row_bytes = static_cast<size_t>(a.inputs) * (options.bits == 0 ? 32 : options.bits) / 8;
      const int most = (a.outputs + pool.size() * 4 - 1) / (pool.size() * 4);
      int piece = std::min(most, static_cast<int>(65536 / std::max<size_t>(row_bytes, 1)));
      piece = std::max(16, (piece + 15) / 16 * 16);
      pool.run((a.outputs + piece - 1) / piece, [&](int i) {
        kernels().linear(a, i * piece, std::min(a.outputs, (i + 1) * piece));
      });
    });
  }

 private:
  // The activations as the kernel wants them: normalised, and in 8 bits or reordered if the weights are quantised.
  static void prepare(Linear& a, const float* norm_weight, const float* norm_bias, const LinearOptions& options) {
    const Kernels& k = kernels();
    const size_t K = a.inputs, size = K * a.rows, groups = K / kGroup;
    float* memory = scratch<float>(2 * size + 2 * groups * a.rows);
    if (norm_weight) {
      for (int r = 0; r < a.rows; r++)
        k.layer_norm(a.x + r * K, norm_weight, norm_bias, memory + r * K, a.inputs, options.eps);
      a.x = memory;
    }
    if (!options.bits) return;
    float* ordered = memory + size;
    float* x_sum = ordered + size;
    float* x_scale = x_sum + groups * a.rows;
    if (options.eight_bit_activations) {
      int8_t *x8 = scratch<int8_t>(2 * size), *split = x8 + size;
      for (int r = 0; r < a.rows; r++) {
        k.quantize(a.x + r * K, a.inputs, x8 + r * K, x_scale + r * groups, x_sum + r * groups);
        if (options.bits == 4) k.split_pairs(x8 + r * K, a.inputs, split + r * K);
      }
      a.x8 = options.bits == 4 ? split : x8;
    } else {
      for (int r = 0; r < a.rows; r++) k.sum_groups(a.x + r * K, a.inputs, x_sum + r * groups);
      if (options.bits == 4) {
        for (int r = 0; r < a.rows; r++) k.split_even_odd(a.x + r * K, a.inputs, ordered + r * K);
        a.x = ordered;
      }
    }
    a.x_sum = x_sum;
    a.x_scale = x_scale;
  }

  LinearOptions options_;
};

constexpr const char* kOrder = "keys, values or queries lie in an order that isn't supported";

// Elements of a head lie side by side, and keys and values alike: so does every view of a cache.
void check_order(const mx::array& q, const mx::array& k, const mx::array& v) {
  require((k.shape(3) == 1 || (q.strides(3) == 1 && k.strides(3) == 1 && v.strides(3) == 1)) &&
              (k.shape(2) == 1 || k.strides(2) == v.strides(2)),
          kOrder);
}

class AttendPrimitive : public CpuPrimitive {
 public:
  AttendPrimitive(mx::Stream stream, float scale, bool eight_bit, bool mask)
      : CpuPrimitive(stream), scale_(scale), eight_bit_(eight_bit), mask_(mask) {}
  const char* name() const override { return "MusicgenAttend"; }
  bool is_equivalent(const mx::Primitive& other) const override {
    const auto& o = static_cast<const AttendPrimitive&>(other);
    return o.scale_ == scale_ && o.eight_bit_ == eight_bit_ && o.mask_ == mask_;
  }

  void eval_cpu(const std::vector<mx::array>& inputs, std::vector<mx::array>& outputs) override {
    auto& out = outputs[0];
    out.set_data(mx::allocator::malloc(out.nbytes()));
    const mx::array &q = inputs[0], &k = inputs[1], &v = inputs[2];
    const int batch = k.shape(0), heads = k.shape(1), length = k.shape(2), dim = k.shape(3);
    const size_t item = k.itemsize();
    const float* q0 = q.data<float>();
    const char* k0 = k.data<char>();
    const char* v0 = v.data<char>();
    const float* k_scales = eight_bit_ ? inputs[3].data<float>() : nullptr;
    const float* v_scales = eight_bit_ ? inputs[4].data<float>() : nullptr;
    const int64_t ksb = eight_bit_ ? inputs[3].strides(0) : 0, ksh = eight_bit_ ? inputs[3].strides(1) : 0;
    const uint8_t* mask = mask_ ? inputs.back().data<uint8_t>() : nullptr;
    check_order(q, k, v);
    if (eight_bit_)
      require(inputs[4].strides(0) == ksb && inputs[4].strides(1) == ksh &&
                  (length == 1 || (inputs[3].strides(2) == 1 && inputs[4].strides(2) == 1)),
              kOrder);
    float* out0 = out.data<float>();
    Head head{};
    head.format = eight_bit_ ? Format::int8 : format_of(k);
    head.length = length;
    head.dim = dim;
    head.scale = scale_;
    const int64_t qb = q.strides(0), qh = q.strides(1), kb = k.strides(0), kh = k.strides(1), vb = v.strides(0),
                  vh = v.strides(1);
    head.stride = k.strides(2);
    mx::cpu::get_command_encoder(stream()).dispatch([=]() {
      const int pieces = batch * heads;
      const int each = length > 64 ? 1 : 8;  // too little work to share out singly
      Pool::get().run((pieces + each - 1) / each, [&](int piece) {
        float* scores = scratch<float>(length);
        for (int i = piece * each; i < std::min(pieces, (piece + 1) * each); i++) {
          const int b = i / heads, h = i % heads;
          Head a = head;
          a.q = q0 + b * qb + h * qh;
          a.k = k0 + (b * kb + h * kh) * item;
          a.v = v0 + (b * vb + h * vh) * item;
          if (k_scales) {
            a.k_scales = k_scales + b * ksb + h * ksh;
            a.v_scales = v_scales + b * ksb + h * ksh;
          }
          a.mask = mask ? mask + static_cast<size_t>(b) * length : nullptr;
          a.out = out0 + static_cast<size_t>(i) * dim;
          a.scores = scores;
          kernels().attend(a);
        }
      });
    });
  }

 private:
  float scale_;
  bool eight_bit_, mask_;
};

class AttendManyPrimitive : public CpuPrimitive {
 public:
  AttendManyPrimitive(mx::Stream stream, float scale) : CpuPrimitive(stream), scale_(scale) {}
  const char* name() const override { return "MusicgenAttendMany"; }
  bool is_equivalent(const mx::Primitive& other) const override {
    return static_cast<const AttendManyPrimitive&>(other).scale_ == scale_;
  }

  void eval_cpu(const std::vector<mx::array>& inputs, std::vector<mx::array>& outputs) override {
    auto& out = outputs[0];
    out.set_data(mx::allocator::malloc(out.nbytes()));
    const mx::array &q = inputs[0], &k = inputs[1], &v = inputs[2];
    const int heads = q.shape(1);
    Heads all{};
    all.queries = q.shape(2);
    all.length = k.shape(2);
    all.dim = q.shape(3);
    all.scale = scale_;
    check_order(q, k, v);
    all.q_stride = q.strides(2);
    all.stride = k.strides(2);
    all.out_stride = static_cast<size_t>(heads) * all.dim;
    all.q = q.data<float>();
    all.k = k.data<float>();
    all.v = v.data<float>();
    all.out = out.data<float>();
    const int pieces = (all.queries + kQueries - 1) / kQueries, total = q.shape(0) * heads * pieces;
    const auto qs = q.strides(), ks = k.strides(), vs = v.strides();
    mx::cpu::get_command_encoder(stream()).dispatch([=]() {
      Pool::get().run(total, [&](int i) {
        const int first = i % pieces * kQueries, h = i / pieces % heads, b = i / pieces / heads;
        Heads a = all;
        a.q += b * qs[0] + h * qs[1] + first * a.q_stride;
        a.k += b * ks[0] + h * ks[1];
        a.v += b * vs[0] + h * vs[1];
        a.out += (static_cast<size_t>(b) * a.queries + first) * a.out_stride + static_cast<size_t>(h) * a.dim;
        a.queries = std::min(kQueries, a.queries - first);
        a.memory = scratch<float>(memory_of_heads(a.dim));
        kernels().attend_many(a);
      });
    });
  }

 private:
  float scale_;
};

class RoundPrimitive : public CpuPrimitive {
 public:
  using CpuPrimitive::CpuPrimitive;
  const char* name() const override { return "MusicgenRound"; }
  bool is_equivalent(const mx::Primitive&) const override { return true; }

  void eval_cpu(const std::vector<mx::array>& inputs, std::vector<mx::array>& outputs) override {
    for (auto& out : outputs) out.set_data(mx::allocator::malloc(out.nbytes()));
    const float* x = inputs[0].data<float>();
    int8_t* codes = outputs[0].data<int8_t>();
    float* scales = outputs[1].data<float>();
    const size_t size = inputs[0].shape(-1), rows = inputs[0].size() / size;
    mx::cpu::get_command_encoder(stream()).dispatch([=]() {
      for (size_t row = 0; row < rows; row++)
        kernels().round_row(x + row * size, static_cast<int>(size), codes + row * size, scales + row);
    });
  }
};

using RowKernel = void (*Kernels::*)(const float*, float*, size_t, int);

// A kernel over rows of `size` results, made of `size` or twice as many values.
class RowsPrimitive : public CpuPrimitive {
 public:
  RowsPrimitive(mx::Stream stream, const char* name, RowKernel kernel, int size)
      : CpuPrimitive(stream), name_(name), kernel_(kernel), size_(size) {}
  const char* name() const override { return name_; }
  bool is_equivalent(const mx::Primitive& other) const override {
    const auto& o = static_cast<const RowsPrimitive&>(other);
    return o.kernel_ == kernel_ && o.size_ == size_;
  }

  void eval_cpu(const std::vector<mx::array>& inputs, std::vector<mx::array>& outputs) override {
    const mx::array& in = inputs[0];
    auto& out = outputs[0];
    make_room(out, in);
    if (out.size() == 0) return;
    const float* x = in.data<float>();
    float* y = out.data<float>();
    const size_t rows = out.size() / size_, inputs_of_row = in.size() / rows;
    mx::cpu::get_command_encoder(stream()).dispatch([=, size = size_, kernel = kernels().*kernel_]() {
      const size_t piece = std::max(1, 16384 / size);
      Pool::get().run(static_cast<int>((rows + piece - 1) / piece), [&](int i) {
        const size_t row = i * piece;
        kernel(x + row * inputs_of_row, y + row * size, std::min(piece, rows - row), size);
      });
    });
  }

 private:
  const char* name_;
  RowKernel kernel_;
  int size_;
};

// All of each x[n] normalised together, then each channel scaled and shifted.
class GroupNormPrimitive : public CpuPrimitive {
 public:
  GroupNormPrimitive(mx::Stream stream, float eps) : CpuPrimitive(stream), eps_(eps) {}
  const char* name() const override { return "MusicgenGroupNorm"; }
  bool is_equivalent(const mx::Primitive& other) const override {
    return static_cast<const GroupNormPrimitive&>(other).eps_ == eps_;
  }

  void eval_cpu(const std::vector<mx::array>& inputs, std::vector<mx::array>& outputs) override {
    auto& out = outputs[0];
    make_room(out, inputs[0]);
    if (out.size() == 0) return;
    const float* x = inputs[0].data<float>();
    const float* gain = inputs[1].data<float>();
    const float* bias = inputs[2].data<float>();
    float* y = out.data<float>();
    const int channels = out.shape(-1);
    const size_t groups = out.shape(0), size = out.size() / groups;
    mx::cpu::get_command_encoder(stream()).dispatch([=, eps = eps_]() {
      // Pieces of whole rows that fit the cache; gains and biases side by side for all of a piece.
      const size_t piece = static_cast<size_t>(channels) * std::max(1, 4096 / channels);
      const size_t pieces = (size + piece - 1) / piece;
      float* gains = scratch<float>(2 * piece + 2 * groups * pieces + 2 * groups);
      float *biases = gains + piece, *means = biases + piece, *squares = means + groups * pieces;
      float *mean = squares + groups * pieces, *factor = mean + groups;
      for (size_t i = 0; i < piece; i++) {
        gains[i] = gain[i % channels];
        biases[i] = bias[i % channels];
      }
      const auto length = [&](size_t i) { return static_cast<int>(std::min(piece, size - i % pieces * piece)); };
      const auto start = [&](size_t i) { return i / pieces * size + i % pieces * piece; };
      Pool& pool = Pool::get();
      const int count = static_cast<int>(groups * pieces);
      pool.run(count, [&](int i) { kernels().moments(x + start(i), length(i), means + i, squares + i); });
      for (size_t n = 0; n < groups; n++) {
        double total = 0, distances = 0;
        for (size_t i = n * pieces; i < (n + 1) * pieces; i++) total += static_cast<double>(means[i]) * length(i);
        const double middle = total / size;
        for (size_t i = n * pieces; i < (n + 1) * pieces; i++)
          distances += squares[i] + (means[i] - middle) * (means[i] - middle) * length(i);
        mean[n] = static_cast<float>(middle);
        factor[n] = static_cast<float>(1 / std::sqrt(distances / size + eps));
      }
      pool.run(count, [&](int i) {
        const size_t at = start(i), n = i / pieces;
        kernels().scale(x + at, gains, biases, y + at, length(i), mean[n], factor[n]);
      });
    });
  }

 private:
  float eps_;
};

class LstmPrimitive : public CpuPrimitive {
 public:
  using CpuPrimitive::CpuPrimitive;
  const char* name() const override { return "MusicgenLstm"; }
  bool is_equivalent(const mx::Primitive&) const override { return true; }

  void eval_cpu(const std::vector<mx::array>& inputs, std::vector<mx::array>& outputs) override {
    for (auto& out : outputs) out.set_data(mx::allocator::malloc(out.nbytes()));
    const int batch = inputs[0].shape(0), steps = inputs[0].shape(1), dim = inputs[1].shape(1);
    const float* projected = inputs[0].data<float>();
    const float* w = inputs[1].data<float>();
    const float* h0 = inputs[2].data<float>();
    const float* c0 = inputs[3].data<float>();
    float* out = outputs[0].data<float>();
    float* c = outputs[1].data<float>();
    mx::cpu::get_command_encoder(stream()).dispatch([=]() {
      Pool& pool = Pool::get();
      std::copy(c0, c0 + static_cast<size_t>(batch) * dim, c);
      const int piece = std::max(16, (dim + pool.size() * 2 - 1) / (pool.size() * 2));
      const int pieces = (dim + piece - 1) / piece;
      for (int t = 0; t < steps; t++)
        pool.run(pieces, [&](int i) {
          for (int b = 0; b < batch; b++) {
            const size_t row = static_cast<size_t>(b) * steps + t;
            LstmStep step{dim, w, projected + row * 4 * dim,
                          t ? out + (row - 1) * dim : h0 + static_cast<size_t>(b) * dim,
                          c + static_cast<size_t>(b) * dim, out + row * dim};
            kernels().lstm(step, i * piece, std::min(dim, (i + 1) * piece));
          }
        });
    });
  }
};

// `a` with its rows one behind the other. So lie weights, once they are there, and what these operations make: then
// nothing is added to the graph.
mx::array row_contiguous(const mx::array& a, mx::Stream stream) {
  if (a.status() == mx::array::Status::available && a.flags().row_contiguous) return a;
  if (a.has_primitive() && dynamic_cast<const CpuPrimitive*>(&a.primitive())) return a;
  return mx::contiguous(a, false, stream);
}

using Maybe = std::optional<mx::array>;

mx::array linear(const mx::array& x, const mx::array& w, const Maybe& scales, const Maybe& biases, int bits,
                 const Maybe& norm_weight, const Maybe& norm_bias, float eps, const Maybe& bias, bool gelu,
                 const Maybe& residual, bool eight_bit_activations) {
  require(x.dtype() == mx::float32 && x.ndim() > 0 && w.ndim() == 2, "x must be float32 and w a matrix");
  const int inputs = x.shape(-1), outputs = w.shape(0);
  require(inputs > 0, "x has no inputs");
  const auto stream = cpu();
  std::vector<mx::array> arrays{row_contiguous(x, stream), row_contiguous(w, stream)};
  const auto vector = [&](const mx::array& a, int size, const char* what) {
    require(a.dtype() == mx::float32 && a.ndim() == 1 && a.shape(0) == size, what);
    arrays.push_back(row_contiguous(a, stream));
  };
  require(bits == 0 || bits == 4 || bits == 8, "bits must be 0, 4 or 8");
  if (bits) {
    require(scales && biases && inputs % kGroup == 0, "quantised weights need scales and biases for groups of 64");
    require(w.dtype() == mx::uint32 && w.shape(1) == inputs * bits / 32, "w doesn't fit x");
    for (const auto& part : {*scales, *biases}) {
      require(part.ndim() == 2 && part.shape(0) == outputs && part.shape(1) == inputs / kGroup &&
                  part.dtype() == scales->dtype(),
              "scales and biases don't fit w");
      format_of(part);
      arrays.push_back(row_contiguous(part, stream));
    }
  } else {
    require(w.dtype() == mx::float32 && w.shape(1) == inputs, "w doesn't fit x");
  }
  require(norm_weight.has_value() == norm_bias.has_value(), "a norm has a weight and a bias");
  if (norm_weight) {
    vector(*norm_weight, inputs, "the norm's weight doesn't fit x");
    vector(*norm_bias, inputs, "the norm's bias doesn't fit x");
  }
  if (bias) vector(*bias, outputs, "the bias doesn't fit w");
  auto shape = x.shape();
  shape.back() = outputs;
  if (residual) {
    require(residual->dtype() == mx::float32 && residual->shape() == shape, "the residual doesn't fit");
    arrays.push_back(row_contiguous(*residual, stream));
  }
  const LinearOptions options{bits, norm_weight.has_value(), bias.has_value(), gelu, residual.has_value(),
                              eight_bit_activations && bits != 0, eps};
  return mx::array(shape, mx::float32, std::make_shared<LinearPrimitive>(stream, options), std::move(arrays));
}

mx::array attend(const mx::array& q, const mx::array& k, const mx::array& v, float scale, const Maybe& mask,
                 const Maybe& k_scales, const Maybe& v_scales) {
  require(q.dtype() == mx::float32 && q.ndim() == 4 && q.shape(2) == 1, "q must be float32 [B, heads, 1, dim]");
  require(k.ndim() == 4 && k.shape() == v.shape() && k.dtype() == v.dtype(), "k and v must be alike");
  require(k.shape(0) == q.shape(0) && k.shape(1) == q.shape(1) && k.shape(3) == q.shape(3), "k doesn't fit q");
  require(k_scales.has_value() == v_scales.has_value(), "keys and values have scales, or neither has");
  const bool eight_bit = k_scales.has_value();
  if (eight_bit)
    require(k.dtype() == mx::int8, "keys with scales must be int8");
  else
    format_of(k);
  const auto stream = cpu();
  const int batch = k.shape(0), length = k.shape(2);
  // A view of one slice of the cache is read as it lies; anything else is copied by MLX first.
  std::vector<mx::array> arrays{q, k, v};
  if (eight_bit)
    for (const auto& scales : {*k_scales, *v_scales}) {
      require(scales.dtype() == mx::float32 && scales.shape() == mx::Shape({batch, k.shape(1), length}),
              "scales must be float32 [B, heads, T]");
      arrays.push_back(scales);
    }
  if (mask) {
    require(mask->dtype() == mx::bool_ && mask->ndim() == 2 && mask->shape(0) == batch && mask->shape(1) == length,
            "the mask must be bool [B, T]");
    arrays.push_back(row_contiguous(*mask, stream));
  }
  return mx::array({batch, 1, q.shape(1) * q.shape(3)}, mx::float32,
                   std::make_shared<AttendPrimitive>(stream, scale, eight_bit, mask.has_value()), std::move(arrays));
}

// Any number of queries, which look at everything.
mx::array attend_many(const mx::array& q, const mx::array& k, const mx::array& v, float scale) {
  for (const auto& part : {q, k, v})
    require(part.dtype() == mx::float32 && part.ndim() == 4, "q, k and v must be float32 [B, heads, length, dim]");
  require(k.shape() == v.shape() && k.shape(0) == q.shape(0) && k.shape(1) == q.shape(1) &&
              k.shape(3) == q.shape(3) && k.size() > 0,
          "k and v don't fit q");
  return mx::array({q.shape(0), q.shape(2), q.shape(1) * q.shape(3)}, mx::float32,
                   std::make_shared<AttendManyPrimitive>(cpu(), scale), std::vector<mx::array>{q, k, v});
}

// The values in 8 bits, and the scale of each row of the last axis.
std::vector<mx::array> round_rows(const mx::array& x) {
  require(x.dtype() == mx::float32 && x.ndim() > 1 && x.shape(-1) > 0, "x must be float32 [..., size]");
  const auto stream = cpu();
  auto rows = x.shape();
  rows.pop_back();
  return mx::array::make_arrays({x.shape(), rows}, {mx::int8, mx::float32}, std::make_shared<RoundPrimitive>(stream),
                                {row_contiguous(x, stream)});
}

// A kernel over the last axis of x, or over each value for itself: of rows of 1.
mx::array over_rows(const mx::array& x, mx::Shape shape, const char* name, RowKernel kernel, int size) {
  require(x.dtype() == mx::float32, "x must be float32");
  const auto stream = cpu();
  return mx::array(std::move(shape), mx::float32, std::make_shared<RowsPrimitive>(stream, name, kernel, size),
                   std::vector<mx::array>{row_contiguous(x, stream)});
}

mx::array elu(const mx::array& x) { return over_rows(x, x.shape(), "MusicgenElu", &Kernels::elu, 1); }

mx::array gelu(const mx::array& x) { return over_rows(x, x.shape(), "MusicgenGelu", &Kernels::gelu, 1); }

// The first half of the last axis times the sigmoid of the second.
mx::array glu(const mx::array& x) {
  require(x.ndim() > 0 && x.shape(-1) > 0 && x.shape(-1) % 2 == 0, "x must be [..., values and as many gates]");
  auto shape = x.shape();
  shape.back() /= 2;
  const int size = shape.back();
  return over_rows(x, std::move(shape), "MusicgenGlu", &Kernels::glu, size);
}

// x [N, ..., channels] with a mean of 0 and a deviation of 1 for each x[n], times gain, plus bias.
mx::array group_norm(const mx::array& x, const mx::array& gain, const mx::array& bias, float eps) {
  require(x.dtype() == mx::float32 && x.ndim() > 1 && x.shape(-1) > 0, "x must be float32 [N, ..., channels]");
  const auto stream = cpu();
  std::vector<mx::array> arrays{row_contiguous(x, stream)};
  for (const auto& part : {gain, bias}) {
    require(part.dtype() == mx::float32 && part.shape() == mx::Shape({x.shape(-1)}), "gain or bias doesn't fit x");
    arrays.push_back(row_contiguous(part, stream));
  }
  return mx::array(x.shape(), mx::float32, std::make_shared<GroupNormPrimitive>(stream, eps), std::move(arrays));
}

// Hidden states [B, T, dim] and the last cell state [B, dim].
std::vector<mx::array> lstm(const mx::array& projected, const mx::array& w, const mx::array& h, const mx::array& c) {
  require(projected.dtype() == mx::float32 && projected.ndim() == 3, "projected must be float32 [B, T, 4 * dim]");
  require(w.dtype() == mx::float32 && w.ndim() == 2 && w.shape(0) == 4 * w.shape(1) &&
              w.shape(0) == projected.shape(2),
          "w must be float32 [4 * dim, dim]");
  const int batch = projected.shape(0), steps = projected.shape(1), dim = w.shape(1);
  const auto stream = cpu();
  std::vector<mx::array> arrays{row_contiguous(projected, stream), row_contiguous(w, stream)};
  for (const auto& state : {h, c}) {
    require(state.dtype() == mx::float32 && state.shape() == mx::Shape({batch, dim}), "states must be [B, dim]");
    arrays.push_back(row_contiguous(state, stream));
  }
  return mx::array::make_arrays({{batch, steps, dim}, {batch, dim}}, {mx::float32, mx::float32},
                                std::make_shared<LstmPrimitive>(stream), arrays);
}

}  // namespace
}  // namespace musicgen

NB_MODULE(_extension, m) {
  using namespace musicgen;
  m.def("linear", &linear, "x"_a, "w"_a, "scales"_a = nb::none(), "biases"_a = nb::none(), "bits"_a = 0,
        "norm_weight"_a = nb::none(), "norm_bias"_a = nb::none(), "eps"_a = 1e-5f, "bias"_a = nb::none(),
        "gelu"_a = false, "residual"_a = nb::none(), "eight_bit_activations"_a = false);
  m.def("attend", &attend, "q"_a, "k"_a, "v"_a, "scale"_a, "mask"_a = nb::none(),
        "k_scales"_a = nb::none(), "v_scales"_a = nb::none());
  m.def("attend_many", &attend_many, "q"_a, "k"_a, "v"_a, "scale"_a);
  m.def("round_rows", &round_rows, "x"_a);
  m.def("elu", &elu, "x"_a);
  m.def("gelu", &gelu, "x"_a);
  m.def("glu", &glu, "x"_a);
  m.def("group_norm", &group_norm, "x"_a, "gain"_a, "bias"_a, "eps"_a);
  m.def("lstm", &lstm, "projected"_a, "w"_a, "h"_a, "c"_a);
  m.def("instruction_set", [] { return std::string(kernels().name); });
  m.def("instruction_sets", [] {
    const Kernels* tables[8];
    std::vector<std::string> names;
    for (int i = 0, n = supported(tables, 8); i < n; i++) names.emplace_back(tables[i]->name);
    return names;
  });
}
