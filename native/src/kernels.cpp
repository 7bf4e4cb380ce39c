// The kernels, once for each instruction set: this file is compiled several times, with other flags and another
// MUSICGEN_ISA. Vectors are the compiler's own (GCC's and clang's vector_size), as wide as the flags allow.
// Intrinsics stand only where compilers don't find the instruction: widening, sums over lanes, 8-bit dot products.
#include "kernels.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#ifdef __AVX2__
#include <immintrin.h>
#endif

namespace musicgen {
namespace MUSICGEN_ISA {
namespace {

#if defined(__AVX512F__)
constexpr int kBytes = 64;
#elif defined(__AVX2__)
constexpr int kBytes = 32;
#else
constexpr int kBytes = 16;
#endif
constexpr int kLanes = kBytes / sizeof(float);

typedef float Floats __attribute__((vector_size(kBytes)));
typedef int32_t Ints __attribute__((vector_size(kBytes)));
typedef uint8_t Bytes __attribute__((vector_size(kLanes)));
typedef int8_t SignedBytes __attribute__((vector_size(kLanes)));
typedef _Float16 Halves __attribute__((vector_size(kLanes * 2)));

inline Floats load(const float* p) {
  Floats v;
  std::memcpy(&v, p, sizeof v);
  return v;
}
inline void store(float* p, Floats v) { std::memcpy(p, &v, sizeof v); }
#if defined(__AVX512F__)
inline Floats load(const _Float16* p) {
  return (Floats)_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}
inline Floats load(const int8_t* p) {
  return (Floats)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
}
inline Floats widen(Bytes b) { return (Floats)_mm512_cvtepi32_ps(_mm512_cvtepu8_epi32((__m128i)b)); }
inline float sum(Floats v) { return _mm512_reduce_add_ps((__m512)v); }
#elif defined(__AVX2__)
inline Floats load(const _Float16* p) {
  return (Floats)_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
inline Floats load(const int8_t* p) {
  return (Floats)_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))));
}
inline Floats widen(Bytes b) {
  return (Floats)_mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_cvtsi64_si128((long long)b)));
}
inline float sum(Floats v) {
  __m128 half = _mm_add_ps(_mm256_castps256_ps128((__m256)v), _mm256_extractf128_ps((__m256)v, 1));
  half = _mm_add_ps(half, _mm_movehl_ps(half, half));
  return _mm_cvtss_f32(_mm_add_ss(half, _mm_movehdup_ps(half)));
}
#else
inline Floats load(const _Float16* p) {
  Halves h;
  std::memcpy(&h, p, sizeof h);
  return __builtin_convertvector(h, Floats);
}
inline Floats load(const int8_t* p) {
  SignedBytes b;
  std::memcpy(&b, p, sizeof b);
  return __builtin_convertvector(__builtin_convertvector(b, Ints), Floats);
}
inline Floats widen(Bytes b) { return __builtin_convertvector(__builtin_convertvector(b, Ints), Floats); }
inline float sum(Floats v) { return (v[0] + v[2]) + (v[1] + v[3]); }
#endif
inline Bytes load_bytes(const uint8_t* p) {
  Bytes b;
  std::memcpy(&b, p, sizeof b);
  return b;
}

inline float exp_below_zero(float x) {
  // Cephes' expf for x <= 0: within 2 units in the last place; below -87 it is 0 for all purposes.
  x = std::max(x, -87.0f);
  const float n = std::floor(x * 1.44269504f + 0.5f);
  const float r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  const int32_t bits = (static_cast<int32_t>(n) + 127) << 23;
  float power;
  std::memcpy(&power, &bits, sizeof power);
  return p * power;
}

inline float gelu(float x) {
  // erf as in Abramowitz & Stegun 7.1.26: within 1.5e-7.
  const float z = std::fabs(x) * 0.70710678118654752f;
  const float t = 1.0f / (1.0f + 0.3275911f * z);
  const float p =
      ((((1.061405429f * t - 1.453152027f) * t + 1.421413741f) * t - 0.284496736f) * t + 0.254829592f) * t;
  return 0.5f * x * (1.0f + std::copysign(1.0f - p * exp_below_zero(-z * z), x));
}

inline float sigmoid(float x) {
  const float e = exp_below_zero(-std::fabs(x));
  return (x >= 0 ? 1.0f : e) / (1.0f + e);
}
inline float tanh_(float x) {
  const float e = exp_below_zero(-2.0f * std::fabs(x));
  // Near zero 1 - e loses digits; the odd series doesn't.
  const float small = x * (1.0f - x * x * (1.0f / 3.0f - x * x * (2.0f / 15.0f)));
  return std::fabs(x) < 0.05f ? small : std::copysign((1.0f - e) / (1.0f + e), x);
}

