// Vectors and functions that kernels share, for the instruction set of the file that includes it (MUSICGEN_ISA). Vectors
// are compiler extensions (GCC's and clang's vector_size), as wide as the flags allow. Intrinsics are used only where
// compilers don't generate the instruction: float16 conversion, sums over lanes, 8-bit dot products.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>

#ifdef __AVX2__
#include <immintrin.h>
#endif

#include "kernels.h"

namespace musicgen {
namespace MUSICGEN_ISA {
namespace {

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
#elif defined(__AVX2__)
constexpr int kVectorBytes = 32;
#else
constexpr int kVectorBytes = 16;
#endif
constexpr int kLanes = kVectorBytes / sizeof(float);

typedef float FloatVec __attribute__((vector_size(kVectorBytes)));
typedef int32_t IntVec __attribute__((vector_size(kVectorBytes)));
typedef int8_t Int8Vec __attribute__((vector_size(kLanes)));
typedef _Float16 HalfVec __attribute__((vector_size(kLanes * 2)));

inline FloatVec load(const float* p) {
  FloatVec v;
  std::memcpy(&v, p, sizeof v);
  return v;
}
inline void store(float* p, FloatVec v) { std::memcpy(p, &v, sizeof v); }
#if defined(__AVX512F__)
inline FloatVec load(const _Float16* p) {
  return (FloatVec)_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}
inline FloatVec load(const int8_t* p) {
  return (FloatVec)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
}
inline void store_fp16(uint16_t* p, FloatVec v) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtps_ph((__m512)v, _MM_FROUND_TO_NEAREST_INT));
}
inline float sum(FloatVec v) { return _mm512_reduce_add_ps((__m512)v); }
#elif defined(__AVX2__)
inline FloatVec load(const _Float16* p) {
  return (FloatVec)_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
inline FloatVec load(const int8_t* p) {
  return (FloatVec)_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))));
}
inline void store_fp16(uint16_t* p, FloatVec v) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph((__m256)v, _MM_FROUND_TO_NEAREST_INT));
}
inline float sum(FloatVec v) {
  __m128 half = _mm_add_ps(_mm256_castps256_ps128((__m256)v), _mm256_extractf128_ps((__m256)v, 1));
  half = _mm_add_ps(half, _mm_movehl_ps(half, half));
  return _mm_cvtss_f32(_mm_add_ss(half, _mm_movehdup_ps(half)));
}
#else
inline FloatVec load(const _Float16* p) {
  HalfVec h;
  std::memcpy(&h, p, sizeof h);
  return __builtin_convertvector(h, FloatVec);
}
inline FloatVec load(const int8_t* p) {
  Int8Vec b;
  std::memcpy(&b, p, sizeof b);
  return __builtin_convertvector(__builtin_convertvector(b, IntVec), FloatVec);
}
inline void store_fp16(uint16_t* p, FloatVec v) {
  const HalfVec h = __builtin_convertvector(v, HalfVec);
  std::memcpy(p, &h, sizeof h);
}
inline float sum(FloatVec v) { return (v[0] + v[2]) + (v[1] + v[3]); }
#endif

inline float exp_below_zero(float x) {
  // Cephes' expf for x <= 0: within 2 units in the last place. x is clamped at -87, where exp(x) is practically 0.
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
  // Near zero 1 - e loses precision; the Taylor series doesn't.
  const float small = x * (1.0f - x * x * (1.0f / 3.0f - x * x * (2.0f / 15.0f)));
  return std::fabs(x) < 0.05f ? small : std::copysign((1.0f - e) / (1.0f + e), x);
}

// Input and output may be the same array, which would keep compilers from vectorizing the loop; tells them it is safe.
#if defined(__clang__)
#define MUSICGEN_IN_PLACE _Pragma("clang loop vectorize(assume_safety)")
#else
#define MUSICGEN_IN_PLACE _Pragma("GCC ivdep")
#endif

constexpr int kQueryBlock = 2 * kLanes;  // queries at a time, one per lane
static_assert(kQueryBlock <= kQueryChunk);
typedef float QueryTile[kQueryBlock];

// A softmax goes on over `keys` more scores of each query, which become exp(score - largest). `largest` and `total`,
// the sum of these, are so far's; `correction` is what everything that was summed up before is to be multiplied with.
inline void add_to_softmax(int keys, QueryTile* scores, QueryTile& largest, QueryTile& total, QueryTile& correction) {
  for (int i = 0; i < kQueryBlock; i += kLanes) {
    const FloatVec previous = load(largest + i);
    FloatVec maximum = previous;
    for (int key = 0; key < keys; key++) {
      const FloatVec score = load(scores[key] + i);
      maximum = score > maximum ? score : maximum;
    }
    store(largest + i, maximum);
    store(correction + i, previous - maximum);
  }
  for (int i = 0; i < kQueryBlock; i++) {
    correction[i] = exp_below_zero(correction[i]);
    total[i] *= correction[i];
  }
  for (int key = 0; key < keys; key++)
    for (int i = 0; i < kQueryBlock; i++) {
      scores[key][i] = exp_below_zero(scores[key][i] - largest[i]);
      total[i] += scores[key][i];
    }
}

// out[j] = correction * out[j] + sum_i a[i] * b[i * stride_i + j * stride_j], for J rows.
template <int J>
inline void multiply_accumulate(const QueryTile* a, int count, const float* b, size_t stride_i, size_t stride_j,
                                const QueryTile& correction, QueryTile* out) {
  FloatVec s0[J] = {}, s1[J] = {};
  for (int i = 0; i < count; i++) {
    const FloatVec a0 = load(a[i]), a1 = load(a[i] + kLanes);
    for (int j = 0; j < J; j++) {
      const float factor = b[i * stride_i + j * stride_j];
      s0[j] += a0 * factor;
      s1[j] += a1 * factor;
    }
  }
  for (int j = 0; j < J; j++) {
    store(out[j], load(correction) * load(out[j]) + s0[j]);
    store(out[j] + kLanes, load(correction + kLanes) * load(out[j] + kLanes) + s1[j]);
  }
}

void multiply_accumulate(const QueryTile* a, int count, const float* b, size_t stride_i, size_t stride_j,
                         const QueryTile& correction, QueryTile* out, int rows) {
  constexpr int block = 8;
  int j = 0;
  for (; j + block <= rows; j += block)
    multiply_accumulate<block>(a, count, b + j * stride_j, stride_i, stride_j, correction, out + j);
  for (; j < rows; j++) multiply_accumulate<1>(a, count, b + j * stride_j, stride_i, stride_j, correction, out + j);
}

}  // namespace
}  // namespace MUSICGEN_ISA
}  // namespace musicgen
