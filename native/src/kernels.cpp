// The kernels, once for each instruction set: this file is compiled several times, with other flags and another
// MUSICGEN_ISA. Vectors are the compiler's own (GCC's and clang's vector_size), as wide as the flags allow.
// Intrinsics stand only where compilers don't find the instruction: half precision, sums over lanes, 8-bit dot products.
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
inline float sum(Floats v) { return (v[0] + v[2]) + (v[1] + v[3]); }
#endif

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

// The largest of all distances from zero.
inline float furthest(const float* x, int size) {
  float low, high;
  extremes(x, size, &low, &high);
  return std::max(high, -low);
}

inline int nearest(float x) { return static_cast<int>(x + (x >= 0 ? 0.5f : -0.5f)); }

void round_row(const float* x, int size, int8_t* x8, float* scale) {
  const float largest = furthest(x, size), factor = largest > 0 ? 127.0f / largest : 0.0f;
  for (int i = 0; i < size; i++) x8[i] = static_cast<int8_t>(nearest(x[i] * factor));
  *scale = largest / 127.0f;
}

void halve(const float* x, int size, uint16_t* y) {
  int i = 0;
  for (; i + kLanes <= size; i += kLanes) store_halves(y + i, load(x + i));
  for (; i < size; i++) {
    const _Float16 half = static_cast<_Float16>(x[i]);
    std::memcpy(y + i, &half, sizeof half);
  }
}

// A group in `count` digits to the base of 256, each from -128 to 127, the first for the most. The digits of the
// largest value are 127 each, so that none is larger.
template <int count>
inline void group_digits(const float* x, const uint8_t* order, size_t apart, int8_t* digits, float* scale,
                         float* x_sum) {
  constexpr int most = count == 1 ? 127 : 127 * 0x10101;
  static_assert(count == 1 || count == 3);
  const float largest = furthest(x, kGroup), factor = largest > 0 ? most / largest : 0.0f;
  int32_t whole[kGroup], total = 0;
  for (int i = 0; i < kGroup; i++) {
    whole[i] = std::min(std::max(nearest(x[order[i]] * factor), -most), most);
    total += whole[i];
  }
  for (int d = count - 1; d > 0; d--)
    for (int i = 0; i < kGroup; i++) {
      const int8_t digit = static_cast<int8_t>(whole[i]);
      digits[d * apart + i] = digit;
      whole[i] = (whole[i] - digit) >> 8;
    }
  for (int i = 0; i < kGroup; i++) digits[i] = static_cast<int8_t>(whole[i]);
  *scale = largest / most;
  *x_sum = *scale * total;
}