void layer_norm(const float* x, const float* weight, const float* bias, float* y, int dim, float eps) {
  float mean = 0, variance = 0;
  {
    Floats s{};
    int k = 0;
    for (; k + kLanes <= dim; k += kLanes) s += load(x + k);
    for (; k < dim; k++) mean += x[k];
    mean = (mean + sum(s)) / dim;
  }
  {
    Floats s{};
    int k = 0;
    for (; k + kLanes <= dim; k += kLanes) {
      const Floats d = load(x + k) - mean;
      s += d * d;
    }
    for (; k < dim; k++) variance += (x[k] - mean) * (x[k] - mean);
    variance = (variance + sum(s)) / dim;
  }
  const float factor = 1.0f / std::sqrt(variance + eps);
  for (int k = 0; k < dim; k++) y[k] = (x[k] - mean) * factor * weight[k] + bias[k];
}

void sum_groups(const float* x, int inputs, float* x_sum) {
  for (int g = 0; g < inputs / kGroup; g++) {
    Floats s{};
    for (int i = 0; i < kGroup; i += kLanes) s += load(x + g * kGroup + i);
    x_sum[g] = sum(s);
  }
}

void split_even_odd(const float* x, int inputs, float* y) {
  for (int start = 0; start < inputs; start += kGroup)
    for (int i = 0; i < kGroup / 2; i++) {
      y[start + i] = x[start + 2 * i];
      y[start + kGroup / 2 + i] = x[start + 2 * i + 1];
    }
}

// Values in 8 bits; returns the sum of what they are.
int round_all(const float* x, int size, int8_t* x8, float* scale) {
  float largest = 0;
  for (int i = 0; i < size; i++) largest = std::max(largest, std::fabs(x[i]));
  const float factor = largest > 0 ? 127.0f / largest : 0.0f;
  int total = 0;
  for (int i = 0; i < size; i++) {
    const int q = static_cast<int>(x[i] * factor + (x[i] >= 0 ? 0.5f : -0.5f));
    x8[i] = static_cast<int8_t>(q);
    total += q;
  }
  *scale = largest / 127.0f;
  return total;
}

void round_row(const float* x, int size, int8_t* x8, float* scale) { round_all(x, size, x8, scale); }

void quantize(const float* x, int inputs, int8_t* x8, float* x_scale, float* x_sum) {
  for (int g = 0; g < inputs / kGroup; g++) {
    const int total = round_all(x + g * kGroup, kGroup, x8 + g * kGroup, x_scale + g);
    x_sum[g] = x_scale[g] * total;
  }
}

// Rows of activations that share one reading of the weights: R of them, and two outputs at a time.
template <int R>
void dense(const Linear& a, int row, int first, int last) {
  const int K = a.inputs;
  const float* x = a.x + static_cast<size_t>(row) * K;
  for (int n = first; n < last; n += 2) {
    const bool pair = n + 1 < last;
    const float* w0 = static_cast<const float*>(a.w) + static_cast<size_t>(n) * K;
    const float* w1 = pair ? w0 + K : w0;
    Floats s0[R] = {}, s1[R] = {};
    int k = 0;
    for (; k + kLanes <= K; k += kLanes) {
      const Floats a0 = load(w0 + k), a1 = load(w1 + k);
      for (int r = 0; r < R; r++) {
        const Floats b = load(x + static_cast<size_t>(r) * K + k);
        s0[r] += a0 * b;
        s1[r] += a1 * b;
      }
    }
    for (int r = 0; r < R; r++) {
      float y0 = sum(s0[r]), y1 = sum(s1[r]);
      for (int t = k; t < K; t++) {
        y0 += w0[t] * x[static_cast<size_t>(r) * K + t];
        y1 += w1[t] * x[static_cast<size_t>(r) * K + t];
      }
      float* y = a.y + static_cast<size_t>(row + r) * a.outputs + n;
      y[0] = y0;
      if (pair) y[1] = y1;
    }
  }
}

template <class Scale>
inline void to_float(const void* from, size_t offset, int count, float* to) {
  const Scale* p = static_cast<const Scale*>(from) + offset;
  int i = 0;
  for (; i + kLanes <= count; i += kLanes) store(to + i, load(p + i));
  for (; i < count; i++) to[i] = static_cast<float>(p[i]);
}

