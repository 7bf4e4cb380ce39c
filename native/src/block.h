// One decoding step of a transformer block as a single operation, without MLX's overhead between its layers.
#pragma once
#include <cmath>
#include <memory>
#include <utility>
#include <vector>

#include "attention.h"
#include "linear.h"

namespace musicgen {

// Weights are evaluated when the layers are built, so that their data can be read in each step.
inline mx::array evaluated_contiguous(const mx::array& a) {
  // Weights are: an operation for each of hundreds takes longer than a step.
  if (a.status() == mx::array::Status::available && a.flags().row_contiguous) return a;
  auto result = mx::contiguous(a, false, cpu_stream());
  result.eval();
  return result;
}

class FusedNorm {
 public:
  FusedNorm(const mx::array& weight, const mx::array& bias, float eps)
      : weight_(evaluated_contiguous(weight)), bias_(evaluated_contiguous(bias)), eps_(eps) {
    require(weight.dtype() == mx::float32 && bias.dtype() == mx::float32 && weight.ndim() == 1 &&
                weight.shape() == bias.shape(),
            "a norm's weight and bias must be float32 vectors of the same size");
  }
  int size() const { return weight_.shape(0); }
  operator NormArgs() const { return {weight_.data<float>(), bias_.data<float>(), eps_}; }

 private:
  mx::array weight_, bias_;
  float eps_;
};
constexpr NormArgs kNoNorm{};

class FusedLinear {
 public:
  FusedLinear(const mx::array& w, const OptionalArray& scales, const OptionalArray& biases, int bits,
              bool int8_activations, const OptionalArray& bias)
      : w_(evaluated_contiguous(w)), bits_(bits), int8_activations_(int8_activations && bits) {
    require(w.ndim() > 1, "w must be [N, K], or tiles if it is quantized");
    check_weights(w, scales, biases, bits, inputs());
    if (bits) {
      scales_ = evaluated_contiguous(*scales);
      biases_ = evaluated_contiguous(*biases);
    }
    if (bias) {
      require(bias->dtype() == mx::float32 && bias->ndim() == 1 && bias->shape(0) == outputs(),
              "the bias doesn't fit w");
      bias_ = evaluated_contiguous(*bias);
    }
  }
  int outputs() const { return outputs_of(w_, bits_); }
  int inputs() const { return bits_ ? w_.shape(1) * 32 / bits_ : w_.shape(1); }

  void operator()(int rows, const float* x, float* y, const NormArgs& norm, bool gelu = false,
                  const float* residual = nullptr) const {
    LinearArgs a{};
    a.weight_type = weight_type_of(w_, bits_);
    a.rows = rows;
    a.outputs = outputs();
    a.inputs = inputs();
    a.w = w_.data<void>();
    if (bits_) {
      a.scale_type = element_type_of(*scales_);
      a.scales = scales_->data<void>();
      a.biases = biases_->data<void>();
    }
    a.bias = bias_ ? bias_->data<float>() : nullptr;
    a.x = x;
    a.y = y;
    a.gelu = gelu;
    a.residual = residual;
    compute_linear(a, norm, int8_activations_);
  }

 private:
  mx::array w_;
  int bits_;
  bool int8_activations_;
  OptionalArray scales_, biases_, bias_;
};

// Cross-attention with its norm, over keys and values [B, heads, T, dim], with a mask bool [B, T].
class FusedCrossAttention {
 public:
  FusedCrossAttention(FusedNorm norm, FusedLinear query, FusedLinear out, const mx::array& k, const mx::array& v,
                      const OptionalArray& mask)
      : norm_(std::move(norm)),
        query_(std::move(query)),
        out_(std::move(out)),
        k_(evaluated_contiguous(k)),
        v_(evaluated_contiguous(v)) {
    require(k.ndim() == 4 && k.shape() == v.shape() && k.dtype() == mx::float32 && v.dtype() == mx::float32,
            "k and v must be float32 [B, heads, T, dim]");
    const int dim = k.shape(1) * k.shape(3);
    require(norm_.size() == dim && query_.inputs() == dim && query_.outputs() == dim && out_.inputs() == dim &&
                out_.outputs() == dim,
            "the cross-attention's layers don't fit each other");
    if (mask) {
      require(mask->dtype() == mx::bool_ && mask->shape() == mx::Shape({k.shape(0), k.shape(2)}),
              "the mask must be bool [B, T]");
      mask_ = evaluated_contiguous(*mask);
    }
  }
  int rows() const { return k_.shape(0); }
  int dim() const { return norm_.size(); }

