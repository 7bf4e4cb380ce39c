// Row-wise operations, group norm and the LSTM, for the codec and the audio encoders.
#pragma once
#include <cmath>
#include <string>
#include <utility>

#include "operation.h"

namespace musicgen {

class QuantizeRowsPrimitive : public CpuPrimitive {
 public:
  using CpuPrimitive::CpuPrimitive;
  const char* name() const override { return "MusicgenQuantizeRows"; }
  bool is_equivalent(const mx::Primitive&) const override { return true; }

  void eval_cpu(const std::vector<mx::array>& inputs, std::vector<mx::array>& outputs) override {
    for (auto& out : outputs) out.set_data(mx::allocator::malloc(out.nbytes()));
    const float* x = inputs[0].data<float>();
    int8_t* quantized = outputs[0].data<int8_t>();
    float* scales = outputs[1].data<float>();
    const size_t size = inputs[0].shape(-1), rows = inputs[0].size() / size;
    mx::cpu::get_command_encoder(stream()).dispatch([=]() {
      for (size_t row = 0; row < rows; row++)
        kernels().quantize_row_int8(x + row * size, static_cast<int>(size), quantized + row * size, scales + row);
    });
  }
};

using RowKernel = void (*Kernels::*)(const float*, float*, size_t, int);

// A kernel over rows with `size` outputs each, from `size` or 2 * `size` inputs.
class RowsPrimitive : public CpuPrimitive {
 public:
  RowsPrimitive(mx::Stream stream, const char* name, RowKernel kernel, int size)
      : CpuPrimitive(stream), name_(name), kernel_(kernel), size_(size) {}
  const char* name() const override { return name_; }
  bool is_equivalent(const mx::Primitive& other) const override {
    const auto& o = static_cast<const RowsPrimitive&>(other);
    return o.kernel_ == kernel_ && o.size_ == size_;
  }

  void eval_cpu(const std::vector<mx::array>& inputs, std::vector<mx::array>& outputs) override {
    const mx::array& in = inputs[0];
    auto& out = outputs[0];
    donate_or_allocate(out, in);
    if (out.size() == 0) return;
    const float* x = in.data<float>();
    float* y = out.data<float>();
    const size_t rows = out.size() / size_, row_inputs = in.size() / rows;
    mx::cpu::get_command_encoder(stream()).dispatch([=, size = size_, kernel = kernels().*kernel_]() {
      const size_t chunk = std::max(1, 16384 / size);
      Pool::get().run(static_cast<int>((rows + chunk - 1) / chunk), [&](int i) {
        const size_t row = i * chunk;
        kernel(x + row * row_inputs, y + row * size, std::min(chunk, rows - row), size);
      });
    });
  }

 private:
  const char* name_;
  RowKernel kernel_;
  int size_;
};

// Normalizes each x[n] as a whole, then scales and shifts each channel.
class GroupNormPrimitive : public CpuPrimitive {
 public:
  GroupNormPrimitive(mx::Stream stream, float eps) : CpuPrimitive(stream), eps_(eps) {}
  const char* name() const override { return "MusicgenGroupNorm"; }
  bool is_equivalent(const mx::Primitive& other) const override {
    return static_cast<const GroupNormPrimitive&>(other).eps_ == eps_;
  }

  void eval_cpu(const std::vector<mx::array>& inputs, std::vector<mx::array>& outputs) override {
    auto& out = outputs[0];
    donate_or_allocate(out, inputs[0]);
    if (out.size() == 0) return;
    const float* x = inputs[0].data<float>();
    const float* gain = inputs[1].data<float>();
    const float* bias = inputs[2].data<float>();
    float* y = out.data<float>();
    const int channels = out.shape(-1);
    const size_t groups = out.shape(0), size = out.size() / groups;
    mx::cpu::get_command_encoder(stream()).dispatch([=, eps = eps_]() {
      // Chunks of whole rows that fit the CPU cache; gains and biases are repeated to a chunk's length.
      const size_t chunk = static_cast<size_t>(channels) * std::max(1, 4096 / channels);
      const size_t chunks = (size + chunk - 1) / chunk;
      float* gains = scratch<float>(2 * chunk + 2 * groups * chunks + 2 * groups);
      float *biases = gains + chunk, *means = biases + chunk, *squared_deviations = means + groups * chunks;
      float *mean = squared_deviations + groups * chunks, *inv_std = mean + groups;
      for (size_t i = 0; i < chunk; i++) {
        gains[i] = gain[i % channels];
        biases[i] = bias[i % channels];
      }
      const auto length = [&](size_t i) { return static_cast<int>(std::min(chunk, size - i % chunks * chunk)); };
      const auto start = [&](size_t i) { return i / chunks * size + i % chunks * chunk; };
      Pool& pool = Pool::get();
      const int count = static_cast<int>(groups * chunks);
      pool.run(count, [&](int i) { kernels().moments(x + start(i), length(i), means + i, squared_deviations + i); });
      for (size_t n = 0; n < groups; n++) {
        double total = 0, total_squared = 0;
        for (size_t i = n * chunks; i < (n + 1) * chunks; i++) total += static_cast<double>(means[i]) * length(i);
        const double average = total / size;
        for (size_t i = n * chunks; i < (n + 1) * chunks; i++)
          total_squared += squared_deviations[i] + (means[i] - average) * (means[i] - average) * length(i);
        mean[n] = static_cast<float>(average);
        inv_std[n] = static_cast<float>(1 / std::sqrt(total_squared / size + eps));
      }
      pool.run(count, [&](int i) {
        const size_t at = start(i), n = i / chunks;
        kernels().normalize(x + at, gains, biases, y + at, length(i), mean[n], inv_std[n]);
      });
    });
  }

