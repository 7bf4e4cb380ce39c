// Tests every kernel of every instruction set that this machine supports, on random shapes, against a reference in
// double precision; and the thread pool with several callers at once. Built with sanitizers by `make sanitize`.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <numeric>
#include <random>
#include <thread>
#include <vector>

#include "kernels.h"
#include "pool.h"

using namespace musicgen;

namespace {

int failures = 0;
std::mt19937 generator(7);

float random_normal() { return std::normal_distribution<float>()(generator); }
int random_int(int low, int high) { return std::uniform_int_distribution<int>(low, high)(generator); }
std::vector<float> random_floats(size_t size) {
  std::vector<float> values(size);
  for (auto& value : values) value = random_normal();
  return values;
}

void check(const char* isa, const char* what, double actual, double expected, double tolerance) {
  if (std::fabs(actual - expected) <= tolerance * (1 + std::fabs(expected))) return;
  if (failures++ < 20) std::printf("%s %s: %.9g instead of %.9g\n", isa, what, actual, expected);
}

double reference_gelu(double x) { return 0.5 * x * (1 + std::erf(x / std::sqrt(2.0))); }
double reference_sigmoid(double x) { return 1 / (1 + std::exp(-x)); }

// Compares y of `a`, computed in chunks of outputs, with the reference for the weights `dense` [N, K].
void compare_linear(const Kernels& k, LinearArgs a, const std::vector<float>& x, const std::vector<float>& dense,
                    double tolerance, const char* what) {
  std::vector<float> y(static_cast<size_t>(a.rows) * a.outputs, NAN);
  a.y = y.data();
  const bool tiles = a.weight_type == WeightType::quantized8 || a.weight_type == WeightType::quantized4;
  for (int n = 0; n < a.outputs;) {
    const int end = std::min(a.outputs, n + (tiles ? kTile * random_int(1, 2) : random_int(1, 40)));
    k.linear(a, n, end);
    n = end;
  }
  for (int m = 0; m < a.rows; m++)
    for (int n = 0; n < a.outputs; n++) {
      double sum = 0;
      const float *weights = &dense[static_cast<size_t>(n) * a.inputs], *row = &x[static_cast<size_t>(m) * a.inputs];
      for (int i = 0; i < a.inputs; i++) sum += static_cast<double>(weights[i]) * row[i];
      if (a.bias) sum += a.bias[n];
      if (a.gelu) sum = reference_gelu(sum);
      const size_t at = static_cast<size_t>(m) * a.outputs + n;
      if (a.residual) sum += a.residual[at];
      check(k.name, what, y[at], sum, tolerance * std::sqrt(a.inputs));
    }
}

void test_dense(const Kernels& k) {
  LinearArgs a{};
  a.weight_type = random_int(0, 1) ? WeightType::float32 : WeightType::float16;
  a.rows = random_int(1, 9);
  a.outputs = random_int(1, 70);
  a.inputs = random_int(1, 300);
  const auto x = random_floats(a.rows * a.inputs);
  auto w = random_floats(a.outputs * a.inputs);
  std::vector<uint16_t> fp16(w.size());
  if (a.weight_type == WeightType::float16)
    for (size_t i = 0; i < w.size(); i++) {
      const _Float16 half = static_cast<_Float16>(w[i]);
      std::memcpy(&fp16[i], &half, sizeof half);
      w[i] = static_cast<float>(half);
    }
  const auto bias = random_floats(a.outputs), residual = random_floats(a.rows * a.outputs);
  a.x = x.data();
  a.w = a.weight_type == WeightType::float16 ? static_cast<const void*>(fp16.data()) : w.data();
  if (random_int(0, 1)) a.bias = bias.data();
  if (random_int(0, 1)) a.residual = residual.data();
  a.gelu = random_int(0, 1);
  compare_linear(k, a, x, w, 2e-6, "dense");
}

void test_quantized(const Kernels& k) {
  LinearArgs a{};
  const int bits = random_int(0, 1) ? 8 : 4;
  a.weight_type = bits == 8 ? WeightType::quantized8 : WeightType::quantized4;
  a.rows = random_int(1, 9);
  a.outputs = kTile * random_int(1, 3);
  const int groups = random_int(1, 70);
  a.inputs = groups * kGroup;
  auto x = random_floats(a.rows * a.inputs);
  std::fill_n(x.begin() + random_int(0, a.rows * groups - 1) * kGroup, kGroup, 0.0f);  // one group is all zeros
  std::vector<uint8_t> w(static_cast<size_t>(a.outputs) * a.inputs * bits / 8);
  for (auto& byte : w) byte = random_int(0, 255);
  const auto scales = random_floats(a.outputs * groups), biases = random_floats(a.outputs * groups);
  std::vector<_Float16> scales16(scales.begin(), scales.end()), biases16(biases.begin(), biases.end());
  const bool half = random_int(0, 1);
  a.scale_type = half ? ElementType::float16 : ElementType::float32;
  a.w = w.data();
  a.scales = half ? static_cast<const void*>(scales16.data()) : scales.data();
  a.biases = half ? static_cast<const void*>(biases16.data()) : biases.data();
  std::vector<float> dense(static_cast<size_t>(a.outputs) * a.inputs);
  const int words = a.inputs * bits / 32;
  for (int n = 0; n < a.outputs; n++)
    for (int i = 0; i < a.inputs; i++) {
      const int tile = n / kTile, lane = n % kTile, bit = i * bits % 32;
      const size_t word = (static_cast<size_t>(tile) * words + i * bits / 32) * kTile + lane;
      const size_t g = (static_cast<size_t>(tile) * groups + i / kGroup) * kTile + lane;
      const int q = (w[word * 4 + bit / 8] >> bit % 8) & ((1 << bits) - 1);
      const float scale = half ? static_cast<float>(scales16[g]) : scales[g];
      const float bias = half ? static_cast<float>(biases16[g]) : biases[g];
      dense[static_cast<size_t>(n) * a.inputs + i] = scale * q + bias;
    }
  std::vector<float> x_sum(a.rows * groups), x_scale(a.rows * groups);
  a.x_sum = x_sum.data();
  a.x_scale = x_scale.data();
  const double tolerance = bits == 8 ? 2e-4 : 2e-5;
  if (!k.use_int8_limbs) {
    for (int m = 0; m < a.rows; m++) k.sum_groups(&x[m * a.inputs], a.inputs, &x_sum[m * groups]);
    a.x = x.data();
    return compare_linear(k, a, x, dense, tolerance, "quantized");
  }
  // The result must be that of the quantized activations; three limbs have float32's precision.
  for (const int limb_count : {1, 3}) {
    std::vector<int8_t> limbs(x.size() * limb_count);
    std::vector<float> rounded(x.size());
    for (int m = 0; m < a.rows; m++) {
      int8_t* row = &limbs[m * limb_count * a.inputs];
      k.to_int8_limbs(&x[m * a.inputs], a.inputs, bits, limb_count, row, &x_scale[m * groups], &x_sum[m * groups]);
      for (int i = 0; i < a.inputs; i++) {
        double value = 0;
        for (int l = 0; l < limb_count; l++) value = value * 256 + row[l * a.inputs + i];
        // With 4 bits the even inputs of each 8 come first.
        const int at = m * a.inputs + (bits == 8 ? i : i / 8 * 8 + i % 4 * 2 + i / 4 % 2);
        const float scale = x_scale[at / kGroup];
        rounded[at] = static_cast<float>(value * scale);
        check(k.name, "rounding", rounded[at], x[at], 0.51 * scale + (limb_count == 3 ? 1e-7 : 0));
      }
    }
    a.int8_limbs = limbs.data();
    a.limb_count = limb_count;
    compare_linear(k, a, limb_count == 3 ? x : rounded, dense, tolerance,
                   limb_count == 3 ? "quantized" : "int8 activations");
  }
}

template <class Value>
void test_attention(const Kernels& k) {
  AttentionArgs a{};
  a.kv_type = sizeof(Value) == 4 ? ElementType::float32 : sizeof(Value) == 2 ? ElementType::float16 : ElementType::int8;
  a.dim = random_int(1, 140);
  a.length = random_int(1, 90);
  a.stride = a.dim + random_int(0, 5);
  a.scale = 0.3f;
  const auto q = random_floats(a.dim);
  auto keys = random_floats(a.stride * a.length), values = random_floats(a.stride * a.length);
  std::vector<float> k_scales(a.length, 1), v_scales(a.length, 1);
  if (sizeof(Value) == 1) {
    for (auto* all : {&keys, &values})
      for (auto& value : *all) value = random_int(-127, 127);
    for (auto* all : {&k_scales, &v_scales})
      for (auto& value : *all) value = std::fabs(random_normal()) / 60;
    a.k_scales = k_scales.data();
    a.v_scales = v_scales.data();
  }
  // No longer than what may be read, so that sanitizers notice reads past the end.
  std::vector<Value> typed_keys(keys.begin(), keys.begin() + a.stride * (a.length - 1) + a.dim);
  std::vector<Value> typed_values(values.begin(), values.begin() + a.stride * (a.length - 1) + a.dim);
  std::vector<uint8_t> mask(a.length);
  for (auto& visible : mask) visible = random_int(0, 1);
  mask[random_int(0, a.length - 1)] = 1;
  std::vector<float> out(a.dim, NAN), scores(a.length);
  a.q = q.data();
  a.k = typed_keys.data();
  a.v = typed_values.data();
  if (random_int(0, 1)) a.mask = mask.data();
  a.out = out.data();
  a.scores = scores.data();
  k.attention(a);
  std::vector<double> weight(a.length);
  double total = 0;
  for (int t = 0; t < a.length; t++) {
    double dot = 0;
    for (int d = 0; d < a.dim; d++) dot += static_cast<double>(q[d]) * static_cast<float>(typed_keys[t * a.stride + d]);
    weight[t] = a.mask && !mask[t] ? 0 : std::exp(dot * a.scale * k_scales[t]);
    total += weight[t];
  }
  for (int d = 0; d < a.dim; d++) {
    double sum = 0;
    for (int t = 0; t < a.length; t++)
      sum += weight[t] / total * v_scales[t] * static_cast<float>(typed_values[t * a.stride + d]);
    check(k.name, "attention", out[d], sum, 2e-5);
  }
}

void test_attention_full(const Kernels& k) {
  BatchAttentionArgs a{};
  a.queries = random_int(1, kQueryChunk);
  a.length = random_int(1, 90);
  a.dim = random_int(1, 80);
  a.q_stride = a.dim + random_int(0, 5);
  a.stride = a.dim + random_int(0, 5);
  a.out_stride = a.dim + random_int(0, 5);
  a.scale = 0.3f;
  // No longer than what may be read and written, so that sanitizers notice accesses past the end.
  const auto rows = [&](int count, size_t stride) { return random_floats(stride * (count - 1) + a.dim); };
  const auto q = rows(a.queries, a.q_stride), keys = rows(a.length, a.stride), values = rows(a.length, a.stride);
  std::vector<float> out(a.out_stride * (a.queries - 1) + a.dim, NAN), workspace(attention_full_workspace(a.dim), NAN);
  a.q = q.data();
  a.k = keys.data();
  a.v = values.data();
  a.out = out.data();
  a.workspace = workspace.data();
  k.attention_full(a);
  for (int i = 0; i < a.queries; i++) {
    std::vector<double> sum(a.dim);
    double total = 0;
    for (int t = 0; t < a.length; t++) {
      double dot = 0;
      for (int d = 0; d < a.dim; d++) dot += static_cast<double>(q[i * a.q_stride + d]) * keys[t * a.stride + d];
      const double weight = std::exp(dot * a.scale);
      total += weight;
      for (int d = 0; d < a.dim; d++) sum[d] += weight * values[t * a.stride + d];
    }
    for (int d = 0; d < a.dim; d++) check(k.name, "attention_full", out[i * a.out_stride + d], sum[d] / total, 2e-5);
  }
}

void test_elementwise_norm_and_lstm(const Kernels& k) {
  const int dim = random_int(1, 200);
  const auto x = random_floats(dim), weight = random_floats(dim), bias = random_floats(dim);
  std::vector<float> y(dim);
  std::vector<uint16_t> fp16(dim);
  k.to_fp16(x.data(), dim, fp16.data());
  for (int i = 0; i < dim; i++) {
    _Float16 half;
    std::memcpy(&half, &fp16[i], sizeof half);
    check(k.name, "to_fp16", static_cast<float>(half), static_cast<float>(static_cast<_Float16>(x[i])), 0);
  }
  k.layer_norm(x.data(), weight.data(), bias.data(), y.data(), dim, 1e-5f);
  const double mean = std::accumulate(x.begin(), x.end(), 0.0) / dim;
  double variance = 0;
  for (float value : x) variance += (value - mean) * (value - mean) / dim;
  for (int i = 0; i < dim; i++)
    check(k.name, "layer norm", y[i], (x[i] - mean) / std::sqrt(variance + 1e-5) * weight[i] + bias[i], 2e-4);

  auto wide = x;
  for (auto& value : wide) value *= 20;
  k.elu(wide.data(), y.data(), 1, dim);
  for (int i = 0; i < dim; i++)
    check(k.name, "elu", y[i], wide[i] > 0 ? wide[i] : std::expm1(static_cast<double>(wide[i])), 1e-6);

  k.gelu(wide.data(), wide.data(), dim, 1);  // in place
  for (int i = 0; i < dim; i++) check(k.name, "gelu", wide[i], reference_gelu(20 * static_cast<double>(x[i])), 3e-6);

  const int rows = random_int(1, 5);
  const auto gated = random_floats(2 * dim * rows);
  std::vector<float> glu_out(dim * rows, NAN);
  k.glu(gated.data(), glu_out.data(), rows, dim);
  for (int i = 0; i < dim * rows; i++) {
    const float* value = &gated[i + i / dim * dim];
    check(k.name, "glu", glu_out[i], value[0] * reference_sigmoid(value[dim]), 2e-6);
  }

  const auto w = random_floats(4 * dim * dim), projected = random_floats(4 * dim), h = random_floats(dim);
  auto c = random_floats(dim);
  const auto before = c;
  std::vector<float> next(dim, NAN);
  const LstmArgs lstm_args{dim, w.data(), projected.data(), h.data(), c.data(), next.data()};
  const int split = random_int(0, dim);
  k.lstm(lstm_args, 0, split);
  k.lstm(lstm_args, split, dim);
  for (int i = 0; i < dim; i++) {
    double gate[4];
    for (int g = 0; g < 4; g++) {
      gate[g] = projected[g * dim + i];
      for (int j = 0; j < dim; j++)
        gate[g] += static_cast<double>(w[(static_cast<size_t>(g) * dim + i) * dim + j]) * h[j];
    }
    const double cell = reference_sigmoid(gate[1]) * before[i] + reference_sigmoid(gate[0]) * std::tanh(gate[2]);
    check(k.name, "lstm cell", c[i], cell, 1e-4);
    check(k.name, "lstm", next[i], reference_sigmoid(gate[3]) * std::tanh(cell), 1e-4);
  }
}

// Against finite sums in double precision: out, and the gradients of sum(out * d_out).
void test_trained_attention(const Kernels& k) {
  TrainedAttentionArgs a{};
  a.queries = random_int(1, 100);
  a.causal = random_int(0, 1);
  a.length = a.causal ? a.queries + random_int(0, 20) : random_int(1, 90);
  a.dim = random_int(1, 80);
  a.q_stride = a.dim + random_int(0, 5);
  a.k_stride = a.dim + random_int(0, 5);
  a.v_stride = a.dim + random_int(0, 5);
  a.out_stride = a.dim + random_int(0, 5);
  a.d_stride = a.dim + random_int(0, 5);
  a.scale = 0.3f;
  // No longer than what may be read and written, so that sanitizers notice accesses past the end.
  const auto size = [&](int count, size_t stride) { return stride * (count - 1) + a.dim; };
  const auto q = random_floats(size(a.queries, a.q_stride)), keys = random_floats(size(a.length, a.k_stride)),
             values = random_floats(size(a.length, a.v_stride)), d_out = random_floats(size(a.queries, a.out_stride));
  std::vector<uint8_t> mask(static_cast<size_t>(a.queries) * a.length);
  for (auto& visible : mask) visible = random_int(0, 3) > 0;
  for (int i = 0; i < a.queries; i++) mask[i * a.length] = 1;
  if (random_int(0, 1)) a.mask = mask.data();
  a.mask_query_stride = a.length;
  a.mask_key_stride = 1;
  std::vector<float> out(size(a.queries, a.out_stride), NAN), softmax(2 * a.queries, NAN);
  std::vector<float> d_q(size(a.queries, a.d_stride), NAN), d_k(size(a.length, a.d_stride), NAN), d_v(d_k);
  std::vector<float> workspace(attention_forward_workspace(a.dim), NAN);
  a.q = q.data();
  a.k = keys.data();
  a.v = values.data();
  a.out = out.data();
  a.softmax = softmax.data();
  a.workspace = workspace.data();
  for (int first = 0; first < a.queries;) {
    const int last = std::min(a.queries, first + random_int(1, 70));
    k.attention_forward(a, first, last);
    first = last;
  }
  std::vector<float> larger(attention_backward_workspace(a.dim, a.length), NAN);
  a.d_out = d_out.data();
  a.d_q = d_q.data();
  a.d_k = d_k.data();
  a.d_v = d_v.data();
  a.workspace = larger.data();
  k.attention_backward(a);

  const int dim = a.dim;
  std::vector<double> expected_k(a.length * dim), expected_v(expected_k);
  for (int i = 0; i < a.queries; i++) {
    std::vector<double> p(a.length), d_p(a.length), o(dim), expected_q(dim);
    double total = 0, delta = 0;
    for (int t = 0; t < a.length; t++) {
      double dot = 0;
      for (int d = 0; d < dim; d++) dot += static_cast<double>(q[i * a.q_stride + d]) * keys[t * a.k_stride + d];
      const bool visible = (!a.mask || mask[i * a.length + t]) && (!a.causal || t <= a.length - a.queries + i);
      total += p[t] = visible ? std::exp(dot * a.scale) : 0;
    }
    for (int t = 0; t < a.length; t++) {
      p[t] /= total;
      for (int d = 0; d < dim; d++) {
        const double g = d_out[i * a.out_stride + d], v = values[t * a.v_stride + d];
        o[d] += p[t] * v;
        d_p[t] += g * v;
        expected_v[t * dim + d] += p[t] * g;
      }
      delta += p[t] * d_p[t];
    }
    for (int t = 0; t < a.length; t++)
      for (int d = 0; d < dim; d++) {
        const double d_score = a.scale * p[t] * (d_p[t] - delta);
        expected_q[d] += d_score * keys[t * a.k_stride + d];
        expected_k[t * dim + d] += d_score * q[i * a.q_stride + d];
      }
    for (int d = 0; d < dim; d++) {
      check(k.name, "attention_forward", out[i * a.out_stride + d], o[d], 2e-5);
      check(k.name, "d_q", d_q[i * a.d_stride + d], expected_q[d], 5e-5);
    }
  }
  for (int t = 0; t < a.length; t++)
    for (int d = 0; d < dim; d++) {
      check(k.name, "d_k", d_k[t * a.d_stride + d], expected_k[t * dim + d], 5e-5);
      check(k.name, "d_v", d_v[t * a.d_stride + d], expected_v[t * dim + d], 5e-5);
    }
}

void test_other_gradients(const Kernels& k) {
  const int size = random_int(1, 200);
  auto x = random_floats(size);
  for (auto& value : x) value *= 3;
  const auto dy = random_floats(size), weight = random_floats(size);
  std::vector<float> y(size, NAN), dx(dy);
  k.gelu_forward(x.data(), y.data(), size);
  k.gelu_gradient(x.data(), dx.data(), dx.data(), size);  // in place
  for (int i = 0; i < size; i++) {
    const double at = x[i], cumulative = 0.5 * std::erfc(-at / std::sqrt(2.0));
    check(k.name, "gelu_forward", y[i], at * cumulative, 3e-7);
    check(k.name, "gelu_gradient", dx[i], dy[i] * (cumulative + at * std::exp(-0.5 * at * at) / std::sqrt(2 * M_PI)), 1e-6);
  }

  dx = dy;
  k.layer_norm_gradient(x.data(), weight.data(), dx.data(), dx.data(), size, 1e-5f);
  const double mean = std::accumulate(x.begin(), x.end(), 0.0) / size;
  double variance = 0, mean_g = 0, mean_gd = 0;
  for (int i = 0; i < size; i++) {
    variance += (x[i] - mean) * (x[i] - mean) / size;
    mean_g += static_cast<double>(dy[i]) * weight[i] / size;
    mean_gd += static_cast<double>(dy[i]) * weight[i] * (x[i] - mean) / size;
  }
  variance += 1e-5;
  for (int i = 0; i < size; i++)
    check(k.name, "layer_norm_gradient", dx[i],
          (static_cast<double>(dy[i]) * weight[i] - mean_g - (x[i] - mean) * mean_gd / variance) / std::sqrt(variance),
          2e-4);

  double total = 0;
  for (const float value : x) total += std::exp(static_cast<double>(value));
  const float log_sum = k.log_sum_exp(x.data(), size);
  check(k.name, "log_sum_exp", log_sum, std::log(total), 2e-6);
  const int target = random_int(0, size - 1);
  y = x;
  k.cross_entropy_gradient(y.data(), size, log_sum, target, 0.7f, y.data());
  for (int i = 0; i < size; i++)
    check(k.name, "cross_entropy_gradient", y[i], 0.7 * (std::exp(static_cast<double>(x[i])) / total - (i == target)),
          2e-6);

  // The same elements are zero, whatever the pieces; and about as many as are wanted.
  const std::vector<float> ones(20000, 1);
  std::vector<float> whole(ones.size(), NAN), pieces(ones);
  const uint32_t key[2] = {static_cast<uint32_t>(generator()), static_cast<uint32_t>(generator())};
  k.dropout(ones.data(), whole.data(), ones.size(), 0, key, 1u << 30, 4.0f / 3);
  for (size_t first = 0; first < ones.size();) {
    const size_t count = std::min<size_t>(ones.size() - first, random_int(1, 3000));
    k.dropout(&pieces[first], &pieces[first], count, first, key, 1u << 30, 4.0f / 3);
    first += count;
  }
  check(k.name, "dropout in pieces", whole == pieces, 1, 0);
  check(k.name, "dropout", std::accumulate(whole.begin(), whole.end(), 0.0) / ones.size(), 1, 0.02);
}

void test_pool() {
  Pool pool(4);
  auto caller = [&](int seed) {
    for (int round = 0; round < 300; round++) {
      const int count = (seed * 31 + round * 7) % 50;
      std::vector<int> done(count);
      pool.run(count, [&](int i) { done[i]++; });
      for (int i = 0; i < count; i++)
        if (done[i] != 1) std::abort();
    }
  };
  std::vector<std::thread> callers;
  for (int i = 0; i < 3; i++) callers.emplace_back(caller, i);
  for (auto& thread : callers) thread.join();
}

}  // namespace

int main() {
  const Kernels* tables[8];
  const int count = supported_kernels(tables, 8);
  for (int i = 0; i < count; i++) {
    for (int round = 0; round < 40; round++) {
      test_dense(*tables[i]);
      test_quantized(*tables[i]);
      test_attention<float>(*tables[i]);
      test_attention<_Float16>(*tables[i]);
      test_attention<int8_t>(*tables[i]);
      test_attention_full(*tables[i]);
      test_elementwise_norm_and_lstm(*tables[i]);
      test_trained_attention(*tables[i]);
      test_other_gradients(*tables[i]);
    }
    std::printf("%s: checked\n", tables[i]->name);
  }
  test_pool();
  std::printf("%s, %d failed\n", failures ? "failed" : "kernels and pool passed", failures);
  return failures != 0;
}
