// Attention of one query, or of many, over keys and values as they lie in a cache.
#pragma once
#include "operation.h"

namespace musicgen {

constexpr const char* kOrder = "keys, values or queries lie in an order that isn't supported";

// Elements of a head lie side by side, and keys and values alike: so does every view of a cache.
inline void check_order(const mx::array& q, const mx::array& k, const mx::array& v) {
  require((k.shape(3) == 1 || (q.strides(3) == 1 && k.strides(3) == 1 && v.strides(3) == 1)) &&
              (k.shape(2) == 1 || k.strides(2) == v.strides(2)),
          kOrder);
}

// One query of each row and head.
struct Attention {
  Head head;  // what they have in common
  int batch, heads;
  const float* q;
  const char *k, *v;
  const float *k_scales, *v_scales;  // of int8; or null
  const uint8_t* mask;               // [batch, length]; or null
  float* out;                        // [batch, heads * dim]
  // Elements from row to row and from head to head.
  int64_t q_row, q_head, k_row, k_head, v_row, v_head, scales_row, scales_head;
};

// All rows and heads, on all threads.
inline void compute(const Attention& a) {
  const int length = a.head.length, pieces = a.batch * a.heads;
  const int each = length > 64 ? 1 : 8;  // too little work to share out singly
  const int item = a.head.format == Format::float32 ? 4 : a.head.format == Format::float16 ? 2 : 1;
  Pool::get().run((pieces + each - 1) / each, [&](int piece) {
    float* scores = scratch<float, Attention>(length);
    for (int i = piece * each; i < std::min(pieces, (piece + 1) * each); i++) {
      const int row = i / a.heads, h = i % a.heads;
      Head head = a.head;
      head.q = a.q + row * a.q_row + h * a.q_head;
      head.k = a.k + (row * a.k_row + h * a.k_head) * item;
      head.v = a.v + (row * a.v_row + h * a.v_head) * item;
      if (a.k_scales) {
        head.k_scales = a.k_scales + row * a.scales_row + h * a.scales_head;
        head.v_scales = a.v_scales + row * a.scales_row + h * a.scales_head;
      }
      head.mask = a.mask ? a.mask + static_cast<size_t>(row) * length : nullptr;
      head.out = a.out + static_cast<size_t>(i) * head.dim;
      head.scores = scores;
      kernels().attend(head);
    }
  });
}

// Over keys and values `[B, heads, T, dim]`, or views of such.
inline void look_at(const mx::array& k, const mx::array& v, Attention& a) {
  a.batch = k.shape(0);
  a.heads = k.shape(1);
  a.head.length = k.shape(2);
  a.head.dim = k.shape(3);
  a.head.format = k.dtype() == mx::int8 ? Format::int8 : format_of(k);
  a.head.stride = k.strides(2);
  a.k = k.data<char>();
  a.v = v.data<char>();
  a.k_row = k.strides(0);
  a.k_head = k.strides(1);
  a.v_row = v.strides(0);
  a.v_head = v.strides(1);
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
    check_order(q, k, v);
    Attention a{};
    look_at(k, v, a);
    a.head.scale = scale_;
    a.q = q.data<float>();
    a.q_row = q.strides(0);
    a.q_head = q.strides(1);
    if (eight_bit_) {
      const mx::array &ks = inputs[3], &vs = inputs[4];
      require(ks.strides(0) == vs.strides(0) && ks.strides(1) == vs.strides(1) &&
                  (k.shape(2) == 1 || (ks.strides(2) == 1 && vs.strides(2) == 1)),
              kOrder);
      a.k_scales = ks.data<float>();
      a.v_scales = vs.data<float>();
      a.scales_row = ks.strides(0);
      a.scales_head = ks.strides(1);
    }
    a.mask = mask_ ? inputs.back().data<uint8_t>() : nullptr;
    a.out = out.data<float>();
    mx::cpu::get_command_encoder(stream()).dispatch([a] { compute(a); });
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
        a.memory = scratch<float, Heads>(memory_of_heads(a.dim));
        kernels().attend_many(a);
      });
    });
  }

 private:
  float scale_;
};

inline mx::array attention(const mx::array& q, const mx::array& k, const mx::array& v, float scale, const Maybe& mask,
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
inline mx::array attention_full(const mx::array& q, const mx::array& k, const mx::array& v, float scale) {
  for (const auto& part : {q, k, v})
    require(part.dtype() == mx::float32 && part.ndim() == 4, "q, k and v must be float32 [B, heads, length, dim]");
  require(k.shape() == v.shape() && k.shape(0) == q.shape(0) && k.shape(1) == q.shape(1) &&
              k.shape(3) == q.shape(3) && k.size() > 0,
          "k and v don't fit q");
  return mx::array({q.shape(0), q.shape(2), q.shape(1) * q.shape(3)}, mx::float32,
                   std::make_shared<AttendManyPrimitive>(cpu(), scale), std::vector<mx::array>{q, k, v});
}

}  // namespace musicgen
