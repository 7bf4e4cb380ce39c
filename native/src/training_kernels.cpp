// Kernels of training: operations with gradients. Compiled once per instruction set, as kernels.cpp is.
#include "training_kernels.h"

#include <cfloat>

#include "vectors.h"

namespace musicgen {
namespace MUSICGEN_ISA {
namespace {

// The first cache line at or behind `p`: vectors that cross lines take twice the time.
float* aligned(float* p) {
  return reinterpret_cast<float*>((reinterpret_cast<uintptr_t>(p) + 63) & ~static_cast<uintptr_t>(63));
}

// out[j] = sum_i a[i] * b[i * stride_i + j * stride_j], added to what is there if `add`; for J rows.
template <int J, bool add>
inline void multiply_rows(const QueryTile* a, int count, const float* b, size_t stride_i, size_t stride_j,
                          QueryTile* out) {
  FloatVec s0[J], s1[J];
  for (int j = 0; j < J; j++) {
    s0[j] = add ? load(out[j]) : FloatVec{};
    s1[j] = add ? load(out[j] + kLanes) : FloatVec{};
  }
  for (int i = 0; i < count; i++) {
    const FloatVec a0 = load(a[i]), a1 = load(a[i] + kLanes);
    for (int j = 0; j < J; j++) {
      const float factor = b[i * stride_i + j * stride_j];
      s0[j] += a0 * factor;
      s1[j] += a1 * factor;
    }
  }
  for (int j = 0; j < J; j++) {
    store(out[j], s0[j]);
    store(out[j] + kLanes, s1[j]);
  }
}

template <bool add>
void multiply(const QueryTile* a, int count, const float* b, size_t stride_i, size_t stride_j, QueryTile* out,
              int rows) {
#if defined(__AVX512F__)
  constexpr int block = 12;  // 24 of 32 registers are sums
#else
  constexpr int block = 6;  // 12 of 16
#endif
  int j = 0;
  for (; j + block <= rows; j += block)
    multiply_rows<block, add>(a, count, b + j * stride_j, stride_i, stride_j, out + j);
  for (; j + 4 <= rows; j += 4) multiply_rows<4, add>(a, count, b + j * stride_j, stride_i, stride_j, out + j);
  for (; j < rows; j++) multiply_rows<1, add>(a, count, b + j * stride_j, stride_i, stride_j, out + j);
}

// The normal distribution's cumulative probability of x, and its density. erfc(z) = exp(-z^2) * t * polynomial(t) with
// t = 1 / (1 + 0.4 z), fitted to within 2.3e-7 of its value in float32. `gelu`, which has 1.5e-7 of 1, is too coarse
// for AdamW, which scales small gradients up.
inline float cumulative_normal(float x, float* density) {
  const float e = exp_below_zero(-0.5f * x * x);
  const float t = 1.0f / (1.0f + 0.4f * 0.70710678118654752f * std::fabs(x));
  float p = 0.0398381539f;
  p = p * t - 0.133349374f;
  p = p * t + 0.0693790019f;
  p = p * t + 0.104936726f;
  p = p * t + 0.0678322837f;
  p = p * t + 0.198566869f;
  p = p * t + 0.200537294f;
  p = p * t + 0.226636484f;
  p = p * t + 0.225622624f;
  const float below = 0.5f * e * p * t;
  *density = 0.39894228040143268f * e;
  return x < 0 ? below : 1.0f - below;
}

// A block of queries, one per lane, and which keys they attend to.
struct Queries {
  const TrainedAttentionArgs& a;
  int first, count;

