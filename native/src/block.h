// A step of a whole transformer block at once: between its parts nothing waits for MLX.
#pragma once
#include <cmath>
#include <memory>
#include <utility>

#include "attention.h"
#include "linear.h"

namespace musicgen {

// An array that is there, its rows one behind the other.
inline mx::array at_hand(const mx::array& a) {
  auto there = mx::contiguous(a, false, cpu());
  there.eval();
  return there;
}

class BlockNorm {
 public:
  BlockNorm(const mx::array& weight, const mx::array& bias, float eps)
      : weight_(at_hand(weight)), bias_(at_hand(bias)), eps_(eps) {
    require(weight.dtype() == mx::float32 && bias.dtype() == mx::float32 && weight.ndim() == 1 &&
                weight.shape() == bias.shape(),
            "a norm's weight and bias must be float32 and alike");
  }
  int size() const { return weight_.shape(0); }
  operator Norm() const { return {weight_.data<float>(), bias_.data<float>(), eps_}; }

 private:
  mx::array weight_, bias_;
  float eps_;
};
constexpr Norm kNoNorm{};

class BlockLinear {
 public:
  BlockLinear(const mx::array& w, const Maybe& scales, const Maybe& biases, int bits, bool int8_activations,
              const Maybe& bias)
      : w_(at_hand(w)), bits_(bits), int8_activations_(int8_activations && bits) {
    require(w.ndim() > 1, "w must be a matrix, or tiles if it is quantised");
    check_weights(w, scales, biases, bits, inputs());
    if (bits) {
      scales_ = at_hand(*scales);
      biases_ = at_hand(*biases);
    }
    if (bias) {
      require(bias->dtype() == mx::float32 && bias->ndim() == 1 && bias->shape(0) == outputs(),
              "the bias doesn't fit w");
      bias_ = at_hand(*bias);
    }
  }
  int outputs() const { return outputs_of(w_, bits_); }
  int inputs() const { return bits_ ? w_.shape(1) * 32 / bits_ : w_.shape(1); }

  void operator()(int rows, const float* x, float* y, const Norm& norm, bool gelu = false,
                  const float* residual = nullptr) const {
    Linear a{};
    a.kind = weights_of(w_, bits_);
    a.rows = rows;
    a.outputs = outputs();
    a.inputs = inputs();
    a.w = w_.data<void>();
    if (bits_) {
      a.scale_format = format_of(*scales_);
      a.scales = scales_->data<void>();
      a.biases = biases_->data<void>();
    }
    a.bias = bias_ ? bias_->data<float>() : nullptr;
    a.x = x;
    a.y = y;
    a.gelu = gelu;
    a.residual = residual;
    compute(a, norm, int8_activations_);
  }

 private:
  mx::array w_;
  int bits_;
  bool int8_activations_;
  Maybe scales_, biases_, bias_;
};

// The cross-attention and what it looks at: keys and values [B, heads, T, dim], mask bool [B, T].
class BlockContext {
 public:
  BlockContext(BlockNorm norm, BlockLinear query, BlockLinear out, const mx::array& k, const mx::array& v,
               const Maybe& mask)
      : norm_(std::move(norm)), query_(std::move(query)), out_(std::move(out)), k_(at_hand(k)), v_(at_hand(v)) {
    require(k.ndim() == 4 && k.shape() == v.shape() && k.dtype() == mx::float32 && v.dtype() == mx::float32,
            "k and v must be float32 [B, heads, T, dim]");
    const int dim = k.shape(1) * k.shape(3);
    require(norm_.size() == dim && query_.inputs() == dim && query_.outputs() == dim && out_.inputs() == dim &&
                out_.outputs() == dim,
            "the cross-attention's layers don't fit each other");
    if (mask) {
      require(mask->dtype() == mx::bool_ && mask->shape() == mx::Shape({k.shape(0), k.shape(2)}),
              "the mask must be bool [B, T]");
      mask_ = at_hand(*mask);
    }
  }
  int rows() const { return k_.shape(0); }
  int dim() const { return norm_.size(); }

  // y = x + what x finds; `asked` and `found` are scratch, as large as x.
  void operator()(int rows, const float* x, float* y, float* asked, float* found) const {
    query_(rows, x, asked, norm_);
    Attention a{};
    look_at(k_, v_, a);
    a.head.scale = 1 / std::sqrt(static_cast<float>(a.head.dim));
    a.q = asked;
    a.q_row = dim();
    a.q_head = a.head.dim;
    a.mask = mask_ ? mask_->data<uint8_t>() : nullptr;
    a.out = found;
    compute(a);
    out_(rows, found, y, kNoNorm, false, x);
  }