  // y = x + out(attention(query(norm(x)))); `q` and `attn_out` are scratch of x's size.
  void operator()(int rows, const float* x, float* y, float* q, float* attn_out) const {
    query_(rows, x, q, norm_);
    DecodeAttention a{};
    set_kv(k_, v_, a);
    a.args.scale = 1 / std::sqrt(static_cast<float>(a.args.dim));
    a.q = q;
    a.q_row = dim();
    a.q_head = a.args.dim;
    a.mask = mask_ ? mask_->data<uint8_t>() : nullptr;
    a.out = attn_out;
    compute_attention(a);
    out_(rows, attn_out, y, kNoNorm, false, x);
  }

 private:
  FusedNorm norm_;
  FusedLinear query_, out_;
  mx::array k_, v_;
  OptionalArray mask_;
};

struct FusedBlockLayers {
  int heads;
  FusedLinear out;
  std::optional<FusedCrossAttention> cross_attention;
  FusedNorm norm;
  FusedLinear linear1, linear2;
  int dim() const { return norm.size(); }
};

// A step from the self-attention's projections to the end of the block. Inputs: x [B, 1, dim], qkv [B, 1, 3 * dim],
// the cache [slots, 2 * heads, capacity, dim / heads], whose first B rows are these and which has the keys of all heads
// before their values; an int8 cache's scales [slots, 2 * heads, capacity].
class FusedBlockPrimitive : public CpuPrimitive {
 public:
  FusedBlockPrimitive(mx::Stream stream, std::shared_ptr<const FusedBlockLayers> layers, std::vector<Span> spans)
      : CpuPrimitive(stream), layers_(std::move(layers)), spans_(std::move(spans)) {}
  const char* name() const override { return "MusicgenFusedBlock"; }
  bool is_equivalent(const mx::Primitive& other) const override {
    const auto& o = static_cast<const FusedBlockPrimitive&>(other);
    return o.layers_ == layers_ && o.spans_ == spans_;
  }

  void eval_cpu(const std::vector<mx::array>& inputs, std::vector<mx::array>& outputs) override {
    auto& out = outputs[0];
    out.set_data(mx::allocator::malloc(out.nbytes()));
    const mx::array& cache = inputs[2];
    require(cache.flags().row_contiguous, kUnsupportedLayout);
    DecodeAttention a{};
    a.batch = inputs[0].shape(0);
    a.heads = layers_->heads;
    a.args.kv_type = cache.dtype() == mx::int8 ? ElementType::int8 : element_type_of(cache);
    for (const Span& span : spans_) a.args.length = std::max(a.args.length, span.end);
    a.args.dim = a.args.stride = cache.shape(3);
    a.args.scale = 1 / std::sqrt(static_cast<float>(a.args.dim));
    a.q = inputs[1].data<float>();
    a.q_row = 3 * layers_->dim();
    a.q_head = a.args.dim;
    a.k = cache.data<char>();
    a.k_row = a.v_row = cache.strides(0);
    a.k_head = a.v_head = cache.strides(1);
    a.v = a.k + a.heads * a.k_head * cache.itemsize();
    if (a.args.kv_type == ElementType::int8) {
      const mx::array& scales = inputs[3];
      require(scales.flags().row_contiguous, kUnsupportedLayout);
      a.scales_row = scales.strides(0);
      a.scales_head = scales.strides(1);
      a.k_scales = scales.data<float>();
      a.v_scales = a.k_scales + a.heads * a.scales_head;
    }
    mx::cpu::get_command_encoder(stream()).dispatch(
        [a, layers = layers_, spans = spans_, x = inputs[0].data<float>(), y = out.data<float>()]() mutable {
          a.spans = spans.data();
          step(*layers, a, x, y);
        });
  }