void to_digits(const float* x, int inputs, int bits, int count, int8_t* digits, float* x_scale, float* x_sum) {
  uint8_t order[kGroup];
  for (int i = 0; i < kGroup; i++) order[i] = bits == 8 ? i : i / 8 * 8 + i % 4 * 2 + i / 4 % 2;
  for (int g = 0; g < inputs / kGroup; g++, x += kGroup, digits += kGroup, x_scale++, x_sum++) {
    if (count == 1)
      group_digits<1>(x, order, inputs, digits, x_scale, x_sum);
    else
      group_digits<3>(x, order, inputs, digits, x_scale, x_sum);
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

// Quantised weights lie in tiles: words of kTile outputs side by side, so that each lane has an output of its own.
constexpr int kTileVectors = kTile / kLanes;

// Activations as they are, each widened weight for all R rows.
template <int bits, class Scale, int R>
void tiles(const Linear& a, int row, int first, int last) {
  constexpr int per_word = 32 / bits, mask = (1 << bits) - 1;
  const int K = a.inputs, groups = K / kGroup;
  for (int n = first; n < last; n += kTile) {
    const uint32_t* w = static_cast<const uint32_t*>(a.w) + static_cast<size_t>(n) * (K / per_word);
    const Scale* scales = static_cast<const Scale*>(a.scales) + static_cast<size_t>(n) * groups;
    const Scale* biases = static_cast<const Scale*>(a.biases) + static_cast<size_t>(n) * groups;
    Floats s[kTileVectors][R] = {};
    for (int g = 0; g < groups; g++) {
      Floats t[kTileVectors][R][2] = {};  // of even and odd weights: one alone would wait for itself
      for (int i = 0; i < kGroup; i += per_word, w += kTile) {
        const float* x = a.x + static_cast<size_t>(row) * K + g * kGroup + i;
        __builtin_prefetch(w + kBytesAhead / sizeof *w);
        for (int v = 0; v < kTileVectors; v++) {
          Ints words;
          std::memcpy(&words, w + v * kLanes, sizeof words);
          for (int b = 0; b < per_word; b++) {
            const Floats weights = __builtin_convertvector((words >> (b * bits)) & mask, Floats);
            for (int r = 0; r < R; r++) t[v][r][b % 2] += weights * x[static_cast<size_t>(r) * K + b];
          }
        }
      }
      for (int v = 0; v < kTileVectors; v++) {
        const Floats scale = load(scales + g * kTile + v * kLanes), bias = load(biases + g * kTile + v * kLanes);
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
// Activations in digits: whole-number products of 64 weights at a time, which needn't be widened.
template <int bits, class Scale, int digits, int R>
void tiles_of_digits(const Linear& a, int row, int first, int last) {
  const int K = a.inputs, groups = K / kGroup;
  constexpr int words = kGroup * bits / 32;
  const __m512i mask = _mm512_set1_epi8(15);
  for (int n = first; n < last; n += kTile) {
    const uint8_t* w = static_cast<const uint8_t*>(a.w) + static_cast<size_t>(n) * (K * bits / 8);
    const Scale* scales = static_cast<const Scale*>(a.scales) + static_cast<size_t>(n) * groups;
    const Scale* biases = static_cast<const Scale*>(a.biases) + static_cast<size_t>(n) * groups;
    Floats s[R] = {};
    for (int g = 0; g < groups; g++) {
      __m512i dots[R][digits];
      for (int r = 0; r < R; r++)
        for (int d = 0; d < digits; d++) dots[r][d] = _mm512_setzero_si512();
      const int8_t* x = a.digits + static_cast<size_t>(row) * digits * K + g * kGroup;
      // Four inputs of each of 16 outputs.
      const auto add = [&](__m512i weights, int i) {
        for (int r = 0; r < R; r++)
          for (int d = 0; d < digits; d++) {
            int32_t four;
            std::memcpy(&four, x + static_cast<size_t>(r * digits + d) * K + 4 * i, sizeof four);
            dots[r][d] = _mm512_dpbusd_epi32(dots[r][d], weights, _mm512_set1_epi32(four));
          }
      };
      for (int i = 0; i < words; i++, w += kTile * 4) {
        __builtin_prefetch(w + kBytesAhead);
        const __m512i weights = _mm512_loadu_si512(w);
        if constexpr (bits == 8) {
          add(weights, i);
        } else {
          add(_mm512_and_si512(weights, mask), 2 * i);
          add(_mm512_and_si512(_mm512_srli_epi16(weights, 4), mask), 2 * i + 1);
        }
      }
      const Floats scale = load(scales + g * kTile), bias = load(biases + g * kTile);
      for (int r = 0; r < R; r++) {
        const size_t at = static_cast<size_t>(row + r) * groups + g;
        Floats dot;
        if constexpr (digits == 1) {
          dot = (Floats)_mm512_cvtepi32_ps(dots[r][0]);
        } else {
          const __m512i high = _mm512_add_epi32(_mm512_slli_epi32(dots[r][0], 8), dots[r][1]);
          dot = (Floats)_mm512_cvtepi32_ps(high) * 256.0f + (Floats)_mm512_cvtepi32_ps(dots[r][2]);
        }
        s[r] += dot * (scale * a.x_scale[at]) + bias * a.x_sum[at];
      }
    }
    for (int r = 0; r < R; r++) store(a.y + static_cast<size_t>(row + r) * a.outputs + n, s[r]);
  }
}
#endif

template <int bits, class Scale, int R>
void quantized(const Linear& a, int row, int first, int last) {
#ifdef __AVX512VNNI__
  if (a.digit_count == 1) return tiles_of_digits<bits, Scale, 1, R>(a, row, first, last);
  if (a.digit_count == 3) return tiles_of_digits<bits, Scale, 3, R>(a, row, first, last);
#endif
  tiles<bits, Scale, R>(a, row, first, last);
}

template <int bits, int R>
void quantized(const Linear& a, int row, int first, int last) {
  if (a.scale_format == Format::float16)
    quantized<bits, _Float16, R>(a, row, first, last);
  else
    quantized<bits, float, R>(a, row, first, last);
}

template <int R>
void rows(const Linear& a, int row, int first, int last) {
  switch (a.kind) {
    case Weights::floats: return dense<float, R>(a, row, first, last);
    case Weights::halves: return dense<_Float16, R>(a, row, first, last);
    case Weights::bits8: return quantized<8, R>(a, row, first, last);
    case Weights::bits4: return quantized<4, R>(a, row, first, last);
  }
}

void linear(const Linear& a, int first, int last) {
  // So few outputs at a time that their weights stay in the cache for all rows.
  for (int n = first; n < last; n += kTile) {
    const int end = std::min(n + kTile, last);
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

constexpr int kTogether = 2 * kLanes;  // queries at a time, each in a lane of its own
static_assert(kTogether <= kQueries);
typedef float Tile[kTogether];

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
  for (int first = 0; first < a.queries; first += kTogether) {
    const int count = std::min(kTogether, a.queries - first);
    for (int d = 0; d < a.dim; d++)
      for (int i = 0; i < kTogether; i++) {
        queries[d][i] = i < count ? a.scale * a.q[(first + i) * a.q_stride + d] : 0;
        found[d][i] = 0;
      }
    Tile largest, total = {}, keep;
    std::fill_n(largest, kTogether, -INFINITY);
    for (int t = 0; t < a.length; t += kKeys) {
      const int keys = std::min(kKeys, a.length - t);
      std::memset(scores, 0, keys * sizeof(Tile));
      add_products(queries, a.dim, gather(a.k + t * a.stride, keys), 1, a.dim, nothing, scores, keys);
      for (int i = 0; i < kTogether; i += kLanes) {
        const Floats before = load(largest + i);
        Floats most = before;
        for (int key = 0; key < keys; key++) {
          const Floats score = load(scores[key] + i);
          most = score > most ? score : most;
        }
        store(largest + i, most);
        store(keep + i, before - most);
      }
      for (int i = 0; i < kTogether; i++) {
        keep[i] = exp_below_zero(keep[i]);
        total[i] *= keep[i];
      }
      for (int key = 0; key < keys; key++)
        for (int i = 0; i < kTogether; i++) {
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
#ifdef __AVX512VNNI__
constexpr bool kDigits = true;
#else
constexpr bool kDigits = false;
#endif
const Kernels table{MUSICGEN_STRING(MUSICGEN_ISA), kDigits, moments, scale, layer_norm, sum_groups, to_digits,
                    round_row, halve, linear, attend, attend_many, elu, gelu, glu, lstm};

}  // namespace MUSICGEN_ISA
}  // namespace musicgen
