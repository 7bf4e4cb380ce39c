// The kernels of training_kernels.cpp, for the table in kernels.cpp.
#pragma once
#include "kernels.h"

namespace musicgen {
namespace MUSICGEN_ISA {

void attention_forward(const TrainedAttentionArgs& args, int first, int last);
void attention_backward(const TrainedAttentionArgs& args);
void gelu_forward(const float* x, float* y, size_t size);
void gelu_gradient(const float* x, const float* dy, float* dx, size_t size);
void layer_norm_gradient(const float* x, const float* weight, const float* dy, float* dx, int dim, float eps);
float log_sum_exp(const float* x, int size);
void cross_entropy_gradient(const float* x, int size, float lse, int target, float factor, float* dx);
void dropout(const float* x, float* y, size_t size, size_t first, const uint32_t* key, uint32_t threshold,
             float factor);

}  // namespace MUSICGEN_ISA
}  // namespace musicgen