 private:
  static void step(const FusedBlockLayers& layers, DecodeAttention a, const float* x, float* y) {
    const int rows = a.batch;
    const size_t size = static_cast<size_t>(rows) * layers.dim();
    float* q = scratch<float, FusedBlockLayers>(4 * size + static_cast<size_t>(rows) * layers.linear1.outputs());
    float *attn_out = q + size, *hidden = attn_out + size, *after_cross = hidden + size, *ff = after_cross + size;
    a.out = attn_out;
    compute_attention(a);
    layers.out(rows, attn_out, hidden, kNoNorm, false, x);
    if (layers.cross_attention) {
      (*layers.cross_attention)(rows, hidden, after_cross, q, attn_out);
      hidden = after_cross;
    }
    layers.linear1(rows, hidden, ff, layers.norm, true);
    layers.linear2(rows, ff, y, kNoNorm, false, hidden);
  }

  std::shared_ptr<const FusedBlockLayers> layers_;
  std::vector<Span> spans_;
};

class FusedBlockStep {
 public:
  FusedBlockStep(int heads, FusedLinear out, std::optional<FusedCrossAttention> cross_attention, FusedNorm norm,
                 FusedLinear linear1, FusedLinear linear2)
      : layers_(std::make_shared<const FusedBlockLayers>(
            FusedBlockLayers{heads, std::move(out), std::move(cross_attention), std::move(norm), std::move(linear1),
                             std::move(linear2)})) {
    const auto& p = *layers_;
    const int dim = p.dim();
    require(heads > 0 && dim % heads == 0 && p.out.inputs() == dim && p.out.outputs() == dim &&
                p.linear1.inputs() == dim && p.linear2.inputs() == p.linear1.outputs() && p.linear2.outputs() == dim &&
                (!p.cross_attention || p.cross_attention->dim() == dim),
            "the block's layers don't fit each other");
  }

  // The block's output for x. The self-attention of each row attends to the cache's positions from its start to before
  // its end.
  mx::array operator()(const mx::array& x, const mx::array& qkv, const mx::array& cache, const OptionalArray& scales,
                       const std::vector<int>& starts, const std::vector<int>& ends) const {
    const auto& p = *layers_;
    const auto stream = cpu_stream();
    const int rows = x.ndim() == 3 ? x.shape(0) : 0;
    require(rows > 0 && x.dtype() == mx::float32 && x.shape() == mx::Shape({rows, 1, p.dim()}),
            "x must be float32 [B, 1, dim]");
    require(qkv.dtype() == mx::float32 && qkv.shape() == mx::Shape({rows, 1, 3 * p.dim()}),
            "qkv must be float32 [B, 1, 3 * dim]");
    require(!p.cross_attention || p.cross_attention->rows() == rows,
            "x must have as many rows as the cross-attention's keys");
    require(cache.ndim() == 4 && cache.shape(0) >= rows && cache.shape(1) == 2 * p.heads &&
                cache.shape(3) == p.dim() / p.heads,
            "the cache must be [slots, 2 * heads, capacity, dim / heads], with a slot for each row of x");
    const int capacity = cache.shape(2);
    require(static_cast<int>(starts.size()) == rows && static_cast<int>(ends.size()) == rows,
            "each row must have a start and an end");
    std::vector<Span> spans;
    for (int row = 0; row < rows; row++) {
      require(0 <= starts[row] && starts[row] < ends[row] && ends[row] <= capacity,
              "a row's start must be before its end, both in the cache");
      spans.push_back({starts[row], ends[row]});
    }
    std::vector<mx::array> inputs{row_contiguous(x, stream), row_contiguous(qkv, stream), cache};
    require((cache.dtype() == mx::int8) == scales.has_value(),
            "scales must be given for an int8 cache, and only for one");
    if (scales) {
      require(scales->dtype() == mx::float32 && scales->shape() == mx::Shape({cache.shape(0), 2 * p.heads, capacity}),
              "the scales must be float32 [slots, 2 * heads, capacity]");
      inputs.push_back(*scales);
    } else {
      element_type_of(cache);
    }
    return mx::array(x.shape(), mx::float32,
                     std::make_shared<FusedBlockPrimitive>(stream, layers_, std::move(spans)), std::move(inputs));
  }

