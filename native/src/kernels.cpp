// The kernels. This file is compiled once per instruction set, with different flags and MUSICGEN_ISA.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "kernels.h"
#include "training_kernels.h"
#include "vectors.h"

namespace musicgen {
namespace MUSICGEN_ISA {
namespace {

void moments(const float* x, int size, float* mean, float* squared_deviations) {
  FloatVec s{};
  float tail = 0;
  int k = 0;
  for (; k + kLanes <= size; k += kLanes) s += load(x + k);
  for (; k < size; k++) tail += x[k];
  const float average = (tail + sum(s)) / size;
  FloatVec d2{};
  tail = 0;
  for (k = 0; k + kLanes <= size; k += kLanes) {
    const FloatVec d = load(x + k) - average;
    d2 += d * d;
  }
  for (; k < size; k++) tail += (x[k] - average) * (x[k] - average);
  *mean = average;
  *squared_deviations = tail + sum(d2);
}

void normalize(const float* x, const float* weight, const float* bias, float* y, int size, float mean, float inv_std) {
  MUSICGEN_IN_PLACE
  for (int k = 0; k < size; k++) y[k] = (x[k] - mean) * inv_std * weight[k] + bias[k];
}

void layer_norm(const float* x, const float* weight, const float* bias, float* y, int dim, float eps) {
  float mean, squared_deviations;
  moments(x, dim, &mean, &squared_deviations);
  normalize(x, weight, bias, y, dim, mean, 1.0f / std::sqrt(squared_deviations / dim + eps));
}

void sum_groups(const float* x, int inputs, float* x_sum) {
  for (int g = 0; g < inputs / kGroup; g++) {
    FloatVec s{};
    for (int i = 0; i < kGroup; i += kLanes) s += load(x + g * kGroup + i);
    x_sum[g] = sum(s);
  }
}

// The smallest and the largest value. Vectorized by hand: compilers don't do it, because of NaNs.
inline void min_max(const float* x, int size, float* smallest, float* largest) {
  FloatVec low = FloatVec{} + x[0], high = low;
  int i = 0;
  for (; i + kLanes <= size; i += kLanes) {
    const FloatVec v = load(x + i);
    low = v < low ? v : low;
    high = v > high ? v : high;
  }
  *smallest = x[0];
  *largest = x[0];
  for (int lane = 0; lane < kLanes; lane++) {
    *smallest = std::min(*smallest, low[lane]);
    *largest = std::max(*largest, high[lane]);
  }
  for (; i < size; i++) {
    *smallest = std::min(*smallest, x[i]);
    *largest = std::max(*largest, x[i]);
  }
}

inline float max_abs(const float* x, int size) {
  float low, high;
  min_max(x, size, &low, &high);
  return std::max(high, -low);
}

// Half away from zero.
inline int round_to_int(float x) { return static_cast<int>(x + (x >= 0 ? 0.5f : -0.5f)); }

// NaN - NaN and infinity - infinity are NaN.
inline bool all_finite(const float* x, int size) {
  int bad = 0;
  for (int i = 0; i < size; i++) bad |= !(x[i] - x[i] == 0.0f);
  return !bad;
}

// A row with NaN or infinity gets the scale NaN, so that it doesn't pass for a row of numbers.
void quantize_row_int8(const float* x, int size, int8_t* x8, float* scale) {
  if (!all_finite(x, size)) {
    std::fill_n(x8, size, static_cast<int8_t>(0));
    *scale = std::numeric_limits<float>::quiet_NaN();
    return;
  }
  const float largest = max_abs(x, size), factor = largest > 0 ? 127.0f / largest : 0.0f;
  for (int i = 0; i < size; i++) x8[i] = static_cast<int8_t>(round_to_int(x[i] * factor));
  *scale = largest / 127.0f;
}

void to_fp16(const float* x, int size, uint16_t* y) {
  int i = 0;
  for (; i + kLanes <= size; i += kLanes) store_fp16(y + i, load(x + i));
  for (; i < size; i++) {
    const _Float16 half = static_cast<_Float16>(x[i]);
    std::memcpy(y + i, &half, sizeof half);
  }
}

// Quantizes a group to integers split into `limb_count` limbs of base 256, each from -128 to 127, most significant
// first. All limbs of the largest value are 127, so that no other value overflows.
template <int limb_count>
inline void group_to_int8_limbs(const float* x, const uint8_t* order, size_t limb_stride, int8_t* limbs, float* scale,
                                float* x_sum) {
  constexpr int max_value = limb_count == 1 ? 127 : 127 * 0x10101;
  static_assert(limb_count == 1 || limb_count == 3);
  const float largest = max_abs(x, kGroup), factor = largest > 0 ? max_value / largest : 0.0f;
  int32_t values[kGroup], total = 0;
  for (int i = 0; i < kGroup; i++) {
    values[i] = std::min(std::max(round_to_int(x[order[i]] * factor), -max_value), max_value);
    total += values[i];
  }
  for (int l = limb_count - 1; l > 0; l--)
    for (int i = 0; i < kGroup; i++) {
      const int8_t limb = static_cast<int8_t>(values[i]);
      limbs[l * limb_stride + i] = limb;
      values[i] = (values[i] - limb) >> 8;
    }
  for (int i = 0; i < kGroup; i++) limbs[i] = static_cast<int8_t>(values[i]);
  *scale = largest / max_value;
  *x_sum = *scale * total;
}

void to_int8_limbs(const float* x, int inputs, int bits, int limb_count, int8_t* limbs, float* x_scale, float* x_sum) {
  // With 4 bits, the even inputs of each 8 come before the odd ones, as unpacking the nibbles gives them.
  uint8_t order[kGroup];
  for (int i = 0; i < kGroup; i++) order[i] = bits == 8 ? i : i / 8 * 8 + i % 4 * 2 + i / 4 % 2;
  for (int g = 0; g < inputs / kGroup; g++, x += kGroup, limbs += kGroup, x_scale++, x_sum++) {
    if (limb_count == 1)
      group_to_int8_limbs<1>(x, order, inputs, limbs, x_scale, x_sum);
    else
      group_to_int8_limbs<3>(x, order, inputs, limbs, x_scale, x_sum);
  }
}

// How far ahead weights are prefetched: hardware prefetchers stop at the end of a page.
constexpr int kPrefetchBytes = 4096;

// Dense weights. R rows of activations share one read of the weights; two outputs at a time.
template <class Value, int R>
void dense(const LinearArgs& a, int row, int first, int last) {
  const int K = a.inputs;
  const float* x = a.x + static_cast<size_t>(row) * K;
  for (int n = first; n < last; n += 2) {
    const bool pair = n + 1 < last;
    const Value* w0 = static_cast<const Value*>(a.w) + static_cast<size_t>(n) * K;
    const Value* w1 = pair ? w0 + K : w0;
    FloatVec s0[R] = {}, s1[R] = {};
    int k = 0;
    for (; k + kLanes <= K; k += kLanes) {
      __builtin_prefetch(w0 + kPrefetchBytes / sizeof(Value) + k);
      __builtin_prefetch(w1 + kPrefetchBytes / sizeof(Value) + k);
      const FloatVec a0 = load(w0 + k), a1 = load(w1 + k);
      for (int r = 0; r < R; r++) {
        const FloatVec b = load(x + static_cast<size_t>(r) * K + k);
        s0[r] += a0 * b;
        s1[r] += a1 * b;
      }
    }
    for (int r = 0; r < R; r++) {
      float y0 = sum(s0[r]), y1 = sum(s1[r]);
      for (int t = k; t < K; t++) {
        y0 += static_cast<float>(w0[t]) * x[static_cast<size_t>(r) * K + t];
        y1 += static_cast<float>(w1[t]) * x[static_cast<size_t>(r) * K + t];
      }
      float* y = a.y + static_cast<size_t>(row + r) * a.outputs + n;
      y[0] = y0;
      if (pair) y[1] = y1;
    }
  }
}

// Quantized weights are in tiles: words of kTile outputs are interleaved, so that each lane computes one output.
constexpr int kTileVectors = kTile / kLanes;

// Quantized weights and float32 activations. Each weight is converted once for R rows.
template <int bits, class Scale, int R>
void tiled(const LinearArgs& a, int row, int first, int last) {
  constexpr int per_word = 32 / bits, mask = (1 << bits) - 1;
  const int K = a.inputs, groups = K / kGroup;
  for (int n = first; n < last; n += kTile) {
    const uint32_t* w = static_cast<const uint32_t*>(a.w) + static_cast<size_t>(n) * (K / per_word);
    const Scale* scales = static_cast<const Scale*>(a.scales) + static_cast<size_t>(n) * groups;
    const Scale* biases = static_cast<const Scale*>(a.biases) + static_cast<size_t>(n) * groups;
    FloatVec s[kTileVectors][R] = {};
    for (int g = 0; g < groups; g++) {
      FloatVec t[kTileVectors][R][2] = {};  // for even and odd weights: two accumulators hide the latency
      for (int i = 0; i < kGroup; i += per_word, w += kTile) {
        const float* x = a.x + static_cast<size_t>(row) * K + g * kGroup + i;
        __builtin_prefetch(w + kPrefetchBytes / sizeof *w);
        for (int v = 0; v < kTileVectors; v++) {
          IntVec words;
          std::memcpy(&words, w + v * kLanes, sizeof words);
          for (int b = 0; b < per_word; b++) {
            const FloatVec weights = __builtin_convertvector((words >> (b * bits)) & mask, FloatVec);
            for (int r = 0; r < R; r++) t[v][r][b % 2] += weights * x[static_cast<size_t>(r) * K + b];
          }
        }
      }
      for (int v = 0; v < kTileVectors; v++) {
        const FloatVec scale = load(scales + g * kTile + v * kLanes), bias = load(biases + g * kTile + v * kLanes);
        for (int r = 0; r < R; r++)
          s[v][r] += (t[v][r][0] + t[v][r][1]) * scale + bias * a.x_sum[static_cast<size_t>(row + r) * groups + g];
      }
    }
    for (int r = 0; r < R; r++)
      for (int v = 0; v < kTileVectors; v++)
        store(a.y + static_cast<size_t>(row + r) * a.outputs + n + v * kLanes, s[v][r]);
  }
}

#ifdef __AVX512VNNI__
// Quantized weights and activations in int8 limbs: integer products of 64 weights at a time, without conversion.
template <int bits, class Scale, int limb_count, int R>
void tiled_int8_limbs(const LinearArgs& a, int row, int first, int last) {
  const int K = a.inputs, groups = K / kGroup;
  constexpr int words = kGroup * bits / 32;
  const __m512i mask = _mm512_set1_epi8(15);
  for (int n = first; n < last; n += kTile) {
    const uint8_t* w = static_cast<const uint8_t*>(a.w) + static_cast<size_t>(n) * (K * bits / 8);
    const Scale* scales = static_cast<const Scale*>(a.scales) + static_cast<size_t>(n) * groups;
    const Scale* biases = static_cast<const Scale*>(a.biases) + static_cast<size_t>(n) * groups;
    FloatVec s[R] = {};
    for (int g = 0; g < groups; g++) {
      __m512i dots[R][limb_count];
      for (int r = 0; r < R; r++)
        for (int l = 0; l < limb_count; l++) dots[r][l] = _mm512_setzero_si512();
      const int8_t* x = a.int8_limbs + static_cast<size_t>(row) * limb_count * K + g * kGroup;
      // Four inputs of each of 16 outputs.
      const auto add = [&](__m512i weights, int i) {
        for (int r = 0; r < R; r++)
          for (int l = 0; l < limb_count; l++) {
            int32_t four;
            std::memcpy(&four, x + static_cast<size_t>(r * limb_count + l) * K + 4 * i, sizeof four);
            dots[r][l] = _mm512_dpbusd_epi32(dots[r][l], weights, _mm512_set1_epi32(four));
          }
      };
      for (int i = 0; i < words; i++, w += kTile * 4) {
        __builtin_prefetch(w + kPrefetchBytes);
        const __m512i weights = _mm512_loadu_si512(w);
        if constexpr (bits == 8) {
          add(weights, i);
        } else {
          add(_mm512_and_si512(weights, mask), 2 * i);
          add(_mm512_and_si512(_mm512_srli_epi16(weights, 4), mask), 2 * i + 1);
        }
      }
      const FloatVec scale = load(scales + g * kTile), bias = load(biases + g * kTile);
      for (int r = 0; r < R; r++) {
        const size_t at = static_cast<size_t>(row + r) * groups + g;
        FloatVec dot;
        if constexpr (limb_count == 1) {
          dot = (FloatVec)_mm512_cvtepi32_ps(dots[r][0]);
        } else {
          const __m512i high = _mm512_add_epi32(_mm512_slli_epi32(dots[r][0], 8), dots[r][1]);
          dot = (FloatVec)_mm512_cvtepi32_ps(high) * 256.0f + (FloatVec)_mm512_cvtepi32_ps(dots[r][2]);
        }
        s[r] += dot * (scale * a.x_scale[at]) + bias * a.x_sum[at];
      }
    }
    for (int r = 0; r < R; r++) store(a.y + static_cast<size_t>(row + r) * a.outputs + n, s[r]);
  }
}
#endif

template <int bits, class Scale, int R>
void quantized(const LinearArgs& a, int row, int first, int last) {
#ifdef __AVX512VNNI__
  if (a.limb_count == 1) return tiled_int8_limbs<bits, Scale, 1, R>(a, row, first, last);
  if (a.limb_count == 3) return tiled_int8_limbs<bits, Scale, 3, R>(a, row, first, last);
#endif
  tiled<bits, Scale, R>(a, row, first, last);
}

template <int bits, int R>
void quantized(const LinearArgs& a, int row, int first, int last) {
  if (a.scale_type == ElementType::float16)
    quantized<bits, _Float16, R>(a, row, first, last);
  else
    quantized<bits, float, R>(a, row, first, last);
}

template <int R>
void linear_rows(const LinearArgs& a, int row, int first, int last) {
  switch (a.weight_type) {
    case WeightType::float32: return dense<float, R>(a, row, first, last);
    case WeightType::float16: return dense<_Float16, R>(a, row, first, last);
    case WeightType::quantized8: return quantized<8, R>(a, row, first, last);
    case WeightType::quantized4: return quantized<4, R>(a, row, first, last);
  }
}

void linear(const LinearArgs& a, int first, int last) {
  // One tile of outputs at a time, so that its weights stay in the CPU cache for all rows.
  for (int n = first; n < last; n += kTile) {
    const int end = std::min(n + kTile, last);
    int row = 0;
    for (; row + 4 <= a.rows; row += 4) linear_rows<4>(a, row, n, end);
    switch (a.rows - row) {
      case 3: linear_rows<3>(a, row, n, end); break;
      case 2: linear_rows<2>(a, row, n, end); break;
      case 1: linear_rows<1>(a, row, n, end); break;
    }
  }
  for (int row = 0; row < a.rows; row++) {
    const size_t at = static_cast<size_t>(row) * a.outputs;
    float* y = a.y + at;
    if (a.bias)
      for (int n = first; n < last; n++) y[n] += a.bias[n];
    if (a.gelu)
      for (int n = first; n < last; n++) y[n] = gelu(y[n]);
    if (a.residual)
      for (int n = first; n < last; n++) y[n] += a.residual[at + n];
  }
}

constexpr int kPrefetchPositions = 16;  // how far ahead keys and values are prefetched

template <class Value>
void attention_typed(const AttentionArgs& a) {
  const Value* k = static_cast<const Value*>(a.k);
  const Value* v = static_cast<const Value*>(a.v);
  const int vectors = a.dim / kLanes * kLanes;
  float largest = -INFINITY;
  for (int t = 0; t < a.length; t++) {
    const Value* key = k + t * a.stride;
    for (int d = 0; d < a.dim; d += 64 / sizeof(Value)) __builtin_prefetch(key + kPrefetchPositions * a.stride + d);
    FloatVec s0{}, s1{};
    int at = 0;
    for (; at + 2 * kLanes <= vectors; at += 2 * kLanes) {
      s0 += load(a.q + at) * load(key + at);
      s1 += load(a.q + at + kLanes) * load(key + at + kLanes);
    }
    if (at < vectors) s0 += load(a.q + at) * load(key + at);
    float dot = sum(s0 + s1);
    for (int d = vectors; d < a.dim; d++) dot += a.q[d] * static_cast<float>(key[d]);
    if (a.k_scales) dot *= a.k_scales[t];
    a.scores[t] = a.mask && !a.mask[t] ? -INFINITY : dot * a.scale;
    largest = std::max(largest, a.scores[t]);
  }
  if (largest == -INFINITY) largest = 0;  // everything is masked out: all weights are 0
  for (int t = 0; t < a.length; t++) a.scores[t] = exp_below_zero(a.scores[t] - largest);
  if (a.mask)
    for (int t = 0; t < a.length; t++)
      if (!a.mask[t]) a.scores[t] = 0;
  float total = 0;
  for (int t = 0; t < a.length; t++) total += a.scores[t];
  const float factor = total > 0 ? 1.0f / total : 0.0f;
  if (a.v_scales)
    for (int t = 0; t < a.length; t++) a.scores[t] *= a.v_scales[t];

  constexpr int block = 4;  // output vectors that stay in registers
  for (int d0 = 0; d0 < vectors; d0 += block * kLanes) {
    const int count = std::min(block, (vectors - d0) / kLanes);
    FloatVec s[block] = {};
    if (count == block) {
      for (int t = 0; t < a.length; t++) {
        const Value* value = v + t * a.stride + d0;
        for (int j = 0; j < block * kLanes; j += 64 / sizeof(Value))
          __builtin_prefetch(value + kPrefetchPositions * a.stride + j);
        for (int j = 0; j < block; j++) s[j] += a.scores[t] * load(value + j * kLanes);
      }
    } else {
      for (int t = 0; t < a.length; t++)
        for (int j = 0; j < count; j++) s[j] += a.scores[t] * load(v + t * a.stride + d0 + j * kLanes);
    }
    for (int j = 0; j < count; j++) store(a.out + d0 + j * kLanes, s[j] * factor);
  }
  for (int d = vectors; d < a.dim; d++) {
    float s = 0;
    for (int t = 0; t < a.length; t++) s += a.scores[t] * static_cast<float>(v[t * a.stride + d]);
    a.out[d] = s * factor;
  }
}

void attention(const AttentionArgs& a) {
  switch (a.kv_type) {
    case ElementType::float32: return attention_typed<float>(a);
    case ElementType::float16: return attention_typed<_Float16>(a);
    case ElementType::int8: return attention_typed<int8_t>(a);
  }
}

// Online softmax over blocks of keys, as in FlashAttention: where a block has a larger maximum, the accumulated sums
// are corrected.
void attention_full(const BatchAttentionArgs& a) {
  QueryTile* queries = reinterpret_cast<QueryTile*>(a.workspace);  // [dim]
  QueryTile* acc = queries + a.dim;                                // [dim]
  QueryTile* scores = acc + a.dim;                                 // [kKeyBlock]
  // Packed, because rows at a stride of a power of two would evict each other from the CPU cache.
  float* packed = reinterpret_cast<float*>(scores + kKeyBlock);  // [kKeyBlock, dim]
  const auto pack = [&](const float* rows, int count) {
    for (int i = 0; i < count; i++) std::copy_n(rows + i * a.stride, a.dim, packed + i * a.dim);
    return packed;
  };
  constexpr QueryTile zero = {};
  for (int first = 0; first < a.queries; first += kQueryBlock) {
    const int count = std::min(kQueryBlock, a.queries - first);
    for (int d = 0; d < a.dim; d++)
      for (int i = 0; i < kQueryBlock; i++) {
        queries[d][i] = i < count ? a.scale * a.q[(first + i) * a.q_stride + d] : 0;
        acc[d][i] = 0;
      }
    QueryTile largest, total = {}, correction;
    std::fill_n(largest, kQueryBlock, -INFINITY);
    for (int t = 0; t < a.length; t += kKeyBlock) {
      const int keys = std::min(kKeyBlock, a.length - t);
      std::memset(scores, 0, keys * sizeof(QueryTile));
      multiply_accumulate(queries, a.dim, pack(a.k + t * a.stride, keys), 1, a.dim, zero, scores, keys);
      add_to_softmax(keys, scores, largest, total, correction);
      multiply_accumulate(scores, keys, pack(a.v + t * a.stride, keys), a.dim, 1, correction, acc, a.dim);
    }
    for (int i = 0; i < count; i++)
      for (int d = 0; d < a.dim; d++) a.out[(first + i) * a.out_stride + d] = acc[d][i] / total[i];
  }
}

void elu(const float* x, float* y, size_t rows, int size) {
  MUSICGEN_IN_PLACE
  for (size_t i = 0; i < rows * size; i++) {
    const float negative = exp_below_zero(std::min(x[i], 0.0f)) - 1.0f;
    y[i] = x[i] > 0 ? x[i] : negative;
  }
}

void gelu(const float* x, float* y, size_t rows, int size) {
  MUSICGEN_IN_PLACE
  for (size_t i = 0; i < rows * size; i++) y[i] = gelu(x[i]);
}

void glu(const float* x, float* y, size_t rows, int size) {
  for (size_t row = 0; row < rows; row++, x += 2 * size, y += size)
    for (int i = 0; i < size; i++) y[i] = x[i] * sigmoid(x[size + i]);
}

void lstm(const LstmArgs& a, int first, int last) {
  const int dim = a.dim;
  float gates[4][64];
  for (int start = first; start < last; start += 64) {
    const int count = std::min(64, last - start);
    for (int gate = 0; gate < 4; gate++)
      for (int i = 0; i < count; i++) {
        const int n = gate * dim + start + i;
        const float* w = a.w + static_cast<size_t>(n) * dim;
        FloatVec s0{}, s1{};
        int k = 0;
        for (; k + 2 * kLanes <= dim; k += 2 * kLanes) {
          __builtin_prefetch(w + kPrefetchBytes / sizeof(float) + k);
          __builtin_prefetch(w + kPrefetchBytes / sizeof(float) + k + kLanes);
          s0 += load(w + k) * load(a.h + k);
          s1 += load(w + k + kLanes) * load(a.h + k + kLanes);
        }
        float dot = sum(s0 + s1);
        for (; k < dim; k++) dot += w[k] * a.h[k];
        gates[gate][i] = dot + a.projected[n];
      }
    for (int i = 0; i < count; i++) {
      const float c = sigmoid(gates[1][i]) * a.c[start + i] + sigmoid(gates[0][i]) * tanh_(gates[2][i]);
      a.c[start + i] = c;
      a.next_h[start + i] = sigmoid(gates[3][i]) * tanh_(c);
    }
  }
}

}  // namespace

#define MUSICGEN_STRING2(x) #x
#define MUSICGEN_STRING(x) MUSICGEN_STRING2(x)
extern const Kernels table;
#ifdef __AVX512VNNI__
constexpr bool kUseInt8Limbs = true;
#else
constexpr bool kUseInt8Limbs = false;
#endif
const Kernels table{MUSICGEN_STRING(MUSICGEN_ISA),
                    kUseInt8Limbs,
                    moments,
                    normalize,
                    layer_norm,
                    sum_groups,
                    to_int8_limbs,
                    quantize_row_int8,
                    to_fp16,
                    linear,
                    attention,
                    attention_full,
                    elu,
                    gelu,
                    glu,
                    lstm,
                    attention_forward,
                    attention_backward,
                    gelu_forward,
                    gelu_gradient,
                    layer_norm_gradient,
                    log_sum_exp,
                    cross_entropy_gradient,
                    dropout};

}  // namespace MUSICGEN_ISA
}  // namespace musicgen
