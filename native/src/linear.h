// A linear layer fused with the layer norm before it, and with GELU and residual after it.
#pragma once
#include "operation.h"

namespace musicgen {

// Layer norm before the linear layer; none if `weight` is null.
struct NormArgs {
  const float* weight;
  const float* bias;
  float eps;
};

// Normalizes the activations and, for quantized weights, splits them into int8 limbs or sums their groups.
inline void prepare_activations(LinearArgs& a, const NormArgs& norm, bool int8_activations) {
  const Kernels& k = kernels();
  const size_t K = a.inputs, size = K * a.rows, groups = K / kGroup;
  float* workspace = scratch<float, LinearArgs>(size + 2 * groups * a.rows);
  if (norm.weight) {
    for (int r = 0; r < a.rows; r++)
      k.layer_norm(a.x + r * K, norm.weight, norm.bias, workspace + r * K, a.inputs, norm.eps);
    a.x = workspace;
  }
  if (a.weight_type == WeightType::float32 || a.weight_type == WeightType::float16) return;
  float *x_sum = workspace + size, *x_scale = x_sum + groups * a.rows;
  if (k.use_int8_limbs) {
    a.limb_count = int8_activations ? 1 : 3;
    int8_t* limbs = scratch<int8_t, LinearArgs>(a.limb_count * size);
    for (int r = 0; r < a.rows; r++)
      k.to_int8_limbs(a.x + r * K, a.inputs, a.weight_type == WeightType::quantized8 ? 8 : 4, a.limb_count,
                      limbs + r * a.limb_count * K, x_scale + r * groups, x_sum + r * groups);
    a.int8_limbs = limbs;
  } else {
    for (int r = 0; r < a.rows; r++) k.sum_groups(a.x + r * K, a.inputs, x_sum + r * groups);
  }
  a.x_sum = x_sum;
  a.x_scale = x_scale;
}

// Computes all outputs, on all threads.
inline void compute_linear(LinearArgs a, const NormArgs& norm, bool int8_activations) {
  prepare_activations(a, norm, int8_activations);
  Pool& pool = Pool::get();
  // Chunks of about 64 KB of weights, at least a few per thread.
  constexpr int bits[] = {32, 16, 8, 4};
  const size_t row_bytes = static_cast<size_t>(a.inputs) * bits[static_cast<int>(a.weight_type)] / 8;
  const int max_chunk = (a.outputs + pool.size() * 4 - 1) / (pool.size() * 4);
  int chunk = std::min(max_chunk, static_cast<int>(65536 / std::max<size_t>(row_bytes, 1)));
  chunk = std::max(kTile, (chunk + kTile - 1) / kTile * kTile);
  pool.run((a.outputs + chunk - 1) / chunk,
           [&](int i) { kernels().linear(a, i * chunk, std::min(a.outputs, (i + 1) * chunk)); });
}

struct LinearOptions {
  int bits;  // 0: not quantized
  bool norm, bias, gelu, residual, int8_activations;
  float eps;
  bool operator==(const LinearOptions&) const = default;
};

inline WeightType weight_type_of(const mx::array& w, int bits) {
  require(bits == 0 || bits == 4 || bits == 8, "bits must be 0, 4 or 8");
  if (bits) return bits == 8 ? WeightType::quantized8 : WeightType::quantized4;
  return element_type_of(w) == ElementType::float16 ? WeightType::float16 : WeightType::float32;
}

inline int outputs_of(const mx::array& w, int bits) { return bits ? w.shape(0) * kTile : w.shape(0); }

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
    const auto next_floats = [&] { return inputs[next++].data<float>(); };