 private:
  float eps_;
};

class LstmPrimitive : public CpuPrimitive {
 public:
  using CpuPrimitive::CpuPrimitive;
  const char* name() const override { return "MusicgenLstm"; }
  bool is_equivalent(const mx::Primitive&) const override { return true; }

  void eval_cpu(const std::vector<mx::array>& inputs, std::vector<mx::array>& outputs) override {
    for (auto& out : outputs) out.set_data(mx::allocator::malloc(out.nbytes()));
    const int batch = inputs[0].shape(0), steps = inputs[0].shape(1), dim = inputs[1].shape(1);
    const float* projected = inputs[0].data<float>();
    const float* w = inputs[1].data<float>();
    const float* h0 = inputs[2].data<float>();
    const float* c0 = inputs[3].data<float>();
    float* out = outputs[0].data<float>();
    float* c = outputs[1].data<float>();
    mx::cpu::get_command_encoder(stream()).dispatch([=]() {
      Pool& pool = Pool::get();
      std::copy(c0, c0 + static_cast<size_t>(batch) * dim, c);
      const int chunk = std::max(16, (dim + pool.size() * 2 - 1) / (pool.size() * 2));
      const int chunks = (dim + chunk - 1) / chunk;
      for (int t = 0; t < steps; t++)
        pool.run(chunks, [&](int i) {
          for (int b = 0; b < batch; b++) {
            const size_t row = static_cast<size_t>(b) * steps + t;
            LstmArgs args{dim, w, projected + row * 4 * dim,
                          t ? out + (row - 1) * dim : h0 + static_cast<size_t>(b) * dim,
                          c + static_cast<size_t>(b) * dim, out + row * dim};
            kernels().lstm(args, i * chunk, std::min(dim, (i + 1) * chunk));
          }
        });
    });
  }
};

// x [..., size] float32 → int8 [..., size] and one scale per row, float32 [...].
inline std::vector<mx::array> quantize_rows_int8(const mx::array& x) {
  require(x.dtype() == mx::float32 && x.ndim() > 1 && x.shape(-1) > 0, "x must be float32 [..., size]");
  const auto stream = cpu_stream();
  auto rows = x.shape();
  rows.pop_back();
  return mx::array::make_arrays({x.shape(), rows}, {mx::int8, mx::float32},
                                std::make_shared<QuantizeRowsPrimitive>(stream), {row_contiguous(x, stream)});
}

// Applies a kernel over the last axis of x, or elementwise (size 1).
inline mx::array apply_rows(const mx::array& x, mx::Shape shape, const char* name, RowKernel kernel, int size) {
  require(x.dtype() == mx::float32, "x must be float32");
  const auto stream = cpu_stream();
  return mx::array(std::move(shape), mx::float32, std::make_shared<RowsPrimitive>(stream, name, kernel, size),
                   std::vector<mx::array>{row_contiguous(x, stream)});
}

inline mx::array elu(const mx::array& x) { return apply_rows(x, x.shape(), "MusicgenElu", &Kernels::elu, 1); }

inline mx::array gelu(const mx::array& x) { return apply_rows(x, x.shape(), "MusicgenGelu", &Kernels::gelu, 1); }

// The first half of the last axis times the sigmoid of the second.
inline mx::array glu(const mx::array& x) {
  require(x.ndim() > 0 && x.shape(-1) > 0 && x.shape(-1) % 2 == 0, "x must be [..., 2 * size]");
  auto shape = x.shape();
  shape.back() /= 2;
  const int size = shape.back();
  return apply_rows(x, std::move(shape), "MusicgenGlu", &Kernels::glu, size);
}

// x [N, ..., channels], each x[n] normalized to mean 0 and variance 1, times gain [channels] plus bias [channels].
inline mx::array group_norm(const mx::array& x, const mx::array& gain, const mx::array& bias, float eps) {
  require(x.dtype() == mx::float32 && x.ndim() > 1 && x.shape(-1) > 0, "x must be float32 [N, ..., channels]");
  const auto stream = cpu_stream();
  std::vector<mx::array> arrays{row_contiguous(x, stream)};
  for (const auto& part : {gain, bias}) {
    require(part.dtype() == mx::float32 && part.shape() == mx::Shape({x.shape(-1)}), "gain or bias doesn't fit x");
    arrays.push_back(row_contiguous(part, stream));
  }
  return mx::array(x.shape(), mx::float32, std::make_shared<GroupNormPrimitive>(stream, eps), std::move(arrays));
}

// projected [B, T, 4 * dim], w [4 * dim, dim], h and c [B, dim] → hidden states [B, T, dim] and the last cell state
// [B, dim].
inline std::vector<mx::array> lstm(const mx::array& projected, const mx::array& w, const mx::array& h,
                                   const mx::array& c) {
  require(projected.dtype() == mx::float32 && projected.ndim() == 3, "projected must be float32 [B, T, 4 * dim]");
  require(w.dtype() == mx::float32 && w.ndim() == 2 && w.shape(0) == 4 * w.shape(1) &&
              w.shape(0) == projected.shape(2),
          "w must be float32 [4 * dim, dim]");
  const int batch = projected.shape(0), steps = projected.shape(1), dim = w.shape(1);
  const auto stream = cpu_stream();
  std::vector<mx::array> arrays{row_contiguous(projected, stream), row_contiguous(w, stream)};
  for (const auto& state : {h, c}) {
    require(state.dtype() == mx::float32 && state.shape() == mx::Shape({batch, dim}), "states must be [B, dim]");
    arrays.push_back(row_contiguous(state, stream));
  }
  return mx::array::make_arrays({{batch, steps, dim}, {batch, dim}}, {mx::float32, mx::float32},
                                std::make_shared<LstmPrimitive>(stream), arrays);
}

}  // namespace musicgen
