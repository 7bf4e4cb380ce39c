// A linear layer with the norm in front of it, and GELU and residual behind.
#pragma once
#include "operation.h"

namespace musicgen {

// A layer norm in front; without a weight there is none.
struct Norm {
  const float* weight;
  const float* bias;
  float eps;
};

// The activations as the kernel wants them: normalised, and in digits if the weights are quantised.
inline void prepare(Linear& a, const Norm& norm, bool int8_activations) {
  const Kernels& k = kernels();
  const size_t K = a.inputs, size = K * a.rows, groups = K / kGroup;
  float* memory = scratch<float, Linear>(size + 2 * groups * a.rows);
  if (norm.weight) {
    for (int r = 0; r < a.rows; r++)
      k.layer_norm(a.x + r * K, norm.weight, norm.bias, memory + r * K, a.inputs, norm.eps);
    a.x = memory;
  }
  if (a.kind == Weights::floats || a.kind == Weights::halves) return;
  float *x_sum = memory + size, *x_scale = x_sum + groups * a.rows;
  if (k.digits) {
    a.digit_count = int8_activations ? 1 : 3;
    int8_t* digits = scratch<int8_t, Linear>(a.digit_count * size);
    for (int r = 0; r < a.rows; r++)
      k.to_digits(a.x + r * K, a.inputs, a.kind == Weights::bits8 ? 8 : 4, a.digit_count,
                  digits + r * a.digit_count * K, x_scale + r * groups, x_sum + r * groups);
    a.digits = digits;
  } else {
    for (int r = 0; r < a.rows; r++) k.sum_groups(a.x + r * K, a.inputs, x_sum + r * groups);
  }
  a.x_sum = x_sum;
  a.x_scale = x_scale;
}

// All outputs, on all threads.
inline void compute(Linear a, const Norm& norm, bool int8_activations) {
  prepare(a, norm, int8_activations);
  Pool& pool = Pool::get();
  // Pieces of some 64 KB of weights, at least a few for each thread.
  constexpr int bits[] = {32, 16, 8, 4};
  const size_t row_bytes = static_cast<size_t>(a.inputs) * bits[static_cast<int>(a.kind)] / 8;
  const int most = (a.outputs + pool.size() * 4 - 1) / (pool.size() * 4);
  int piece = std::min(most, static_cast<int>(65536 / std::max<size_t>(row_bytes, 1)));
  piece = std::max(kTile, (piece + kTile - 1) / kTile * kTile);
  pool.run((a.outputs + piece - 1) / piece, [&](int i) {
    kernels().linear(a, i * piece, std::min(a.outputs, (i + 1) * piece));
  });
}

struct LinearOptions {
  int bits;  // 0: not quantised
  bool norm, bias, gelu, residual, int8_activations;
  float eps;
  bool operator==(const LinearOptions&) const = default;
};

inline Weights weights_of(const mx::array& w, int bits) {
  require(bits == 0 || bits == 4 || bits == 8, "bits must be 0, 4 or 8");
  if (bits) return bits == 8 ? Weights::bits8 : Weights::bits4;
  return format_of(w) == Format::float16 ? Weights::halves : Weights::floats;
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
    const auto floats = [&] { return inputs[next++].data<float>(); };

    Linear a{};
    a.inputs = x.shape(-1);
    a.rows = static_cast<int>(x.size() / a.inputs);
    a.outputs = outputs_of(w, options_.bits);
    a.kind = weights_of(w, options_.bits);
    a.w = w.data<void>();
    if (options_.bits) {
      a.scale_format = format_of(inputs[next]);
      a.scales = inputs[next++].data<void>();
      a.biases = inputs[next++].data<void>();
    }
    Norm norm{nullptr, nullptr, options_.eps};
    if (options_.norm) {
      norm.weight = floats();
      norm.bias = floats();
    }
    a.bias = options_.bias ? floats() : nullptr;
    a.residual = options_.residual ? floats() : nullptr;
    a.gelu = options_.gelu;
    a.x = x.data<float>();
    a.y = out.data<float>();
    mx::cpu::get_command_encoder(stream()).dispatch(
        [a, norm, eight_bit = options_.int8_activations] { compute(a, norm, eight_bit); });
  }

 private:
  LinearOptions options_;
};

// Whether these are the weights of a layer for so many inputs: [N, K], or quantised ones in tiles.
inline void check_weights(const mx::array& w, const Maybe& scales, const Maybe& biases, int bits, int inputs) {
  require(w.ndim() == (bits ? 3 : 2), "w must be a matrix, or tiles if it is quantised");
  weights_of(w, bits);
  if (!bits) return require(w.shape(1) == inputs, "w doesn't fit x");
  require(scales && biases && inputs % kGroup == 0, "quantised weights need scales and biases for groups of 64");
  require(w.dtype() == mx::uint32 && w.shape(1) == inputs * bits / 32 && w.shape(2) == kTile, "w doesn't fit x");
  for (const auto& part : {*scales, *biases}) {
    require(part.shape() == mx::Shape({w.shape(0), inputs / kGroup, kTile}) && part.dtype() == scales->dtype(),
            "scales and biases don't fit w");
    format_of(part);
  }
}

inline mx::array linear(const mx::array& x, const mx::array& w, const Maybe& scales, const Maybe& biases, int bits,
                        const Maybe& norm_weight, const Maybe& norm_bias, float eps, const Maybe& bias, bool gelu,
                        const Maybe& residual, bool int8_activations) {
  require(x.dtype() == mx::float32 && x.ndim() > 0, "x must be float32");
  const int inputs = x.shape(-1);
  require(inputs > 0, "x has no inputs");
  check_weights(w, scales, biases, bits, inputs);
  const int outputs = outputs_of(w, bits);
  const auto stream = cpu();
  std::vector<mx::array> arrays{row_contiguous(x, stream), row_contiguous(w, stream)};
  if (bits)
    for (const auto& part : {*scales, *biases}) arrays.push_back(row_contiguous(part, stream));
  const auto vector = [&](const mx::array& a, int size, const char* what) {
    require(a.dtype() == mx::float32 && a.ndim() == 1 && a.shape(0) == size, what);
    arrays.push_back(row_contiguous(a, stream));
  };
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
                              int8_activations && bits != 0, eps};
  return mx::array(shape, mx::float32, std::make_shared<LinearPrimitive>(stream, options), std::move(arrays));
}

}  // namespace musicgen
