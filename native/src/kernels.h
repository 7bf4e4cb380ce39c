// What a kernel computes, and the table of kernels that suits the processor.
#pragma once
#include <cstddef>
#include <cstdint>

namespace musicgen {

enum class Format : int { float32, float16, int8 };  // of quantisation scales (not int8), and of keys and values
enum class Weights : int { floats, halves, bits8, bits4 };

constexpr int kGroup = 64;  // weights that share a scale and a bias
constexpr int kTile = 16;   // outputs whose quantised weights lie side by side

// y[m, n] = residual[m, n] + gelu(sum_k w[n, k] x[m, k] + bias[n]), all rows contiguous.
struct Linear {
  Weights kind;
  int rows, outputs, inputs;
  // float32 or float16 [N, K]; or MLX's affine layout, 8 or 4 bits each, lowest first, in tiles: the 32-bit words
  // [N / kTile, K * bits / 32, kTile]. Of those the kernels want whole tiles.
  const void* w;
  const void* scales;    // [N / kTile, K / kGroup, kTile]
  const void* biases;
  Format scale_format;
  const float* x;        // [M, K]; not used where there are digits
  const int8_t* digits;  // [M, digit_count, K], from to_digits
  int digit_count;       // 0: activations are taken as they are
  const float* x_scale;  // [M, K / kGroup], of the last digits
  const float* x_sum;    // [M, K / kGroup]: sums of x over each group
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
  bool digits;  // whether quantised layers are faster with their activations in digits
  // The mean, and the sum of the squared distances from it.
  void (*moments)(const float* x, int size, float* mean, float* squares);
  // (x - mean) * factor * weight + bias; x and y may be the same.
  void (*scale)(const float* x, const float* weight, const float* bias, float* y, int size, float mean, float factor);
  void (*layer_norm)(const float* x, const float* weight, const float* bias, float* y, int dim, float eps);
  void (*sum_groups)(const float* x, int inputs, float* x_sum);
  // A row in 1 or 3 digits to the base of 256 [count, inputs], for weights of so many bits: whole numbers with a scale
  // for each group, of 8 or of 24 bits, which is what float32 has. With the sums of what they stand for.
  void (*to_digits)(const float* x, int inputs, int bits, int count, int8_t* digits, float* x_scale, float* x_sum);
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
