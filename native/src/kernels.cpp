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
inline void store_halves(uint16_t* p, Floats v) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtps_ph((__m512)v, _MM_FROUND_TO_NEAREST_INT));
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
inline void store_halves(uint16_t* p, Floats v) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph((__m256)v, _MM_FROUND_TO_NEAREST_INT));
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
inline void store_halves(uint16_t* p, Floats v) {
  const Halves h = __builtin_convertvector(v, Halves);
  std::memcpy(p, &h, sizeof h);
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

void moments(const float* x, int size, float* mean, float* squares) {
  Floats s{};
  float rest = 0;
  int k = 0;
  for (; k + kLanes <= size; k += kLanes) s += load(x + k);
  for (; k < size; k++) rest += x[k];
  const float middle = (rest + sum(s)) / size;
  Floats d2{};
  rest = 0;
  for (k = 0; k + kLanes <= size; k += kLanes) {
    const Floats d = load(x + k) - middle;
    d2 += d * d;
  }
  for (; k < size; k++) rest += (x[k] - middle) * (x[k] - middle);
  *mean = middle;
  *squares = rest + sum(d2);
}

// What is read may be what is written, value for value: said to compilers, which would go one by one then.
#if defined(__clang__)
#define MUSICGEN_IN_PLACE _Pragma("clang loop vectorize(assume_safety)")
#else
#define MUSICGEN_IN_PLACE _Pragma("GCC ivdep")
#endif

void scale(const float* x, const float* weight, const float* bias, float* y, int size, float mean, float factor) {
  MUSICGEN_IN_PLACE
  for (int k = 0; k < size; k++) y[k] = (x[k] - mean) * factor * weight[k] + bias[k];
}

void layer_norm(const float* x, const float* weight, const float* bias, float* y, int dim, float eps) {
  float mean, squares;
  moments(x, dim, &mean, &squares);
  scale(x, weight, bias, y, dim, mean, 1.0f / std::sqrt(squares / dim + eps));
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

void split_pairs(const int8_t* x, int inputs, int8_t* y) {
  for (int start = 0; start < inputs; start += 2 * kGroup) {
    const int half = std::min(2 * kGroup, inputs - start) / 2;
    for (int i = 0; i < half; i++) {
      y[start + i] = x[start + 2 * i];
      y[start + half + i] = x[start + 2 * i + 1];
    }
  }
}

// The least and the largest value, by hand: compilers mind NaNs too much to find them lane by lane.
inline void extremes(const float* x, int size, float* least, float* largest) {
  Floats low = Floats{} + x[0], high = low;
  int i = 0;
  for (; i + kLanes <= size; i += kLanes) {
    const Floats v = load(x + i);
    low = v < low ? v : low;
    high = v > high ? v : high;
  }
  *least = x[0];
  *largest = x[0];
  for (int lane = 0; lane < kLanes; lane++) {
    *least = std::min(*least, low[lane]);
    *largest = std::max(*largest, high[lane]);
  }
  for (; i < size; i++) {
    *least = std::min(*least, x[i]);
    *largest = std::max(*largest, x[i]);
  }
}

// Values in 8 bits; returns the sum of what they are.
int round_all(const float* x, int size, int8_t* x8, float* scale) {
  float low, high;
  extremes(x, size, &low, &high);
  const float largest = std::max(high, -low);
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

void halve(const float* x, int size, uint16_t* y) {
  int i = 0;
  for (; i + kLanes <= size; i += kLanes) store_halves(y + i, load(x + i));
  for (; i < size; i++) {
    const _Float16 half = static_cast<_Float16>(x[i]);
    std::memcpy(y + i, &half, sizeof half);
  }
}

void quantize(const float* x, int inputs, int8_t* x8, float* x_scale, float* x_sum) {
  for (int g = 0; g < inputs / kGroup; g++) {
    const int total = round_all(x + g * kGroup, kGroup, x8 + g * kGroup, x_scale + g);
    x_sum[g] = x_scale[g] * total;
  }
}

// How far ahead weights are asked for: processors by themselves stop at the end of a page.
constexpr int kBytesAhead = 4096;

// Rows of activations that share one reading of the weights: R of them, and two outputs at a time.
template <class Value, int R>
void dense(const Linear& a, int row, int first, int last) {
  const int K = a.inputs;
  const float* x = a.x + static_cast<size_t>(row) * K;
  for (int n = first; n < last; n += 2) {
    const bool pair = n + 1 < last;
    const Value* w0 = static_cast<const Value*>(a.w) + static_cast<size_t>(n) * K;
    const Value* w1 = pair ? w0 + K : w0;
    Floats s0[R] = {}, s1[R] = {};
    int k = 0;
    for (; k + kLanes <= K; k += kLanes) {
      __builtin_prefetch(w0 + kBytesAhead / sizeof(Value) + k);
      __builtin_prefetch(w1 + kBytesAhead / sizeof(Value) + k);
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
        y0 += static_cast<float>(w0[t]) * x[static_cast<size_t>(r) * K + t];
        y1 += static_cast<float>(w1[t]) * x[static_cast<size_t>(r) * K + t];
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

// The same with activations in 8 bits, `odd` places from even inputs to odd ones; `scale` has a factor for each row.
template <Weights kind, int R>
inline void add_group8(const uint8_t* w, const int8_t* x, int odd, int K, const float* const* scale, int g,
                       Floats* s) {
  for (int r = 0; r < R; r++) {
    const int8_t* row = x + static_cast<size_t>(r) * K;
#ifdef __AVX512VNNI__
    if constexpr (kind == Weights::bits8) {
      const __m512i dot =
          _mm512_dpbusd_epi32(_mm512_setzero_si512(), _mm512_loadu_si512(w), _mm512_loadu_si512(row));
      s[r] += (Floats)_mm512_cvtepi32_ps(dot) * scale[r][g];
      continue;
    }
#endif
    int32_t dot = 0;
    if constexpr (kind == Weights::bits8) {
      for (int i = 0; i < kGroup; i++) dot += static_cast<int32_t>(w[i]) * row[i];
    } else {
      for (int i = 0; i < kGroup / 2; i++)
        dot += static_cast<int32_t>(w[i] & 15) * row[i] + static_cast<int32_t>(w[i] >> 4) * row[odd + i];
    }
    s[r][0] += static_cast<float>(dot) * scale[r][g];
  }
}

#ifdef __AVX512F__
inline Floats load_some(const float* p, __mmask16 some) { return (Floats)_mm512_maskz_loadu_ps(some, p); }
inline Floats load_some(const _Float16* p, __mmask16 some) {
  return (Floats)_mm512_cvtph_ps(_mm256_maskz_loadu_epi16(some, p));
}
#endif

#ifdef __AVX512VNNI__
// 4-bit weights and activations in 8 bits: two groups at a time, each in a half of the registers.
template <class Scale, int R>
void few_bits(const Linear& a, int row, int first, int last) {
  const int K = a.inputs, groups = K / kGroup;
  const int8_t* x = a.x8 + static_cast<size_t>(row) * K;
  const __m512i mask = _mm512_set1_epi8(15);
  const __m512i halves = _mm512_inserti64x4(_mm512_setzero_si512(), _mm256_set1_epi32(1), 1);
  for (int n = first; n < last; n++) {
    const size_t of_output = static_cast<size_t>(n) * groups;
    const uint8_t* w = static_cast<const uint8_t*>(a.w) + of_output * (kGroup / 2);
    Floats s[R] = {};
    for (int g0 = 0; g0 < groups; g0 += kLanes) {
      const int count = std::min(kLanes, groups - g0);
      const __mmask16 some = static_cast<__mmask16>((1u << count) - 1);
      const Floats scales = load_some(static_cast<const Scale*>(a.scales) + of_output + g0, some);
      const Floats biases = load_some(static_cast<const Scale*>(a.biases) + of_output + g0, some);
      Floats factors[R];
      for (int r = 0; r < R; r++) {
        const size_t at = static_cast<size_t>(row + r) * groups + g0;
        factors[r] = scales * load_some(a.x_scale + at, some);
        s[r] += biases * load_some(a.x_sum + at, some);
      }
      for (int g = 0; g < count; g += 2) {
        // A last group without another has its even inputs in one half, and its odd ones in the other.
        const bool pair = g + 1 < count;
        const uint8_t* group = w + static_cast<size_t>(g0 + g) * (kGroup / 2);
        __builtin_prefetch(group + kBytesAhead);
        const __m512i both = _mm512_maskz_loadu_epi64(pair ? 0xff : 0x0f, group);
        __m512i even = _mm512_and_si512(both, mask);
        const __m512i odd = _mm512_and_si512(_mm512_srli_epi16(both, 4), mask);
        if (!pair) even = _mm512_inserti64x4(even, _mm512_castsi512_si256(odd), 1);
        const __m512i lanes = pair ? _mm512_add_epi32(halves, _mm512_set1_epi32(g)) : _mm512_set1_epi32(g);
        for (int r = 0; r < R; r++) {
          const int8_t* at = x + static_cast<size_t>(r) * K + static_cast<size_t>(g0 + g) * kGroup;
          __m512i dot = _mm512_dpbusd_epi32(_mm512_setzero_si512(), even, _mm512_loadu_si512(at));
          if (pair) dot = _mm512_dpbusd_epi32(dot, odd, _mm512_loadu_si512(at + kGroup));
          s[r] += (Floats)_mm512_cvtepi32_ps(dot) * (Floats)_mm512_permutexvar_ps(lanes, (__m512)factors[r]);
        }
      }
    }
    for (int r = 0; r < R; r++) a.y[static_cast<size_t>(row + r) * a.outputs + n] = sum(s[r]);
  }
}
#endif

#ifdef __AVX512F__
// 8-bit weights and activations as they are.
template <class Scale, int R>
void many_bits(const Linear& a, int row, int first, int last) {
  const int K = a.inputs, groups = K / kGroup;
  const float* x = a.x + static_cast<size_t>(row) * K;
  for (int n = first; n < last; n++) {
    const size_t of_output = static_cast<size_t>(n) * groups;
    const uint8_t* w = static_cast<const uint8_t*>(a.w) + of_output * kGroup;
    Floats s[R] = {}, offsets[R] = {};
    for (int g0 = 0; g0 < groups; g0 += kLanes) {
      const int count = std::min(kLanes, groups - g0);
      const __mmask16 some = static_cast<__mmask16>((1u << count) - 1);
      float scales[kLanes];
      store(scales, load_some(static_cast<const Scale*>(a.scales) + of_output + g0, some));
      const Floats biases = load_some(static_cast<const Scale*>(a.biases) + of_output + g0, some);
      for (int r = 0; r < R; r++)
        offsets[r] += biases * load_some(a.x_sum + static_cast<size_t>(row + r) * groups + g0, some);
      for (int g = 0; g < count; g++) {
        const size_t k = static_cast<size_t>(g0 + g) * kGroup;
        __builtin_prefetch(w + k + kBytesAhead);
        Floats t[R];
        for (int i = 0; i < kGroup; i += kLanes) {
          const Floats v = widen(load_bytes(w + k + i));
          for (int r = 0; r < R; r++) {
            const Floats product = v * load(x + static_cast<size_t>(r) * K + k + i);
            t[r] = i ? t[r] + product : product;
          }
        }
        for (int r = 0; r < R; r++) s[r] += t[r] * scales[g];
      }
    }
    for (int r = 0; r < R; r++) a.y[static_cast<size_t>(row + r) * a.outputs + n] = sum(s[r] + offsets[r]);
  }
}
#endif

template <Weights kind, int R>
void quantized(const Linear& a, int row, int first, int last) {
#ifdef __AVX512F__
  if (kind == Weights::bits8 && !a.x8)
    return a.scale_format == Format::float16 ? many_bits<_Float16, R>(a, row, first, last)
                                             : many_bits<float, R>(a, row, first, last);
#endif
#ifdef __AVX512VNNI__
  if (kind == Weights::bits4 && a.x8)
    return a.scale_format == Format::float16 ? few_bits<_Float16, R>(a, row, first, last)
                                             : few_bits<float, R>(a, row, first, last);
#endif
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
        __builtin_prefetch(group + kBytesAhead);
        if (!x8)
          add_group<kind, R>(group, x + k, K, scales[g], to);
        else if (kind == Weights::bits8 || (groups % 2 && g0 + g == groups - 1))
          add_group8<kind, R>(group, x8 + k, kGroup / 2, K, factors, g, to);
        else  // one of two, whose inputs are split together
          add_group8<kind, R>(group, x8 + k - g % 2 * (kGroup / 2), kGroup, K, factors, g, to);
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
    case Weights::floats: return dense<float, R>(a, row, first, last);
    case Weights::halves: return dense<_Float16, R>(a, row, first, last);
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

constexpr int kPositionsAhead = 16;  // whose keys, or values, are asked for already

template <class Value>
void attend_as(const Head& a) {
  const Value* k = static_cast<const Value*>(a.k);
  const Value* v = static_cast<const Value*>(a.v);
  const int vectors = a.dim / kLanes * kLanes;
  float largest = -INFINITY;
  for (int t = 0; t < a.length; t++) {
    const Value* key = k + t * a.stride;
    for (int d = 0; d < a.dim; d += 64 / sizeof(Value)) __builtin_prefetch(key + kPositionsAhead * a.stride + d);
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
      for (int t = 0; t < a.length; t++) {
        const Value* value = v + t * a.stride + d0;
        for (int j = 0; j < block * kLanes; j += 64 / sizeof(Value))
          __builtin_prefetch(value + kPositionsAhead * a.stride + j);
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

void attend(const Head& a) {
  switch (a.format) {
    case Format::float32: return attend_as<float>(a);
    case Format::float16: return attend_as<_Float16>(a);
    case Format::int8: return attend_as<int8_t>(a);
  }
}

constexpr int kTile = 2 * kLanes;  // queries at a time, each in a lane of its own
static_assert(kTile <= kQueries);
typedef float Tile[kTile];

// to[j] = keep * to[j] + sum_i from[i] * b[i * per_i + j * per_j], for J rows.
template <int J>
inline void add_products(const Tile* from, int count, const float* b, size_t per_i, size_t per_j, const Tile& keep,
                         Tile* to) {
  Floats s0[J] = {}, s1[J] = {};
  for (int i = 0; i < count; i++) {
    const Floats a0 = load(from[i]), a1 = load(from[i] + kLanes);
    for (int j = 0; j < J; j++) {
      const float factor = b[i * per_i + j * per_j];
      s0[j] += a0 * factor;
      s1[j] += a1 * factor;
    }
  }
  for (int j = 0; j < J; j++) {
    store(to[j], load(keep) * load(to[j]) + s0[j]);
    store(to[j] + kLanes, load(keep + kLanes) * load(to[j] + kLanes) + s1[j]);
  }
}

void add_products(const Tile* from, int count, const float* b, size_t per_i, size_t per_j, const Tile& keep, Tile* to,
                  int rows) {
  constexpr int block = 8;
  int j = 0;
  for (; j + block <= rows; j += block) add_products<block>(from, count, b + j * per_j, per_i, per_j, keep, to + j);
  for (; j < rows; j++) add_products<1>(from, count, b + j * per_j, per_i, per_j, keep, to + j);
}

// Softmax over some keys after others: what was found before counts for less, where a larger score is found.
void attend_many(const Heads& a) {
  Tile* queries = reinterpret_cast<Tile*>(a.memory);  // [dim]
  Tile* found = queries + a.dim;                      // [dim]
  Tile* scores = found + a.dim;                       // [kKeys]
  // Rows that are a power of two apart would drive each other out of the cache.
  float* together = reinterpret_cast<float*>(scores + kKeys);  // [kKeys, dim]
  const auto gather = [&](const float* rows, int count) {
    for (int i = 0; i < count; i++) std::copy_n(rows + i * a.stride, a.dim, together + i * a.dim);
    return together;
  };
  constexpr Tile nothing = {};
  for (int first = 0; first < a.queries; first += kTile) {
    const int count = std::min(kTile, a.queries - first);
    for (int d = 0; d < a.dim; d++)
      for (int i = 0; i < kTile; i++) {
        queries[d][i] = i < count ? a.scale * a.q[(first + i) * a.q_stride + d] : 0;
        found[d][i] = 0;
      }
    Tile largest, total = {}, keep;
    std::fill_n(largest, kTile, -INFINITY);
    for (int t = 0; t < a.length; t += kKeys) {
      const int keys = std::min(kKeys, a.length - t);
      std::memset(scores, 0, keys * sizeof(Tile));
      add_products(queries, a.dim, gather(a.k + t * a.stride, keys), 1, a.dim, nothing, scores, keys);
      for (int i = 0; i < kTile; i += kLanes) {
        const Floats before = load(largest + i);
        Floats most = before;
        for (int key = 0; key < keys; key++) {
          const Floats score = load(scores[key] + i);
          most = score > most ? score : most;
        }
        store(largest + i, most);
        store(keep + i, before - most);
      }
      for (int i = 0; i < kTile; i++) {
        keep[i] = exp_below_zero(keep[i]);
        total[i] *= keep[i];
      }
      for (int key = 0; key < keys; key++)
        for (int i = 0; i < kTile; i++) {
          scores[key][i] = exp_below_zero(scores[key][i] - largest[i]);
          total[i] += scores[key][i];
        }
      add_products(scores, keys, gather(a.v + t * a.stride, keys), a.dim, 1, keep, found, a.dim);
    }
    for (int i = 0; i < count; i++)
      for (int d = 0; d < a.dim; d++) a.out[(first + i) * a.out_stride + d] = found[d][i] / total[i];
  }
}

void elu(const float* x, float* y, size_t rows, int size) {
  MUSICGEN_IN_PLACE
  for (size_t i = 0; i < rows * size; i++) {
    const float below = exp_below_zero(std::min(x[i], 0.0f)) - 1.0f;
    y[i] = x[i] > 0 ? x[i] : below;
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
          __builtin_prefetch(w + kBytesAhead / sizeof(float) + k);
          __builtin_prefetch(w + kBytesAhead / sizeof(float) + k + kLanes);
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
const Kernels table{MUSICGEN_STRING(MUSICGEN_ISA), moments, scale, layer_norm, sum_groups, split_even_odd,
                    split_pairs, quantize, round_row, halve, linear, attend, attend_many, elu, gelu, glu, lstm};

}  // namespace MUSICGEN_ISA
}  // namespace musicgen
