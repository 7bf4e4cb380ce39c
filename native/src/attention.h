// Attention of one query or of many, over keys and values that are views of a cache.
#pragma once
#include "operation.h"

namespace musicgen {

constexpr const char* kUnsupportedLayout = "queries, keys or values have an unsupported memory layout";

// The last axis must be contiguous, and keys and values must have the same stride, as in any view of a cache.
inline void check_layout(const mx::array& q, const mx::array& k, const mx::array& v) {
  require((k.shape(3) == 1 || (q.strides(3) == 1 && k.strides(3) == 1 && v.strides(3) == 1)) &&
              (k.shape(2) == 1 || k.strides(2) == v.strides(2)),
          kUnsupportedLayout);
}

// Positions from `start` to before `end`.
struct Span {
  int start, end;
  bool operator==(const Span& other) const { return start == other.start && end == other.end; }
};

// One query for each row of the batch and head.
struct DecodeAttention {
  AttentionArgs args;  // shared by all rows and heads
  int batch, heads;
  const float* q;
  const char *k, *v;
  const float *k_scales, *v_scales;  // of int8 keys and values; or null
  const uint8_t* mask;               // [batch, length]; or null
  const Span* spans;                 // [batch]: what each row attends to; or null: all
  float* out;                        // [batch, heads * dim]
  // Strides between rows and between heads, in elements.
  int64_t q_row, q_head, k_row, k_head, v_row, v_head, scales_row, scales_head;
};

// Of [0, length) without what is masked at either end. So a row that is padded to the length of longer ones is computed
// just as it is alone.
inline Span unmasked(const uint8_t* mask, int length) {
  Span span{0, length};
  if (!mask) return span;
  while (span.end > 1 && !mask[span.end - 1]) span.end--;
  while (span.start < span.end - 1 && !mask[span.start]) span.start++;
  return span;
}

// Computes all rows and heads, on all threads.
inline void compute_attention(const DecodeAttention& a) {
  const int length = a.args.length, queries = a.batch * a.heads;
  const int per_task = length > 64 ? 1 : 8;  // with few keys, one query is too little work for a task
  const int item_size = a.args.kv_type == ElementType::float32 ? 4 : a.args.kv_type == ElementType::float16 ? 2 : 1;
  Pool::get().run((queries + per_task - 1) / per_task, [&](int task) {
    float* scores = scratch<float, DecodeAttention>(length);
    for (int i = task * per_task; i < std::min(queries, (task + 1) * per_task); i++) {
      const int row = i / a.heads, h = i % a.heads;
      AttentionArgs args = a.args;
      args.mask = a.mask ? a.mask + static_cast<size_t>(row) * length : nullptr;
      const Span span = a.spans ? a.spans[row] : unmasked(args.mask, length);
      const int64_t first = span.start;
      args.length = span.end - span.start;
      args.q = a.q + row * a.q_row + h * a.q_head;
      args.k = a.k + (row * a.k_row + h * a.k_head + first * static_cast<int64_t>(args.stride)) * item_size;
      args.v = a.v + (row * a.v_row + h * a.v_head + first * static_cast<int64_t>(args.stride)) * item_size;
      if (a.k_scales) {
        args.k_scales = a.k_scales + row * a.scales_row + h * a.scales_head + first;
        args.v_scales = a.v_scales + row * a.scales_row + h * a.scales_head + first;
      }
      if (args.mask) args.mask += first;
      args.out = a.out + static_cast<size_t>(i) * args.dim;
      args.scores = scores;
      kernels().attention(args);
    }
  });
}

// Sets the keys and values [B, heads, T, dim], which may be views.
inline void set_kv(const mx::array& k, const mx::array& v, DecodeAttention& a) {
  a.batch = k.shape(0);
  a.heads = k.shape(1);
  a.args.length = k.shape(2);
  a.args.dim = k.shape(3);
  a.args.kv_type = k.dtype() == mx::int8 ? ElementType::int8 : element_type_of(k);
  a.args.stride = k.strides(2);
  a.k = k.data<char>();
  a.v = v.data<char>();
  a.k_row = k.strides(0);
  a.k_head = k.strides(1);
  a.v_row = v.strides(0);
  a.v_head = v.strides(1);
}

class AttentionPrimitive : public CpuPrimitive {
 public:
  AttentionPrimitive(mx::Stream stream, float scale, bool int8_kv, bool mask)
      : CpuPrimitive(stream), scale_(scale), int8_kv_(int8_kv), has_mask_(mask) {}
  const char* name() const override { return "MusicgenAttention"; }
  bool is_equivalent(const mx::Primitive& other) const override {
    const auto& o = static_cast<const AttentionPrimitive&>(other);
    return o.scale_ == scale_ && o.int8_kv_ == int8_kv_ && o.has_mask_ == has_mask_;
  }