 private:
  BlockNorm norm_;
  BlockLinear query_, out_;
  mx::array k_, v_;
  Maybe mask_;
};

struct BlockParts {
  int heads;
  BlockLinear out;
  std::optional<BlockContext> context;
  BlockNorm norm;
  BlockLinear linear1, linear2;
  int dim() const { return norm.size(); }
};

// A step from what its self-attention asks for to the end of the block. Inputs: x [B, 1, dim], asked [B, 1, 3 * dim],
// the cache [B, 2 * heads, capacity, dim / heads], all keys before all values; of an int8 cache its scales
// [B, 2 * heads, capacity]; the mask.
class BlockPrimitive : public CpuPrimitive {
 public:
  BlockPrimitive(mx::Stream stream, std::shared_ptr<const BlockParts> parts, int length, bool mask)
      : CpuPrimitive(stream), parts_(std::move(parts)), length_(length), mask_(mask) {}
  const char* name() const override { return "MusicgenBlock"; }
  bool is_equivalent(const mx::Primitive& other) const override {
    const auto& o = static_cast<const BlockPrimitive&>(other);
    return o.parts_ == parts_ && o.length_ == length_ && o.mask_ == mask_;
  }

  void eval_cpu(const std::vector<mx::array>& inputs, std::vector<mx::array>& outputs) override {
    auto& out = outputs[0];
    out.set_data(mx::allocator::malloc(out.nbytes()));
    const mx::array& cache = inputs[2];
    require(cache.flags().row_contiguous, kOrder);
    Attention a{};
    a.batch = cache.shape(0);
    a.heads = parts_->heads;
    a.head.format = cache.dtype() == mx::int8 ? Format::int8 : format_of(cache);
    a.head.length = length_;
    a.head.dim = a.head.stride = cache.shape(3);
    a.head.scale = 1 / std::sqrt(static_cast<float>(a.head.dim));
    a.q = inputs[1].data<float>();
    a.q_row = 3 * parts_->dim();
    a.q_head = a.head.dim;
    a.k = cache.data<char>();
    a.k_row = a.v_row = cache.strides(0);
    a.k_head = a.v_head = cache.strides(1);
    a.v = a.k + a.heads * a.k_head * cache.itemsize();
    if (a.head.format == Format::int8) {
      const mx::array& scales = inputs[3];
      require(scales.flags().row_contiguous, kOrder);
      a.scales_row = scales.strides(0);
      a.scales_head = scales.strides(1);
      a.k_scales = scales.data<float>();
      a.v_scales = a.k_scales + a.heads * a.scales_head;
    }
    a.mask = mask_ ? inputs.back().data<uint8_t>() : nullptr;
    mx::cpu::get_command_encoder(stream()).dispatch(
        [a, parts = parts_, x = inputs[0].data<float>(), y = out.data<float>()] { step(*parts, a, x, y); });
  }

 private:
  static void step(const BlockParts& block, Attention a, const float* x, float* y) {
    const int rows = a.batch;
    const size_t size = static_cast<size_t>(rows) * block.dim();
    float* asked = scratch<float, BlockParts>(4 * size + static_cast<size_t>(rows) * block.linear1.outputs());
    float *found = asked + size, *after = found + size, *together = after + size, *hidden = together + size;
    a.out = found;
    compute(a);
    block.out(rows, found, after, kNoNorm, false, x);
    if (block.context) {
      (*block.context)(rows, after, together, asked, found);
      after = together;
    }
    block.linear1(rows, after, hidden, block.norm, true);
    block.linear2(rows, hidden, y, kNoNorm, false, after);
  }

  std::shared_ptr<const BlockParts> parts_;
  int length_;
  bool mask_;
};

class Block {
 public:
  Block(int heads, BlockLinear out, std::optional<BlockContext> context, BlockNorm norm, BlockLinear linear1,
        BlockLinear linear2)
      : parts_(std::make_shared<const BlockParts>(BlockParts{heads, std::move(out), std::move(context),
                                                             std::move(norm), std::move(linear1),
                                                             std::move(linear2)})) {
    const auto& p = *parts_;
    const int dim = p.dim();
    require(heads > 0 && dim % heads == 0 && p.out.inputs() == dim && p.out.outputs() == dim &&
                p.linear1.inputs() == dim && p.linear2.inputs() == p.linear1.outputs() && p.linear2.outputs() == dim &&
                (!p.context || p.context->dim() == dim),
            "the block's layers don't fit each other");
  }