constexpr int kMaxGroups = 64;  // groups whose scales are widened at a time

// The dot products of one group of weights with R rows, added lane by lane to s, times its scale.
template <Weights kind, int R>
inline void add_group(const uint8_t* w, const float* x, int K, float scale, Floats* s) {
  Floats t[R] = {};
  if constexpr (kind == Weights::bits8) {
    for (int i = 0; i < kGroup; i += kLanes) {
      const Floats v = widen(load_bytes(w + i));
      for (int r = 0; r < R; r++) t[r] += v * load(x + static_cast<size_t>(r) * K + i);
    }
  } else {
    for (int i = 0; i < kGroup / 2; i += kLanes) {
      const Bytes pair = load_bytes(w + i);
      const Floats even = widen(pair & 15), odd = widen(pair >> 4);
      for (int r = 0; r < R; r++) {
        const float* row = x + static_cast<size_t>(r) * K + i;
        t[r] += even * load(row);
        t[r] += odd * load(row + kGroup / 2);
      }
    }
  }
  for (int r = 0; r < R; r++) s[r] += t[r] * scale;
}

// The same with activations in 8 bits; `scale` has a factor for each row.
template <Weights kind, int R>
inline void add_group8(const uint8_t* w, const int8_t* x, int K, const float* const* scale, int g, Floats* s) {
#ifdef __AVX512VNNI__
  __m512i v;
  if constexpr (kind == Weights::bits8) {
    v = _mm512_loadu_si512(w);
  } else {
    const __m256i pair = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(w));
    const __m256i mask = _mm256_set1_epi8(15);
    const __m256i even = _mm256_and_si256(pair, mask);
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi16(pair, 4), mask);
    v = _mm512_inserti64x4(_mm512_castsi256_si512(even), odd, 1);
  }
  for (int r = 0; r < R; r++) {
    const __m512i row = _mm512_loadu_si512(x + static_cast<size_t>(r) * K);
    const __m512i dot = _mm512_dpbusd_epi32(_mm512_setzero_si512(), v, row);
    s[r] += (Floats)_mm512_cvtepi32_ps(dot) * scale[r][g];
  }
#else
  uint8_t wide[kGroup];
  if constexpr (kind == Weights::bits8) {
    std::memcpy(wide, w, kGroup);
  } else {
    for (int i = 0; i < kGroup / 2; i++) {
      wide[i] = w[i] & 15;
      wide[kGroup / 2 + i] = w[i] >> 4;
    }
  }
  for (int r = 0; r < R; r++) {
    const int8_t* row = x + static_cast<size_t>(r) * K;
    int32_t dot = 0;
    for (int i = 0; i < kGroup; i++) dot += static_cast<int32_t>(wide[i]) * row[i];
    s[r][0] += static_cast<float>(dot) * scale[r][g];
  }
#endif
}

template <Weights kind, int R>
void quantized(const Linear& a, int row, int first, int last) {
  const int K = a.inputs, groups = K / kGroup;
  const int group_bytes = kind == Weights::bits8 ? kGroup : kGroup / 2;
  const float* x = a.x + static_cast<size_t>(row) * K;
  const int8_t* x8 = a.x8 ? a.x8 + static_cast<size_t>(row) * K : nullptr;
  for (int n = first; n < last; n++) {
    const uint8_t* w = static_cast<const uint8_t*>(a.w) + static_cast<size_t>(n) * groups * group_bytes;
    Floats s[R] = {}, t[R] = {};  // of even and odd groups: one alone would wait for itself
    float offsets[R] = {};
    for (int g0 = 0; g0 < groups; g0 += kMaxGroups) {
      const int count = std::min(kMaxGroups, groups - g0);
      float scales[kMaxGroups], biases[kMaxGroups], products[R][kMaxGroups];
      const float* factors[R];
      const size_t offset = static_cast<size_t>(n) * groups + g0;
      if (a.scale_format == Format::float16) {
        to_float<_Float16>(a.scales, offset, count, scales);
        to_float<_Float16>(a.biases, offset, count, biases);
      } else {
        to_float<float>(a.scales, offset, count, scales);
        to_float<float>(a.biases, offset, count, biases);
      }
      for (int r = 0; r < R; r++) {
        const size_t at = static_cast<size_t>(row + r) * groups + g0;
        float total = 0;
        for (int g = 0; g < count; g++) total += biases[g] * a.x_sum[at + g];
        offsets[r] += total;
        if (x8)
          for (int g = 0; g < count; g++) products[r][g] = scales[g] * a.x_scale[at + g];
        factors[r] = products[r];
      }
      const auto add = [&](int g, Floats* to) {
        const uint8_t* group = w + static_cast<size_t>(g0 + g) * group_bytes;
        const size_t k = static_cast<size_t>(g0 + g) * kGroup;
        __builtin_prefetch(group + 1024);
        if (x8)
          add_group8<kind, R>(group, x8 + k, K, factors, g, to);
        else
          add_group<kind, R>(group, x + k, K, scales[g], to);
      };
      int g = 0;
      for (; g + 2 <= count; g += 2) {
        add(g, s);
        add(g + 1, t);
      }
      if (g < count) add(g, s);
    }
    for (int r = 0; r < R; r++) a.y[static_cast<size_t>(row + r) * a.outputs + n] = sum(s[r] + t[r]) + offsets[r];
  }
}

