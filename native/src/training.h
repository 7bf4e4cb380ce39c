// Operations for training: with what their gradients take, and these.
#pragma once
#include <string>
#include <utility>

#include "operation.h"

namespace musicgen {

// What attention_forward and attention_backward share: whether it is causal, the scale, and the mask, the last input.
class TrainedAttentionPrimitive : public CpuPrimitive {
 public:
  TrainedAttentionPrimitive(mx::Stream stream, float scale, bool causal, bool mask)
      : CpuPrimitive(stream), scale_(scale), causal_(causal), has_mask_(mask) {}
  bool is_equivalent(const mx::Primitive& other) const override {
    const auto& o = static_cast<const TrainedAttentionPrimitive&>(other);
    return o.scale_ == scale_ && o.causal_ == causal_ && o.has_mask_ == has_mask_;
  }

 protected:
  // The arguments of a row of the batch and a head.
  struct Heads {
    TrainedAttentionArgs all;
    int heads;
    mx::Strides q, k, v;
    int64_t mask_row;

    TrainedAttentionArgs of(int b, int h) const {
      TrainedAttentionArgs a = all;
      a.q += b * q[0] + h * q[1];
      a.k += b * k[0] + h * k[1];
      a.v += b * v[0] + h * v[1];
      if (a.mask) a.mask += b * mask_row;
      const size_t queries = a.queries;
      a.out += b * queries * a.out_stride + static_cast<size_t>(h) * a.dim;
      a.softmax += 2 * (static_cast<size_t>(b) * heads + h) * queries;
      return a;
    }
  };

  Heads heads_of(const std::vector<mx::array>& inputs, float* out, float* softmax) const {
    const mx::array &q = inputs[0], &k = inputs[1], &v = inputs[2];
    require(q.shape(3) == 1 || (q.strides(3) == 1 && k.strides(3) == 1 && v.strides(3) == 1),
            "queries, keys or values have an unsupported memory layout");
    Heads heads{{}, q.shape(1), q.strides(), k.strides(), v.strides(), 0};
    TrainedAttentionArgs& a = heads.all;
    a.queries = q.shape(2);
    a.length = k.shape(2);
    a.dim = q.shape(3);
    a.q_stride = q.strides(2);
    a.k_stride = k.strides(2);
    a.v_stride = v.strides(2);
    a.out_stride = a.d_stride = static_cast<size_t>(heads.heads) * a.dim;
    a.causal = causal_;
    a.scale = scale_;
    a.q = q.data<float>();
    a.k = k.data<float>();
    a.v = v.data<float>();
    if (has_mask_) {
      const mx::array& mask = inputs.back();
      a.mask = mask.data<uint8_t>();
      heads.mask_row = mask.strides(0);
      a.mask_query_stride = mask.strides(2);
      a.mask_key_stride = mask.strides(3);
    }
    a.out = out;
    a.softmax = softmax;
    return heads;
  }

  float scale_;
  bool causal_, has_mask_;
};

class AttentionForwardPrimitive : public TrainedAttentionPrimitive {
 public:
  using TrainedAttentionPrimitive::TrainedAttentionPrimitive;
  const char* name() const override { return "MusicgenAttentionForward"; }

  void eval_cpu(const std::vector<mx::array>& inputs, std::vector<mx::array>& outputs) override {
    for (auto& out : outputs) out.set_data(mx::allocator::malloc(out.nbytes()));
    const Heads heads = heads_of(inputs, outputs[0].data<float>(), outputs[1].data<float>());
    mx::cpu::get_command_encoder(stream()).dispatch([heads, batch = inputs[0].shape(0)]() {
      constexpr int chunk = 4 * kQueryChunk;
      const int queries = heads.all.queries, chunks = (queries + chunk - 1) / chunk;
      Pool::get().run(batch * heads.heads * chunks, [&](int i) {
        // The last queries, which attend to most keys, first: at the end no thread waits long.
        const int first = (chunks - 1 - i / heads.heads % chunks) * chunk;
        TrainedAttentionArgs a = heads.of(i / heads.heads / chunks, i % heads.heads);
        a.workspace = scratch<float, AttentionForwardPrimitive>(attention_forward_workspace(a.dim));
        kernels().attention_forward(a, first, std::min(first + chunk, queries));
      });
    });
  }
};

class AttentionBackwardPrimitive : public TrainedAttentionPrimitive {
 public:
  using TrainedAttentionPrimitive::TrainedAttentionPrimitive;
  const char* name() const override { return "MusicgenAttentionBackward"; }