  // What follows x, when the cache's first `length` positions are looked at.
  mx::array operator()(const mx::array& x, const mx::array& asked, const mx::array& cache, const Maybe& scales,
                       int length, const Maybe& mask) const {
    const auto& p = *parts_;
    const auto stream = cpu();
    const int rows = x.ndim() == 3 ? x.shape(0) : 0;
    require(rows > 0 && x.dtype() == mx::float32 && x.shape() == mx::Shape({rows, 1, p.dim()}),
            "x must be float32 [B, 1, dim]");
    require(asked.dtype() == mx::float32 && asked.shape() == mx::Shape({rows, 1, 3 * p.dim()}),
            "asked must be float32 [B, 1, 3 * dim]");
    require(!p.context || p.context->rows() == rows, "x has not as many rows as the context");
    require(cache.ndim() == 4 && cache.shape(0) == rows && cache.shape(1) == 2 * p.heads &&
                cache.shape(3) == p.dim() / p.heads,
            "the cache must be [B, 2 * heads, capacity, dim / heads]");
    const int capacity = cache.shape(2);
    require(0 < length && length <= capacity, "the cache hasn't as many positions");
    std::vector<mx::array> inputs{row_contiguous(x, stream), row_contiguous(asked, stream), cache};
    require((cache.dtype() == mx::int8) == scales.has_value(), "an int8 cache has scales, others have none");
    if (scales) {
      require(scales->dtype() == mx::float32 && scales->shape() == mx::Shape({rows, 2 * p.heads, capacity}),
              "the scales must be float32 [B, 2 * heads, capacity]");
      inputs.push_back(*scales);
    } else {
      format_of(cache);
    }
    if (mask) {
      require(mask->dtype() == mx::bool_ && mask->shape() == mx::Shape({rows, length}),
              "the mask must be bool [B, length]");
      inputs.push_back(row_contiguous(*mask, stream));
    }
    return mx::array(x.shape(), mx::float32,
                     std::make_shared<BlockPrimitive>(stream, parts_, length, mask.has_value()), std::move(inputs));
  }

 private:
  std::shared_ptr<const BlockParts> parts_;
};

// A step's keys and values in a cache, or their scales in an int8 cache's: written in place, unless somebody still
// wants to know what was there before. One or the other, though both are rounded at once: of operations with two
// results MLX gives neither its input's memory.
class RememberPrimitive : public CpuPrimitive {
 public:
  RememberPrimitive(mx::Stream stream, int position) : CpuPrimitive(stream), position_(position) {}
  const char* name() const override { return "MusicgenRemember"; }
  bool is_equivalent(const mx::Primitive& other) const override {
    return static_cast<const RememberPrimitive&>(other).position_ == position_;
  }

  void eval_cpu(const std::vector<mx::array>& inputs, std::vector<mx::array>& outputs) override {
    const mx::array &before = inputs[0], &newest = inputs[1];
    auto& out = outputs[0];
    require(before.flags().row_contiguous, kOrder);
    make_room(out, before);
    const char* from = before.data<char>();
    char* to = out.data<char>();
    const auto type = out.dtype();
    const bool of_scales = out.ndim() == 3;
    const int rows = out.shape(0), heads = out.shape(1), capacity = out.shape(2),
              dim = newest.shape(2) / (heads / 2 * 3);
    mx::cpu::get_command_encoder(stream()).dispatch(
        [=, x = newest.data<float>(), bytes = out.nbytes(), position = position_] {
          if (to != from) std::memcpy(to, from, bytes);
          for (int i = 0; i < rows * heads; i++) {
            // Behind the queries, which are half as many.
            const float* own = x + (static_cast<size_t>(i / heads + 1) * (heads / 2) + i) * dim;
            const size_t at = static_cast<size_t>(i) * capacity + position;
            float unused_scale;
            if (of_scales)
              kernels().round_row(own, dim, scratch<int8_t>(dim), reinterpret_cast<float*>(to) + at);
            else if (type == mx::float32)
              std::copy_n(own, dim, reinterpret_cast<float*>(to) + at * dim);
            else if (type == mx::float16)
              kernels().halve(own, dim, reinterpret_cast<uint16_t*>(to) + at * dim);
            else
              kernels().round_row(own, dim, reinterpret_cast<int8_t*>(to) + at * dim, &unused_scale);
          }
        });
  }

 private:
  int position_;
};

// `cache` [B, 2 * heads, capacity, dim], or the scales of one in int8 [B, 2 * heads, capacity], with a step's keys and
// values in it: asked [B, 1, 3 * heads * dim], where they stand behind the queries.
inline mx::array write_kv(const mx::array& cache, const mx::array& asked, int position) {
  require((cache.ndim() == 4 && (cache.dtype() == mx::int8 || cache.dtype() == mx::float16 ||
                                 cache.dtype() == mx::float32)) ||
              (cache.ndim() == 3 && cache.dtype() == mx::float32),
          "the cache must be [B, 2 * heads, capacity, dim], or its scales [B, 2 * heads, capacity]");
  const int rows = cache.shape(0), heads = cache.shape(1) / 2;
  require(asked.dtype() == mx::float32 && asked.ndim() == 3 && asked.shape(0) == rows && asked.shape(1) == 1 &&
              heads > 0 && asked.shape(2) % (3 * heads) == 0 &&
              (cache.ndim() == 3 || asked.shape(2) == 3 * heads * cache.shape(3)),
          "asked must be float32 [B, 1, 3 * heads * dim]");
  require(0 <= position && position < cache.shape(2), "the position is not in the cache");
  const auto stream = cpu();
  return mx::array(cache.shape(), cache.dtype(), std::make_shared<RememberPrimitive>(stream, position),
                   {cache, row_contiguous(asked, stream)});
}

}  // namespace musicgen