template <int R>
void rows(const Linear& a, int row, int first, int last) {
  switch (a.kind) {
    case Weights::dense: return dense<R>(a, row, first, last);
    case Weights::bits8: return quantized<Weights::bits8, R>(a, row, first, last);
    case Weights::bits4: return quantized<Weights::bits4, R>(a, row, first, last);
  }
}

void linear(const Linear& a, int first, int last) {
  // So few outputs at a time that their weights stay in the cache for all rows.
  constexpr int tile = 16;
  for (int n = first; n < last; n += tile) {
    const int end = std::min(n + tile, last);
    int row = 0;
    for (; row + 4 <= a.rows; row += 4) rows<4>(a, row, n, end);
    switch (a.rows - row) {
      case 3: rows<3>(a, row, n, end); break;
      case 2: rows<2>(a, row, n, end); break;
      case 1: rows<1>(a, row, n, end); break;
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

template <class Value>
void attend_as(const Head& a) {
  const Value* k = static_cast<const Value*>(a.k);
  const Value* v = static_cast<const Value*>(a.v);
  const int vectors = a.dim / kLanes * kLanes;
  float largest = -INFINITY;
  for (int t = 0; t < a.length; t++) {
    const Value* key = k + t * a.stride;
    Floats s0{}, s1{};
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
  if (largest == -INFINITY) largest = 0;  // nothing to look at: weights of 0
  for (int t = 0; t < a.length; t++) a.scores[t] = exp_below_zero(a.scores[t] - largest);
  if (a.mask)
    for (int t = 0; t < a.length; t++)
      if (!a.mask[t]) a.scores[t] = 0;
  float total = 0;
  for (int t = 0; t < a.length; t++) total += a.scores[t];
  const float factor = total > 0 ? 1.0f / total : 0.0f;
  if (a.v_scales)
    for (int t = 0; t < a.length; t++) a.scores[t] *= a.v_scales[t];

  constexpr int block = 4;  // vectors of the result that stay in registers
  for (int d0 = 0; d0 < vectors; d0 += block * kLanes) {
    const int count = std::min(block, (vectors - d0) / kLanes);
    Floats s[block] = {};
    if (count == block) {
      for (int t = 0; t < a.length; t++)
        for (int j = 0; j < block; j++) s[j] += a.scores[t] * load(v + t * a.stride + d0 + j * kLanes);
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

void attend(const Head& a) {
  switch (a.format) {
    case Format::float32: return attend_as<float>(a);
    case Format::float16: return attend_as<_Float16>(a);
    case Format::int8: return attend_as<int8_t>(a);
  }
}

void elu(const float* x, float* y, size_t size) {
  for (size_t i = 0; i < size; i++) {
    const float below = exp_below_zero(std::min(x[i], 0.0f)) - 1.0f;
    y[i] = x[i] > 0 ? x[i] : below;
  }
}

void lstm(const LstmStep& a, int first, int last) {
  const int dim = a.dim;
  float gates[4][64];
  for (int start = first; start < last; start += 64) {
    const int count = std::min(64, last - start);
    for (int gate = 0; gate < 4; gate++)
      for (int i = 0; i < count; i++) {
        const int n = gate * dim + start + i;
        const float* w = a.w + static_cast<size_t>(n) * dim;
        Floats s0{}, s1{};
        int k = 0;
        for (; k + 2 * kLanes <= dim; k += 2 * kLanes) {
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
const Kernels table{MUSICGEN_STRING(MUSICGEN_ISA), layer_norm, sum_groups, split_even_odd, quantize,
                    round_row, linear, attend, elu, lstm};

}  // namespace MUSICGEN_ISA
}  // namespace musicgen