  void eval_cpu(const std::vector<mx::array>& inputs, std::vector<mx::array>& outputs) override {
    for (auto& out : outputs) out.set_data(mx::allocator::malloc(out.nbytes()));
    // The kernel only reads these.
    float* out = const_cast<float*>(inputs[3].data<float>());
    float* softmax = const_cast<float*>(inputs[4].data<float>());
    const Heads heads = heads_of(inputs, out, softmax);
    const float* d_out = inputs[5].data<float>();
    float *d_q = outputs[0].data<float>(), *d_k = outputs[1].data<float>(), *d_v = outputs[2].data<float>();
    mx::cpu::get_command_encoder(stream()).dispatch([=, batch = inputs[0].shape(0)]() {
      // Whole heads: the sums are always in the same order.
      Pool::get().run(batch * heads.heads, [&](int i) {
        const int b = i / heads.heads, h = i % heads.heads;
        TrainedAttentionArgs a = heads.of(b, h);
        const size_t of_queries = b * static_cast<size_t>(a.queries) * a.d_stride + static_cast<size_t>(h) * a.dim;
        const size_t of_keys = b * static_cast<size_t>(a.length) * a.d_stride + static_cast<size_t>(h) * a.dim;
        a.d_out = d_out + of_queries;
        a.d_q = d_q + of_queries;
        a.d_k = d_k + of_keys;
        a.d_v = d_v + of_keys;
        a.workspace = scratch<float, AttentionBackwardPrimitive>(attention_backward_workspace(a.dim, a.length));
        kernels().attention_backward(a);
      });
    });
  }
};

// Calls `work(first, count)` for chunks of `rows` rows of `size` elements, on all threads.
template <class Work>
void for_rows(size_t rows, size_t size, const Work& work) {
  const size_t chunk = std::max<size_t>(1, 16384 / std::max<size_t>(size, 1));
  Pool::get().run(static_cast<int>((rows + chunk - 1) / chunk),
                  [&](int i) { work(i * chunk, std::min(chunk, rows - i * chunk)); });
}

class GeluForwardPrimitive : public CpuPrimitive {
 public:
  using CpuPrimitive::CpuPrimitive;
  const char* name() const override { return "MusicgenGeluForward"; }
  bool is_equivalent(const mx::Primitive&) const override { return true; }

  void eval_cpu(const std::vector<mx::array>& inputs, std::vector<mx::array>& outputs) override {
    auto& out = outputs[0];
    donate_or_allocate(out, inputs[0]);
    const float* x = inputs[0].data<float>();
    float* y = out.data<float>();
    mx::cpu::get_command_encoder(stream()).dispatch([=, size = out.size()]() {
      for_rows(size, 1, [&](size_t i, size_t count) { kernels().gelu_forward(x + i, y + i, count); });
    });
  }
};

class GeluGradientPrimitive : public CpuPrimitive {
 public:
  using CpuPrimitive::CpuPrimitive;
  const char* name() const override { return "MusicgenGeluGradient"; }
  bool is_equivalent(const mx::Primitive&) const override { return true; }

  void eval_cpu(const std::vector<mx::array>& inputs, std::vector<mx::array>& outputs) override {
    auto& out = outputs[0];
    donate_or_allocate(out, inputs[1]);
    const float *x = inputs[0].data<float>(), *dy = inputs[1].data<float>();
    float* dx = out.data<float>();
    mx::cpu::get_command_encoder(stream()).dispatch([=, size = out.size()]() {
      for_rows(size, 1, [&](size_t i, size_t count) { kernels().gelu_gradient(x + i, dy + i, dx + i, count); });
    });
  }
};

class LayerNormPrimitive : public CpuPrimitive {
 public:
  LayerNormPrimitive(mx::Stream stream, float eps) : CpuPrimitive(stream), eps_(eps) {}
  const char* name() const override { return "MusicgenLayerNorm"; }
  bool is_equivalent(const mx::Primitive& other) const override {
    return static_cast<const LayerNormPrimitive&>(other).eps_ == eps_;
  }

  void eval_cpu(const std::vector<mx::array>& inputs, std::vector<mx::array>& outputs) override {
    auto& out = outputs[0];
    donate_or_allocate(out, inputs[0]);
    const float *x = inputs[0].data<float>(), *weight = inputs[1].data<float>(), *bias = inputs[2].data<float>();
    float* y = out.data<float>();
    const size_t dim = out.shape(-1), rows = out.size() / dim;
    mx::cpu::get_command_encoder(stream()).dispatch([=, eps = eps_]() {
      for_rows(rows, dim, [&](size_t first, size_t count) {
        for (size_t at = first * dim; at < (first + count) * dim; at += dim)
          kernels().layer_norm(x + at, weight, bias, y + at, static_cast<int>(dim), eps);
      });
    });
  }

