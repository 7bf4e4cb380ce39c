// What a kernel computes, and the table of kernels that suits the processor.
#pragma once
#include <cstddef>
#include <cstdint>

namespace musicgen {

enum class Format : int { float32, float16, int8 };  // of quantisation scales (not int8), and of keys and values
enum class Weights : int { dense, bits8, bits4 };

constexpr int kGroup = 64;  // weights that share a scale and a bias

// y[m, n] = residual[m, n] + gelu(sum_k w[n, k] x[m, k] + bias[n]), all rows contiguous.
struct Linear {
  Weights kind;
  int rows, outputs, inputs;
  const void* w;        // float32 [N, K], or MLX's affine layout: 8 or 4 bits each, lowest first
  const void* scales;   // [N, K / kGroup]
  const void* biases;
  Format scale_format;
  const float* x;       // [M, K]; of 4-bit weights each group's even inputs, then its odd ones
  const int8_t* x8;     // the same in 8 bits, or null: activations stay exact
  const float* x_scale; // [M, K / kGroup], of x8
  const float* x_sum;   // [M, K / kGroup]: sums of x over each group
  const float* bias;    // or null
  const float* residual;
  bool gelu;
  float* y;
};

// One query over `length` keys and values, which lie `stride` elements apart.
struct Head {
  Format format;
  int length, dim;
  size_t stride;
  float scale;
  const float* q;
  const void* k;
  const void* v;
  const float* k_scales;  // [length], of int8 keys; or null
  const float* v_scales;
  const uint8_t* mask;  // 0 where the query may not look; or null
  float* out;
  float* scores;        // scratch, `length` floats
};

// A range of an LSTM layer's units, one step: gates in torch's order (input, forget, cell, output).
struct LstmStep {
  int dim;
  const float* w;          // [4 * dim, dim]
  const float* projected;  // [4 * dim]: inputs and biases
  const float* h;          // of the step before
  float* c;
  float* next_h;
};

struct Kernels {
  const char* name;
  void (*layer_norm)(const float* x, const float* weight, const float* bias, float* y, int dim, float eps);
  void (*sum_groups)(const float* x, int inputs, float* x_sum);
  void (*split_even_odd)(const float* x, int inputs, float* y);
  // 8 bits a value, of the values and the sums that they stand for.
  void (*quantize)(const float* x, int inputs, int8_t* x8, float* x_scale, float* x_sum);
  // A row in 8 bits, with one scale.
  void (*round_row)(const float* x, int size, int8_t* x8, float* scale);
  void (*linear)(const Linear& linear, int first, int last);  // outputs first … last - 1
  void (*attend)(const Head& head);
  void (*elu)(const float* x, float* y, size_t size);
  void (*lstm)(const LstmStep& step, int first, int last);
};

// The fastest that this processor runs; MUSICGEN_MLX_CPU names one of them (for tests), unknown names are refused.
const Kernels& kernels();
// All that this processor runs, the portable one first.
int supported(const Kernels** out, int capacity);

}  // namespace musicgen
