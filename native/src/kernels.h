// What a kernel computes, and the table of kernels that suits the processor.
#pragma once
#include <cstddef>
#include <cstdint>

namespace musicgen {

enum class Format : int { float32, float16, int8 };  // of quantisation scales (not int8), and of keys and values
enum class Weights : int { floats, halves, bits8, bits4 };

constexpr int kGroup = 64;  // weights that share a scale and a bias

// y[m, n] = residual[m, n] + gelu(sum_k w[n, k] x[m, k] + bias[n]), all rows contiguous.
struct Linear {
  Weights kind;
  int rows, outputs, inputs;
  const void* w;        // float32 or float16 [N, K], or MLX's affine layout: 8 or 4 bits each, lowest first
  const void* scales;   // [N, K / kGroup]
  const void* biases;
  Format scale_format;
  const float* x;       // [M, K]; of 4-bit weights each group's even inputs, then its odd ones
  const int8_t* x8;     // the same in 8 bits, or null: activations stay exact; of 4-bit weights in split_pairs' order
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

// Many queries over the same keys and values, all float32; rows lie as far apart as the strides say.
struct Heads {
  int queries, length, dim;
  size_t q_stride, stride, out_stride;
  float scale;
  const float* q;
  const float* k;
  const float* v;
  float* out;
  float* memory;  // scratch, `memory_of_heads(dim)` floats
};
constexpr int kQueries = 32, kKeys = 32;  // at a time, at most
constexpr size_t memory_of_heads(int dim) { return static_cast<size_t>(kQueries) * (2 * dim + kKeys) + kKeys * dim; }

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
  // The mean, and the sum of the squared distances from it.
  void (*moments)(const float* x, int size, float* mean, float* squares);
  // (x - mean) * factor * weight + bias; x and y may be the same.
  void (*scale)(const float* x, const float* weight, const float* bias, float* y, int size, float mean, float factor);
  void (*layer_norm)(const float* x, const float* weight, const float* bias, float* y, int dim, float eps);
  void (*sum_groups)(const float* x, int inputs, float* x_sum);
  void (*split_even_odd)(const float* x, int inputs, float* y);
  // Of each two groups the even inputs, then the odd ones; so too of a last one without another.
  void (*split_pairs)(const int8_t* x, int inputs, int8_t* y);
  // 8 bits a value, of the values and the sums that they stand for.
  void (*quantize)(const float* x, int inputs, int8_t* x8, float* x_scale, float* x_sum);
  // A row in 8 bits, with one scale.
  void (*round_row)(const float* x, int size, int8_t* x8, float* scale);
  // A row in half precision.
  void (*halve)(const float* x, int size, uint16_t* y);
  void (*linear)(const Linear& linear, int first, int last);  // outputs first … last - 1
  void (*attend)(const Head& head);
  void (*attend_many)(const Heads& heads);
  // Value by value, or row by row of `size` results; x and y may be the same, but not of glu.
  void (*elu)(const float* x, float* y, size_t rows, int size);
  void (*gelu)(const float* x, float* y, size_t rows, int size);
  void (*glu)(const float* x, float* y, size_t rows, int size);  // values, then their gates: 2 * size of x a row
  void (*lstm)(const LstmStep& step, int first, int last);
};

// The fastest that this processor runs; MUSICGEN_MLX_CPU names one of them (for tests), unknown names are refused.
const Kernels& kernels();
// All that this processor runs, the portable one first.
int supported(const Kernels** out, int capacity);

}  // namespace musicgen