  void eval_cpu(const std::vector<mx::array>& inputs, std::vector<mx::array>& outputs) override {
    auto& out = outputs[0];
    out.set_data(mx::allocator::malloc(out.nbytes()));
    const mx::array &q = inputs[0], &k = inputs[1], &v = inputs[2];
    check_layout(q, k, v);
    DecodeAttention a{};
    set_kv(k, v, a);
    a.args.scale = scale_;
    a.q = q.data<float>();
    a.q_row = q.strides(0);
    a.q_head = q.strides(1);
    if (int8_kv_) {
      const mx::array &ks = inputs[3], &vs = inputs[4];
      require(ks.strides(0) == vs.strides(0) && ks.strides(1) == vs.strides(1) &&
                  (k.shape(2) == 1 || (ks.strides(2) == 1 && vs.strides(2) == 1)),
              kUnsupportedLayout);
      a.k_scales = ks.data<float>();
      a.v_scales = vs.data<float>();
      a.scales_row = ks.strides(0);
      a.scales_head = ks.strides(1);
    }
    a.mask = has_mask_ ? inputs.back().data<uint8_t>() : nullptr;
    a.out = out.data<float>();
    mx::cpu::get_command_encoder(stream()).dispatch([a] { compute_attention(a); });
  }

 private:
  float scale_;
  bool int8_kv_, has_mask_;
};

class AttentionFullPrimitive : public CpuPrimitive {
 public:
  AttentionFullPrimitive(mx::Stream stream, float scale) : CpuPrimitive(stream), scale_(scale) {}
  const char* name() const override { return "MusicgenAttentionFull"; }
  bool is_equivalent(const mx::Primitive& other) const override {
    return static_cast<const AttentionFullPrimitive&>(other).scale_ == scale_;
  }

  void eval_cpu(const std::vector<mx::array>& inputs, std::vector<mx::array>& outputs) override {
    auto& out = outputs[0];
    out.set_data(mx::allocator::malloc(out.nbytes()));
    const mx::array &q = inputs[0], &k = inputs[1], &v = inputs[2];
    const int heads = q.shape(1);
    BatchAttentionArgs all{};
    all.queries = q.shape(2);
    all.length = k.shape(2);
    all.dim = q.shape(3);
    all.scale = scale_;
    check_layout(q, k, v);
    all.q_stride = q.strides(2);
    all.stride = k.strides(2);
    all.out_stride = static_cast<size_t>(heads) * all.dim;
    all.q = q.data<float>();
    all.k = k.data<float>();
    all.v = v.data<float>();
    all.out = out.data<float>();
    const int chunks = (all.queries + kQueryChunk - 1) / kQueryChunk, tasks = q.shape(0) * heads * chunks;
    const auto qs = q.strides(), ks = k.strides(), vs = v.strides();
    mx::cpu::get_command_encoder(stream()).dispatch([=]() {
      Pool::get().run(tasks, [&](int i) {
        const int first = i % chunks * kQueryChunk, h = i / chunks % heads, b = i / chunks / heads;
        BatchAttentionArgs a = all;
        a.q += b * qs[0] + h * qs[1] + first * a.q_stride;
        a.k += b * ks[0] + h * ks[1];
        a.v += b * vs[0] + h * vs[1];
        a.out += (static_cast<size_t>(b) * a.queries + first) * a.out_stride + static_cast<size_t>(h) * a.dim;
        a.queries = std::min(kQueryChunk, a.queries - first);
        a.workspace = scratch<float, BatchAttentionArgs>(attention_full_workspace(a.dim));
        kernels().attention_full(a);
      });
    });
  }

 private:
  float scale_;
};

// q [B, heads, 1, dim], k and v [B, heads, T, dim], mask bool [B, T], scales [B, heads, T] of int8 keys and values
// → [B, 1, heads * dim].
inline mx::array attention(const mx::array& q, const mx::array& k, const mx::array& v, float scale,
                           const OptionalArray& mask, const OptionalArray& k_scales, const OptionalArray& v_scales) {
  require(q.dtype() == mx::float32 && q.ndim() == 4 && q.shape(2) == 1, "q must be float32 [B, heads, 1, dim]");
  require(k.ndim() == 4 && k.shape() == v.shape() && k.dtype() == v.dtype(),
          "k and v must have the same shape and dtype");
  require(k.shape(0) == q.shape(0) && k.shape(1) == q.shape(1) && k.shape(3) == q.shape(3), "k doesn't fit q");
  require(k_scales.has_value() == v_scales.has_value(), "k_scales and v_scales must be given together");
  const bool int8_kv = k_scales.has_value();
  if (int8_kv)
    require(k.dtype() == mx::int8, "keys with scales must be int8");
  else
    element_type_of(k);
  const auto stream = cpu_stream();
  const int batch = k.shape(0), length = k.shape(2);
  // k and v may be views of the cache: they are read in place, without a copy.
  std::vector<mx::array> arrays{q, k, v};
  if (int8_kv)
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
                   std::make_shared<AttentionPrimitive>(stream, scale, int8_kv, mask.has_value()), std::move(arrays));
}

// Any number of queries without a mask: q [B, heads, S, dim], k and v [B, heads, T, dim] → [B, S, heads * dim].
inline mx::array attention_full(const mx::array& q, const mx::array& k, const mx::array& v, float scale) {
  for (const auto& part : {q, k, v})
    require(part.dtype() == mx::float32 && part.ndim() == 4, "q, k and v must be float32 [B, heads, length, dim]");
  require(k.shape() == v.shape() && k.shape(0) == q.shape(0) && k.shape(1) == q.shape(1) &&
              k.shape(3) == q.shape(3) && k.size() > 0,
          "k and v don't fit q");
  return mx::array({q.shape(0), q.shape(2), q.shape(1) * q.shape(3)}, mx::float32,
                   std::make_shared<AttentionFullPrimitive>(cpu_stream(), scale), std::vector<mx::array>{q, k, v});
}

}  // namespace musicgen