 private:
  float eps_;
};

class LayerNormGradientPrimitive : public CpuPrimitive {
 public:
  LayerNormGradientPrimitive(mx::Stream stream, float eps) : CpuPrimitive(stream), eps_(eps) {}
  const char* name() const override { return "MusicgenLayerNormGradient"; }
  bool is_equivalent(const mx::Primitive& other) const override {
    return static_cast<const LayerNormGradientPrimitive&>(other).eps_ == eps_;
  }

  void eval_cpu(const std::vector<mx::array>& inputs, std::vector<mx::array>& outputs) override {
    auto& out = outputs[0];
    donate_or_allocate(out, inputs[2]);
    const float *x = inputs[0].data<float>(), *weight = inputs[1].data<float>(), *dy = inputs[2].data<float>();
    float* dx = out.data<float>();
    const size_t dim = out.shape(-1), rows = out.size() / dim;
    mx::cpu::get_command_encoder(stream()).dispatch([=, eps = eps_]() {
      for_rows(rows, dim, [&](size_t first, size_t count) {
        for (size_t at = first * dim; at < (first + count) * dim; at += dim)
          kernels().layer_norm_gradient(x + at, weight, dy + at, dx + at, static_cast<int>(dim), eps);
      });
    });
  }

 private:
  float eps_;
};

// A target outside of its row has no loss, and no gradient.
class CrossEntropyPrimitive : public CpuPrimitive {
 public:
  using CpuPrimitive::CpuPrimitive;
  const char* name() const override { return "MusicgenCrossEntropy"; }
  bool is_equivalent(const mx::Primitive&) const override { return true; }

  void eval_cpu(const std::vector<mx::array>& inputs, std::vector<mx::array>& outputs) override {
    for (auto& out : outputs) out.set_data(mx::allocator::malloc(out.nbytes()));
    const float* x = inputs[0].data<float>();
    const int32_t* targets = inputs[1].data<int32_t>();
    float *losses = outputs[0].data<float>(), *log_sums = outputs[1].data<float>();
    const size_t size = inputs[0].shape(-1), rows = outputs[0].size();
    mx::cpu::get_command_encoder(stream()).dispatch([=]() {
      for_rows(rows, size, [&](size_t first, size_t count) {
        for (size_t row = first; row < first + count; row++) {
          const float* logits = x + row * size;
          const bool there = targets[row] >= 0 && targets[row] < static_cast<int64_t>(size);
          log_sums[row] = kernels().log_sum_exp(logits, static_cast<int>(size));
          losses[row] = there ? log_sums[row] - logits[targets[row]] : 0;
        }
      });
    });
  }
};

class CrossEntropyGradientPrimitive : public CpuPrimitive {
 public:
  using CpuPrimitive::CpuPrimitive;
  const char* name() const override { return "MusicgenCrossEntropyGradient"; }
  bool is_equivalent(const mx::Primitive&) const override { return true; }

  void eval_cpu(const std::vector<mx::array>& inputs, std::vector<mx::array>& outputs) override {
    auto& out = outputs[0];
    donate_or_allocate(out, inputs[0]);
    const float *x = inputs[0].data<float>(), *log_sums = inputs[2].data<float>(), *dy = inputs[3].data<float>();
    const int32_t* targets = inputs[1].data<int32_t>();
    float* dx = out.data<float>();
    const size_t size = out.shape(-1), rows = inputs[1].size();
    mx::cpu::get_command_encoder(stream()).dispatch([=]() {
      for_rows(rows, size, [&](size_t first, size_t count) {
        for (size_t row = first; row < first + count; row++) {
          float* to = dx + row * size;
          if (targets[row] < 0 || targets[row] >= static_cast<int64_t>(size) || dy[row] == 0)
            std::fill_n(to, size, 0.0f);
          else
            kernels().cross_entropy_gradient(x + row * size, static_cast<int>(size), log_sums[row], targets[row],
                                             dy[row], to);
        }
      });
    });
  }
};

class DropoutPrimitive : public CpuPrimitive {
 public:
  DropoutPrimitive(mx::Stream stream, float p) : CpuPrimitive(stream), p_(p) {}
  const char* name() const override { return "MusicgenDropout"; }
  bool is_equivalent(const mx::Primitive& other) const override {
    return static_cast<const DropoutPrimitive&>(other).p_ == p_;
  }

