// The kernels' arguments, and the table of kernels that is selected for this processor.
#pragma once
#include <cstddef>
#include <cstdint>

namespace musicgen {

enum class ElementType : int { float32, float16, int8 };  // of keys and values; of quantization scales, not int8
enum class WeightType : int { float32, float16, quantized8, quantized4 };

constexpr int kGroup = 64;  // weights that share a scale and a bias
constexpr int kTile = 16;   // outputs whose quantized weights are interleaved

// y[m, n] = residual[m, n] + gelu(sum_k w[n, k] x[m, k] + bias[n]), all rows contiguous.
struct LinearArgs {
  WeightType weight_type;
  int rows, outputs, inputs;
  // float32 or float16 [N, K]; or MLX's affine quantization with 8 or 4 bits, lowest bits first, in tiles of 32-bit
  // words [N / kTile, K * bits / 32, kTile]. A kernel call on quantized weights computes whole tiles.
  const void* w;
  const void* scales;    // [N / kTile, K / kGroup, kTile]
  const void* biases;
  ElementType scale_type;
  const float* x;            // [M, K]; unused if limb_count > 0
  const int8_t* int8_limbs;  // [M, limb_count, K], from to_int8_limbs
  int limb_count;            // 0: float32 activations
  const float* x_scale;      // [M, K / kGroup]: scale of the least significant limb
  const float* x_sum;        // [M, K / kGroup]: sum of x over each group
  const float* bias;         // or null
  const float* residual;     // or null
  bool gelu;
  float* y;
};

// One query over `length` keys and values, `stride` elements apart.
struct AttentionArgs {
  ElementType kv_type;
  int length, dim;
  size_t stride;
  float scale;
  const float* q;
  const void* k;
  const void* v;
  const float* k_scales;  // [length], of int8 keys; or null
  const float* v_scales;
  const uint8_t* mask;  // [length], 0: masked out; or null
  float* out;           // [dim]
  float* scores;        // scratch, [length]
};

// Many queries over the same keys and values, all float32, without a mask. Strides are in elements.
struct BatchAttentionArgs {
  int queries, length, dim;
  size_t q_stride, stride, out_stride;
  float scale;
  const float* q;
  const float* k;
  const float* v;
  float* out;
  float* workspace;  // attention_full_workspace(dim) floats
};
constexpr int kQueryChunk = 32;  // queries of one call, at most
constexpr int kKeyBlock = 32;    // keys at a time
constexpr size_t attention_full_workspace(int dim) {
  return static_cast<size_t>(kQueryChunk) * (2 * dim + kKeyBlock) + kKeyBlock * dim;
}

// One time step of an LSTM layer. Gates are in PyTorch's order: input, forget, cell, output.
struct LstmArgs {
  int dim;
  const float* w;          // [4 * dim, dim]
  const float* projected;  // [4 * dim]: input projection plus biases
  const float* h;          // [dim], of the previous step
  float* c;                // [dim], updated in place
  float* next_h;           // [dim]
};

struct Kernels {
  const char* name;
  bool use_int8_limbs;  // quantized layers multiply int8 limbs of the activations, instead of float32
  // The mean, and the sum of squared deviations from it.
  void (*moments)(const float* x, int size, float* mean, float* squared_deviations);
  // (x - mean) * inv_std * weight + bias; may be in place.
  void (*normalize)(const float* x, const float* weight, const float* bias, float* y, int size, float mean,
                    float inv_std);
  void (*layer_norm)(const float* x, const float* weight, const float* bias, float* y, int dim, float eps);
  void (*sum_groups)(const float* x, int inputs, float* x_sum);
  // Quantizes a row, with a scale for each group, to 8-bit (limb_count 1) or 24-bit integers (limb_count 3, the
  // precision of float32), split into int8 limbs [limb_count, inputs], most significant first, in the input order of
  // weights with `bits` bits. x_sum are the group sums of the dequantized values.
  void (*to_int8_limbs)(const float* x, int inputs, int bits, int limb_count, int8_t* limbs, float* x_scale,
                        float* x_sum);
  // Quantizes a row to int8 with one scale.
  void (*quantize_row_int8)(const float* x, int size, int8_t* x8, float* scale);
  // Converts a row to float16.
  void (*to_fp16)(const float* x, int size, uint16_t* y);
  void (*linear)(const LinearArgs& args, int first, int last);  // outputs [first, last)
  void (*attention)(const AttentionArgs& args);
  void (*attention_full)(const BatchAttentionArgs& args);
  // Over [rows, size] outputs. elu and gelu may be in place.
  void (*elu)(const float* x, float* y, size_t rows, int size);
  void (*gelu)(const float* x, float* y, size_t rows, int size);
  void (*glu)(const float* x, float* y, size_t rows, int size);  // a row of x: `size` values, then `size` gates
  void (*lstm)(const LstmArgs& args, int first, int last);       // units [first, last)
};

// The fastest table that this processor supports, or the one named by MUSICGEN_MLX_CPU (for tests). Throws
// std::invalid_argument if that one isn't supported.
const Kernels& kernels();
// All tables that this processor supports, from the portable to the fastest; returns how many.
int supported_kernels(const Kernels** out, int capacity);

}  // namespace musicgen
