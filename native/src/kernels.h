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

// A head in training: queries over keys and values, all float32. Strides are in elements. Each query should attend to a
// key: otherwise it gets the mean of the values, which has no gradient.
struct TrainedAttentionArgs {
  int queries, length, dim;
  size_t q_stride, k_stride, v_stride, out_stride, d_stride;
  bool causal;  // query i attends to keys 0 to length - queries + i
  float scale;
  const float* q;
  const float* k;
  const float* v;
  const uint8_t* mask;  // [queries, length] at these strides, 0: masked out; or null
  int64_t mask_query_stride, mask_key_stride;
  // Written forwards, read backwards. Of each query's softmax [queries, 2]: the largest score, and the sum of the
  // exponentials of all less that one. Their logarithm as one number would round the probabilities.
  float* out;
  float* softmax;
  // Backwards only. The gradient d_out has the stride of out, the others d_stride.
  const float* d_out;
  float* d_q;
  float* d_k;
  float* d_v;
  float* workspace;  // attention_{forward,backward}_workspace floats
};
constexpr size_t attention_forward_workspace(int dim) {
  return static_cast<size_t>(kQueryChunk) * (2 * dim + kKeyBlock) + kKeyBlock * dim + 16;  // 16: to align it
}
constexpr size_t attention_backward_workspace(int dim, int length) {
  const size_t padded = (dim + kQueryChunk - 1) / kQueryChunk * kQueryChunk;
  return kQueryChunk * (3 * dim + 2 * kKeyBlock + 2 * padded) + 2 * length * (padded + dim) + 16;
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
  // Training. Gradients may be in place of dy.
  void (*attention_forward)(const TrainedAttentionArgs& args, int first, int last);  // queries [first, last)
  void (*attention_backward)(const TrainedAttentionArgs& args);
  void (*gelu_forward)(const float* x, float* y, size_t size);
  void (*gelu_gradient)(const float* x, const float* dy, float* dx, size_t size);
  void (*layer_norm_gradient)(const float* x, const float* weight, const float* dy, float* dx, int dim, float eps);
  float (*log_sum_exp)(const float* x, int size);
  // Of factor * (lse - x[target]), with lse from log_sum_exp. May be in place of x.
  void (*cross_entropy_gradient)(const float* x, int size, float lse, int target, float factor, float* dx);
  // y = x times `factor`, or 0 where a hash of the element's place is below `threshold`. The places begin at `first`;
  // key [2]. May be in place.
  void (*dropout)(const float* x, float* y, size_t size, size_t first, const uint32_t* key, uint32_t threshold,
                  float factor);
};

// The fastest table that this processor supports, or the one named by MUSICGEN_MLX_CPU (for tests). Throws
// std::invalid_argument if that one isn't supported.
const Kernels& kernels();
// All tables that this processor supports, from the portable to the fastest; returns how many.
int supported_kernels(const Kernels** out, int capacity);

}  // namespace musicgen