  void eval_cpu(const std::vector<mx::array>& inputs, std::vector<mx::array>& outputs) override {
    auto& out = outputs[0];
    donate_or_allocate(out, inputs[0]);
    const float* x = inputs[0].data<float>();
    const uint32_t* key = inputs[1].data<uint32_t>();
    float* y = out.data<float>();
    const uint32_t threshold = static_cast<uint32_t>(p_ * 4294967296.0);
    mx::cpu::get_command_encoder(stream()).dispatch([=, factor = 1 / (1 - p_), size = out.size()]() {
      for_rows(size, 1, [&](size_t i, size_t count) {
        kernels().dropout(x + i, y + i, count, i, key, threshold, factor);
      });
    });
  }

 private:
  float p_;
};

inline void check_trained_attention(const mx::array& q, const mx::array& k, const mx::array& v) {
  for (const auto& part : {q, k, v})
    require(part.dtype() == mx::float32 && part.ndim() == 4 && part.size() > 0,
            "q, k and v must be float32 [B, heads, length, dim]");
  require(k.shape() == v.shape() && k.shape(0) == q.shape(0) && k.shape(1) == q.shape(1) && k.shape(3) == q.shape(3),
          "k and v don't fit q");
}

// Adds a mask that can be broadcast to [B, 1, S, T].
inline void add_mask(const OptionalArray& mask, const mx::array& q, const mx::array& k, mx::Stream stream,
                     std::vector<mx::array>& arrays) {
  if (!mask) return;
  require(mask->dtype() == mx::bool_, "the mask must be bool");
  arrays.push_back(mx::broadcast_to(*mask, {q.shape(0), 1, q.shape(2), k.shape(2)}, stream));
}

// q [B, heads, S, dim], k and v [B, heads, T, dim], mask bool, broadcast to [B, 1, S, T], and/or causal → the output
// [B, S, heads * dim], and what attention_backward needs of the softmax [B, heads, S, 2].
inline std::vector<mx::array> attention_forward(const mx::array& q, const mx::array& k, const mx::array& v,
                                                float scale, bool causal, const OptionalArray& mask) {
  check_trained_attention(q, k, v);
  require(!causal || k.shape(2) >= q.shape(2), "causal attention needs a key for each query");
  const auto stream = cpu_stream();
  std::vector<mx::array> arrays{q, k, v};
  add_mask(mask, q, k, stream, arrays);
  return mx::array::make_arrays(
      {{q.shape(0), q.shape(2), q.shape(1) * q.shape(3)}, {q.shape(0), q.shape(1), q.shape(2), 2}},
      {mx::float32, mx::float32},
      std::make_shared<AttentionForwardPrimitive>(stream, scale, causal, mask.has_value()), arrays);
}

// The gradients of q, k and v, in their shapes; `out`, `softmax` from attention_forward, `d_out` in the shape of `out`.
inline std::vector<mx::array> attention_backward(const mx::array& q, const mx::array& k, const mx::array& v,
                                                 const mx::array& out, const mx::array& softmax,
                                                 const mx::array& d_out, float scale, bool causal,
                                                 const OptionalArray& mask) {
  check_trained_attention(q, k, v);
  require(!causal || k.shape(2) >= q.shape(2), "causal attention needs a key for each query");
  const int batch = q.shape(0), heads = q.shape(1), dim = q.shape(3);
  const auto stream = cpu_stream();
  std::vector<mx::array> arrays{q, k, v};
  for (const auto& part : {out, d_out})
    require(part.dtype() == mx::float32 && part.shape() == mx::Shape({batch, q.shape(2), heads * dim}),
            "out and d_out must be float32 [B, S, heads * dim]");
  require(softmax.dtype() == mx::float32 && softmax.shape() == mx::Shape({batch, heads, q.shape(2), 2}),
          "softmax must be float32 [B, heads, S, 2]");
  for (const auto& part : {out, softmax, d_out}) arrays.push_back(row_contiguous(part, stream));
  add_mask(mask, q, k, stream, arrays);
  // Heads are the third axis in memory, as in the linear layers' outputs.
  auto gradients = mx::array::make_arrays(
      {{batch, q.shape(2), heads, dim}, {batch, k.shape(2), heads, dim}, {batch, k.shape(2), heads, dim}},
      {mx::float32, mx::float32, mx::float32},
      std::make_shared<AttentionBackwardPrimitive>(stream, scale, causal, mask.has_value()), arrays);
  for (auto& gradient : gradients) gradient = mx::transpose(gradient, {0, 2, 1, 3}, stream);
  return gradients;
}

inline mx::array gelu_forward(const mx::array& x) {
  require(x.dtype() == mx::float32, "x must be float32");
  const auto stream = cpu_stream();
  return mx::array(x.shape(), mx::float32, std::make_shared<GeluForwardPrimitive>(stream),
                   std::vector<mx::array>{row_contiguous(x, stream)});
}

inline mx::array gelu_gradient(const mx::array& x, const mx::array& dy) {
  require(x.dtype() == mx::float32 && dy.dtype() == mx::float32 && x.shape() == dy.shape(),
          "x and dy must be float32 and have the same shape");
  const auto stream = cpu_stream();
  return mx::array(x.shape(), mx::float32, std::make_shared<GeluGradientPrimitive>(stream),
                   std::vector<mx::array>{row_contiguous(x, stream), row_contiguous(dy, stream)});
}

inline void check_norm(const mx::array& x, const mx::array& parameter) {
  require(x.dtype() == mx::float32 && x.ndim() > 0 && x.shape(-1) > 0, "x must be float32 [..., dim]");
  require(parameter.dtype() == mx::float32 && parameter.shape() == mx::Shape({x.shape(-1)}),
          "the norm's weight or bias doesn't fit x");
}

inline mx::array layer_norm(const mx::array& x, const mx::array& weight, const mx::array& bias, float eps) {
  check_norm(x, weight);
  check_norm(x, bias);
  const auto stream = cpu_stream();
  return mx::array(
      x.shape(), mx::float32, std::make_shared<LayerNormPrimitive>(stream, eps),
      std::vector<mx::array>{row_contiguous(x, stream), row_contiguous(weight, stream), row_contiguous(bias, stream)});
}

// The gradient of x.
inline mx::array layer_norm_gradient(const mx::array& x, const mx::array& weight, const mx::array& dy, float eps) {
  check_norm(x, weight);
  require(dy.dtype() == mx::float32 && dy.shape() == x.shape(), "dy must be float32 and have the shape of x");
  const auto stream = cpu_stream();
  return mx::array(
      x.shape(), mx::float32, std::make_shared<LayerNormGradientPrimitive>(stream, eps),
      std::vector<mx::array>{row_contiguous(x, stream), row_contiguous(weight, stream), row_contiguous(dy, stream)});
}

inline void check_cross_entropy(const mx::array& logits, const mx::array& targets) {
  require(logits.dtype() == mx::float32 && logits.ndim() > 0 && logits.size() > 0, "logits must be float32 [..., size]");
  auto rows = logits.shape();
  rows.pop_back();
  require(targets.dtype() == mx::int32 && targets.shape() == rows, "targets must be int32 [...]");
}

// logits [..., size], targets int32 [...] → the losses [...], 0 where a target is outside of its row, and the logarithms
// of the sums of exponentials [...].
inline std::vector<mx::array> cross_entropy(const mx::array& logits, const mx::array& targets) {
  check_cross_entropy(logits, targets);
  const auto stream = cpu_stream();
  return mx::array::make_arrays({targets.shape(), targets.shape()}, {mx::float32, mx::float32},
                                std::make_shared<CrossEntropyPrimitive>(stream),
                                {row_contiguous(logits, stream), row_contiguous(targets, stream)});
}

// The gradient of the logits; `log_sum` is from cross_entropy.
inline mx::array cross_entropy_gradient(const mx::array& logits, const mx::array& targets, const mx::array& log_sum,
                                        const mx::array& d_losses) {
  check_cross_entropy(logits, targets);
  const auto stream = cpu_stream();
  std::vector<mx::array> arrays{row_contiguous(logits, stream), row_contiguous(targets, stream)};
  for (const auto& part : {log_sum, d_losses}) {
    require(part.dtype() == mx::float32 && part.shape() == targets.shape(), "log_sum and d_losses must fit targets");
    arrays.push_back(row_contiguous(part, stream));
  }
  return mx::array(logits.shape(), mx::float32, std::make_shared<CrossEntropyGradientPrimitive>(stream),
                   std::move(arrays));
}

// x / (1 - p), or 0 with the probability p. key: uint32 [2]; which elements are 0 depends on it and on their places.
inline mx::array dropout(const mx::array& x, const mx::array& key, float p) {
  require(x.dtype() == mx::float32, "x must be float32");
  require(key.dtype() == mx::uint32 && key.shape() == mx::Shape({2}), "the key must be uint32 [2]");
  require(p >= 0 && p < 1, "p must be at least 0 and below 1");
  const auto stream = cpu_stream();
  return mx::array(x.shape(), mx::float32, std::make_shared<DropoutPrimitive>(stream, p),
                   std::vector<mx::array>{row_contiguous(x, stream), row_contiguous(key, stream)});
}

}  // namespace musicgen