 private:
  std::shared_ptr<const FusedBlockLayers> layers_;
};

// Writes a step's keys and values, or the scales of an int8 cache, into the cache: in place, unless the old array is
// still referenced. Values and scales are two operations, though quantizing gives both: MLX doesn't donate input
// buffers to operations with two outputs.
class WriteKVPrimitive : public CpuPrimitive {
 public:
  WriteKVPrimitive(mx::Stream stream, std::vector<int> positions)
      : CpuPrimitive(stream), positions_(std::move(positions)) {}
  const char* name() const override { return "MusicgenWriteKV"; }
  bool is_equivalent(const mx::Primitive& other) const override {
    return static_cast<const WriteKVPrimitive&>(other).positions_ == positions_;
  }

  void eval_cpu(const std::vector<mx::array>& inputs, std::vector<mx::array>& outputs) override {
    const mx::array &cache = inputs[0], &qkv = inputs[1];
    auto& out = outputs[0];
    require(cache.flags().row_contiguous, kUnsupportedLayout);
    donate_or_allocate(out, cache);
    const char* source = cache.data<char>();
    char* target = out.data<char>();
    const auto type = out.dtype();
    const bool is_scales = out.ndim() == 3;
    const int rows = qkv.shape(0), heads = out.shape(1), capacity = out.shape(2), dim = qkv.shape(2) / (heads / 2 * 3);
    mx::cpu::get_command_encoder(stream()).dispatch(
        [=, x = qkv.data<float>(), bytes = out.nbytes(), positions = positions_] {
          if (target != source) std::memcpy(target, source, bytes);
          for (int i = 0; i < rows * heads; i++) {
            // Skip the queries of each row: half as many vectors as its keys and values.
            const float* vector = x + (static_cast<size_t>(i / heads + 1) * (heads / 2) + i) * dim;
            const size_t at = static_cast<size_t>(i) * capacity + positions[i / heads];
            float unused_scale;
            if (is_scales)
              kernels().quantize_row_int8(vector, dim, scratch<int8_t>(dim), reinterpret_cast<float*>(target) + at);
            else if (type == mx::float32)
              std::copy_n(vector, dim, reinterpret_cast<float*>(target) + at * dim);
            else if (type == mx::float16)
              kernels().to_fp16(vector, dim, reinterpret_cast<uint16_t*>(target) + at * dim);
            else
              kernels().quantize_row_int8(vector, dim, reinterpret_cast<int8_t*>(target) + at * dim, &unused_scale);
          }
        });
  }

 private:
  std::vector<int> positions_;
};

// `cache` [slots, 2 * heads, capacity, dim], or the scales of an int8 cache [slots, 2 * heads, capacity], with the keys
// and values of qkv [B, 1, 3 * heads * dim] written into the first B slots, each at its position.
inline mx::array write_kv(const mx::array& cache, const mx::array& qkv, const std::vector<int>& positions) {
  require((cache.ndim() == 4 && (cache.dtype() == mx::int8 || cache.dtype() == mx::float16 ||
                                 cache.dtype() == mx::float32)) ||
              (cache.ndim() == 3 && cache.dtype() == mx::float32),
          "the cache must be [slots, 2 * heads, capacity, dim], or its scales [slots, 2 * heads, capacity]");
  const int heads = cache.shape(1) / 2;
  require(qkv.dtype() == mx::float32 && qkv.ndim() == 3 && qkv.shape(0) > 0 && qkv.shape(0) <= cache.shape(0) &&
              qkv.shape(1) == 1 && heads > 0 &&
              qkv.shape(2) % (3 * heads) == 0 && (cache.ndim() == 3 || qkv.shape(2) == 3 * heads * cache.shape(3)),
          "qkv must be float32 [B, 1, 3 * heads * dim], of no more rows than the cache has");
  require(static_cast<int>(positions.size()) == qkv.shape(0), "each row must have a position");
  for (int position : positions) require(0 <= position && position < cache.shape(2), "a position is not in the cache");
  const auto stream = cpu_stream();
  return mx::array(cache.shape(), cache.dtype(), std::make_shared<WriteKVPrimitive>(stream, positions),
                   {cache, row_contiguous(qkv, stream)});
}

}  // namespace musicgen