  Queries(const TrainedAttentionArgs& args, int first_query, int last)
      : a(args), first(first_query), count(std::min(kQueryBlock, last - first_query)) {}
  // No query attends to this key or to one behind it.
  int last_key() const { return a.causal ? std::min(a.length, a.length - a.queries + first + count) : a.length; }
  // [dim] of rows [queries, dim] at a stride, times a factor; zeros behind the last query.
  void transpose(const float* rows, size_t stride, float factor, QueryTile* out) const {
    for (int d = 0; d < a.dim; d++)
      for (int i = 0; i < kQueryBlock; i++) out[d][i] = i < count ? factor * rows[(first + i) * stride + d] : 0;
  }
  // Puts `value` where a query doesn't attend to one of the keys [key, key + keys).
  void mask(int key, int keys, float value, QueryTile* scores) const {
    const int shift = a.length - a.queries + first - key;  // query i attends to key j <= i + shift
    if (a.causal && keys - 1 > shift)
      for (int j = std::max(shift + 1, 0); j < keys; j++)
        for (int i = 0; i < std::min(j - shift, kQueryBlock); i++) scores[j][i] = value;
    if (a.mask)
      for (int j = 0; j < keys; j++)
        for (int i = 0; i < count; i++)
          if (!a.mask[(first + i) * a.mask_query_stride + (key + j) * a.mask_key_stride]) scores[j][i] = value;
  }
};

void pack(const float* rows, size_t stride, int count, int dim, float* out) {
  for (int i = 0; i < count; i++) std::copy_n(rows + i * stride, dim, out + static_cast<size_t>(i) * dim);
}

}  // namespace

// Online softmax over blocks of keys, as in FlashAttention.
void attention_forward(const TrainedAttentionArgs& a, int first, int last) {
  QueryTile* queries = reinterpret_cast<QueryTile*>(aligned(a.workspace));  // [dim]
  QueryTile* acc = queries + a.dim;                                         // [dim]
  QueryTile* scores = acc + a.dim;                                          // [kKeyBlock]
  float* packed = reinterpret_cast<float*>(scores + kKeyBlock);             // [kKeyBlock, dim]
  for (; first < last; first += kQueryBlock) {
    const Queries block(a, first, last);
    block.transpose(a.q, a.q_stride, a.scale, queries);
    std::memset(acc, 0, a.dim * sizeof(QueryTile));
    QueryTile largest, total = {}, correction;
    // A query that attends to nothing has the mean of all values, as in MLX.
    std::fill_n(largest, kQueryBlock, -FLT_MAX);
    for (int t = 0, end = block.last_key(); t < end; t += kKeyBlock) {
      const int keys = std::min(kKeyBlock, end - t);
      pack(a.k + t * a.k_stride, a.k_stride, keys, a.dim, packed);
      multiply<false>(queries, a.dim, packed, 1, a.dim, scores, keys);
      block.mask(t, keys, -FLT_MAX, scores);
      add_to_softmax(keys, scores, largest, total, correction);
      for (int d = 0; d < a.dim; d++)
        for (int i = 0; i < kQueryBlock; i++) acc[d][i] *= correction[i];
      pack(a.v + t * a.v_stride, a.v_stride, keys, a.dim, packed);
      multiply<true>(scores, keys, packed, a.dim, 1, acc, a.dim);
    }
    for (int i = 0; i < block.count; i++) {
      for (int d = 0; d < a.dim; d++) a.out[(first + i) * a.out_stride + d] = acc[d][i] / total[i];
      a.softmax[2 * (first + i)] = largest[i];
      a.softmax[2 * (first + i) + 1] = total[i];
    }
  }
}

// All gradients of a head, a block of queries and a block of keys at a time. With the probabilities P, computed once
// more, and D = sum_d out * d_out of each query: dS = P * (d_out V^T - D), d_q = scale * dS K, d_k = scale * dS^T Q,
// d_v = P^T d_out.
void attention_backward(const TrainedAttentionArgs& a) {
  const int chunks = (a.dim + kQueryBlock - 1) / kQueryBlock;
  // Queries and d_out twice: a query per lane, and a channel per lane [chunks, kQueryBlock queries].
  QueryTile* queries = reinterpret_cast<QueryTile*>(aligned(a.workspace));  // [dim]
  QueryTile* d_outs = queries + a.dim;                                      // [dim]
  QueryTile* d_queries = d_outs + a.dim;                                    // [dim]
  QueryTile* scores = d_queries + a.dim;                                    // [kKeyBlock]
  QueryTile* d_scores = scores + kKeyBlock;                                 // [kKeyBlock]
  QueryTile* query_rows = d_scores + kKeyBlock;                             // [chunks, kQueryBlock]
  QueryTile* d_out_rows = query_rows + chunks * kQueryBlock;                // [chunks, kQueryBlock]
  QueryTile* d_keys = d_out_rows + chunks * kQueryBlock;                    // [chunks, length]
  QueryTile* d_values = d_keys + static_cast<size_t>(chunks) * a.length;    // [chunks, length]
  float* keys = reinterpret_cast<float*>(d_values + static_cast<size_t>(chunks) * a.length);  // [length, dim]
  float* values = keys + static_cast<size_t>(a.length) * a.dim;                               // [length, dim]
  pack(a.k, a.k_stride, a.length, a.dim, keys);
  pack(a.v, a.v_stride, a.length, a.dim, values);
  std::memset(d_keys, 0, 2 * static_cast<size_t>(chunks) * a.length * sizeof(QueryTile));
  for (int first = 0; first < a.queries; first += kQueryBlock) {
    const Queries block(a, first, a.queries);
    block.transpose(a.q, a.q_stride, a.scale, queries);
    block.transpose(a.d_out, a.out_stride, 1, d_outs);
    for (int c = 0; c < chunks; c++)
      for (int i = 0; i < block.count; i++)
        for (int lane = 0; lane < kQueryBlock; lane++) {
          const int d = c * kQueryBlock + lane;
          const bool there = d < a.dim;
          query_rows[c * kQueryBlock + i][lane] = there ? a.scale * a.q[(first + i) * a.q_stride + d] : 0;
          d_out_rows[c * kQueryBlock + i][lane] = there ? a.d_out[(first + i) * a.out_stride + d] : 0;
        }
    QueryTile largest = {}, inv_total = {}, delta = {};
    for (int i = 0; i < block.count; i++) {
      const float *out = a.out + (first + i) * a.out_stride, *d_out = a.d_out + (first + i) * a.out_stride;
      float dot = 0;
      for (int d = 0; d < a.dim; d++) dot += out[d] * d_out[d];
      delta[i] = dot;
      largest[i] = a.softmax[2 * (first + i)];
      inv_total[i] = 1 / a.softmax[2 * (first + i) + 1];
    }
    std::memset(d_queries, 0, a.dim * sizeof(QueryTile));
    for (int t = 0, end = block.last_key(); t < end; t += kKeyBlock) {
      const int count = std::min(kKeyBlock, end - t);
      const float *k = keys + static_cast<size_t>(t) * a.dim, *v = values + static_cast<size_t>(t) * a.dim;
      multiply<false>(queries, a.dim, k, 1, a.dim, scores, count);
      multiply<false>(d_outs, a.dim, v, 1, a.dim, d_scores, count);
      for (int key = 0; key < count; key++)
        for (int i = 0; i < kQueryBlock; i++)
          scores[key][i] = exp_below_zero(scores[key][i] - largest[i]) * inv_total[i];
      block.mask(t, count, 0, scores);
      for (int key = 0; key < count; key++)
        for (int i = 0; i < kQueryBlock; i++) d_scores[key][i] = scores[key][i] * (d_scores[key][i] - delta[i]);
      multiply<true>(d_scores, count, k, a.dim, 1, d_queries, a.dim);
      for (int c = 0; c < chunks; c++) {
        const size_t at = static_cast<size_t>(c) * a.length + t;
        multiply<true>(d_out_rows + c * kQueryBlock, block.count, scores[0], 1, kQueryBlock, d_values + at, count);
        multiply<true>(query_rows + c * kQueryBlock, block.count, d_scores[0], 1, kQueryBlock, d_keys + at, count);
      }
    }
    for (int i = 0; i < block.count; i++)
      for (int d = 0; d < a.dim; d++) a.d_q[(first + i) * a.d_stride + d] = a.scale * d_queries[d][i];
  }
  for (int t = 0; t < a.length; t++)
    for (int d = 0; d < a.dim; d++) {
      const size_t at = static_cast<size_t>(d / kQueryBlock) * a.length + t;
      a.d_k[t * a.d_stride + d] = d_keys[at][d % kQueryBlock];
      a.d_v[t * a.d_stride + d] = d_values[at][d % kQueryBlock];
    }
}

void gelu_forward(const float* x, float* y, size_t size) {
  MUSICGEN_IN_PLACE
  for (size_t i = 0; i < size; i++) {
    float density;
    y[i] = x[i] * cumulative_normal(x[i], &density);
  }
}

void gelu_gradient(const float* x, const float* dy, float* dx, size_t size) {
  MUSICGEN_IN_PLACE
  for (size_t i = 0; i < size; i++) {
    float density;
    const float cumulative = cumulative_normal(x[i], &density);
    dx[i] = dy[i] * (cumulative + x[i] * density);
  }
}

void layer_norm_gradient(const float* x, const float* weight, const float* dy, float* dx, int dim, float eps) {
  float total = 0;
  for (int i = 0; i < dim; i++) total += x[i];
  const float mean = total / dim;
  float squares = 0, sum_g = 0, sum_gd = 0;  // of deviations; of g = dy * weight; of g times the deviation
  for (int i = 0; i < dim; i++) {
    const float deviation = x[i] - mean, g = dy[i] * weight[i];
    squares += deviation * deviation;
    sum_g += g;
    sum_gd += g * deviation;
  }
  const float inv_variance = 1.0f / (squares / dim + eps), inv_std = std::sqrt(inv_variance);
  const float mean_g = sum_g / dim, slope = sum_gd / dim * inv_variance;
  MUSICGEN_IN_PLACE
  for (int i = 0; i < dim; i++) dx[i] = inv_std * (dy[i] * weight[i] - mean_g - (x[i] - mean) * slope);
}

float log_sum_exp(const float* x, int size) {
  float largest = x[0];
  {
    FloatVec high = FloatVec{} + x[0];
    int i = 0;
    for (; i + kLanes <= size; i += kLanes) {
      const FloatVec v = load(x + i);
      high = v > high ? v : high;
    }
    for (int lane = 0; lane < kLanes; lane++) largest = std::max(largest, high[lane]);
    for (; i < size; i++) largest = std::max(largest, x[i]);
  }
  float total = 0;
  for (int i = 0; i < size; i++) total += exp_below_zero(x[i] - largest);
  return largest + std::log(total);
}

void cross_entropy_gradient(const float* x, int size, float lse, int target, float factor, float* dx) {
  for (int i = 0; i < size; i++) dx[i] = factor * exp_below_zero(x[i] - lse);
  dx[target] -= factor;
}

// The random number of an element is a hash of its place and the key, so that the gradient needs no mask.
void dropout(const float* x, float* y, size_t size, size_t first, const uint32_t* key, uint32_t threshold,
             float factor) {
  const uint32_t key0 = key[0], key1 = key[1] + static_cast<uint32_t>(static_cast<uint64_t>(first) >> 32);
  const uint32_t start = static_cast<uint32_t>(first);
  MUSICGEN_IN_PLACE
  for (uint32_t i = 0; i < static_cast<uint32_t>(size); i++) {
    // Two rounds of a mixer with low bias (github.com/skeeto/hash-prospector: 16 21f0aaad 15 d35a2d97 15).
    uint32_t h = (start + i) ^ key0;
    h = (h ^ (h >> 16)) * 0x21f0aaadu;
    h = (h ^ (h >> 15)) * 0xd35a2d97u;
    h = (h ^ (h >> 15)) + key1;
    h = (h ^ (h >> 16)) * 0x21f0aaadu;
    h = (h ^ (h >> 15)) * 0xd35a2d97u;
    h ^= h >> 15;
    y[i] = h >= threshold ? factor * x[i] : 0.0f;
  }
}

}  // namespace MUSICGEN_ISA
}  // namespace musicgen