    LinearArgs a{};
    a.inputs = x.shape(-1);
    a.rows = static_cast<int>(x.size() / a.inputs);
    a.outputs = outputs_of(w, options_.bits);
    a.weight_type = weight_type_of(w, options_.bits);
    a.w = w.data<void>();
    if (options_.bits) {
      a.scale_type = element_type_of(inputs[next]);
      a.scales = inputs[next++].data<void>();
      a.biases = inputs[next++].data<void>();
    }
    NormArgs norm{nullptr, nullptr, options_.eps};
    if (options_.norm) {
      norm.weight = next_floats();
      norm.bias = next_floats();
    }
    a.bias = options_.bias ? next_floats() : nullptr;
    a.residual = options_.residual ? next_floats() : nullptr;
    a.gelu = options_.gelu;
    a.x = x.data<float>();
    a.y = out.data<float>();
    mx::cpu::get_command_encoder(stream()).dispatch(
        [a, norm, int8_activations = options_.int8_activations] { compute_linear(a, norm, int8_activations); });
  }

 private:
  LinearOptions options_;
};

// Throws unless these are the weights of a layer with `inputs` inputs: [N, K], or tiles if quantized.
inline void check_weights(const mx::array& w, const OptionalArray& scales, const OptionalArray& biases, int bits,
                          int inputs) {
  require(w.ndim() == (bits ? 3 : 2), "w must be [N, K], or tiles if it is quantized");
  weight_type_of(w, bits);
  if (!bits) return require(w.shape(1) == inputs, "w doesn't fit x");
  require(scales && biases && inputs % kGroup == 0, "quantized weights need scales and biases for groups of 64");
  require(w.dtype() == mx::uint32 && w.shape(1) == inputs * bits / 32 && w.shape(2) == kTile, "w doesn't fit x");
  for (const auto& part : {*scales, *biases}) {
    require(part.shape() == mx::Shape({w.shape(0), inputs / kGroup, kTile}) && part.dtype() == scales->dtype(),
            "scales and biases don't fit w");
    element_type_of(part);
  }
}

inline mx::array linear(const mx::array& x, const mx::array& w, const OptionalArray& scales,
                        const OptionalArray& biases, int bits, const OptionalArray& norm_weight,
                        const OptionalArray& norm_bias, float eps, const OptionalArray& bias, bool gelu,
                        const OptionalArray& residual, bool int8_activations) {
  require(x.dtype() == mx::float32 && x.ndim() > 0, "x must be float32");
  const int inputs = x.shape(-1);
  require(inputs > 0, "x's last axis is empty");
  check_weights(w, scales, biases, bits, inputs);
  const int outputs = outputs_of(w, bits);
  const auto stream = cpu_stream();
  std::vector<mx::array> arrays{row_contiguous(x, stream), row_contiguous(w, stream)};
  if (bits)
    for (const auto& part : {*scales, *biases}) arrays.push_back(row_contiguous(part, stream));
  const auto push_vector = [&](const mx::array& a, int size, const char* message) {
    require(a.dtype() == mx::float32 && a.ndim() == 1 && a.shape(0) == size, message);
    arrays.push_back(row_contiguous(a, stream));
  };
  require(norm_weight.has_value() == norm_bias.has_value(), "a norm needs both a weight and a bias");
  if (norm_weight) {
    push_vector(*norm_weight, inputs, "the norm's weight doesn't fit x");
    push_vector(*norm_bias, inputs, "the norm's bias doesn't fit x");
  }
  if (bias) push_vector(*bias, outputs, "the bias doesn't fit w");
  auto shape = x.shape();
  shape.back() = outputs;
  if (residual) {
    require(residual->dtype() == mx::float32 && residual->shape() == shape,
            "the residual must be float32 and of the output's shape");
    arrays.push_back(row_contiguous(*residual, stream));
  }
  const LinearOptions options{bits, norm_weight.has_value(), bias.has_value(), gelu, residual.has_value(),
                              int8_activations && bits != 0, eps};
  return mx::array(shape, mx::float32, std::make_shared<LinearPrimitive>(stream, options), std::move(arrays));
}

}  // namespace musicgen
