// Operations over rows of values, and the LSTM: what the codec needs, and networks that listen.
#pragma once
#include <cmath>
#include <string>
#include <utility>

#include "operation.h"

namespace musicgen {

class RoundPrimitive : public CpuPrimitive {
 public:
  using CpuPrimitive::CpuPrimitive;
  const char* name() const override { return "MusicgenRound"; }
  bool is_equivalent(const mx::Primitive&) const override { return true; }

  void eval_cpu(const std::vector<mx::array>& inputs, std::vector<mx::array>& outputs) override {
    for (auto& out : outputs) out.set_data(mx::allocator::malloc(out.nbytes()));
    const float* x = inputs[0].data<float>();
    int8_t* codes = outputs[0].data<int8_t>();
    float* scales = outputs[1].data<float>();
    const size_t size = inputs[0].shape(-1), rows = inputs[0].size() / size;
    mx::cpu::get_command_encoder(stream()).dispatch([=]() {
      for (size_t row = 0; row < rows; row++)
        kernels().round_row(x + row * size, static_cast<int>(size), codes + row * size, scales + row);
    });
  }
};

using RowKernel = void (*Kernels::*)(const float*, float*, size_t, int);

// A kernel over rows of `size` results, made of `size` or twice as many values.
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
    make_room(out, in);
    if (out.size() == 0) return;
    const float* x = in.data<float>();
    float* y = out.data<float>();
    const size_t rows = out.size() / size_, inputs_of_row = in.size() / rows;
    mx::cpu::get_command_encoder(stream()).dispatch([=, size = size_, kernel = kernels().*kernel_]() {
      const size_t piece = std::max(1, 16384 / size);
      Pool::get().run(static_cast<int>((rows + piece - 1) / piece), [&](int i) {
        const size_t row = i * piece;
        kernel(x + row * inputs_of_row, y + row * size, std::min(piece, rows - row), size);
      });
    });
  }

 private:
  const char* name_;
  RowKernel kernel_;
  int size_;
};

// All of each x[n] normalised together, then each channel scaled and shifted.
class GroupNormPrimitive : public CpuPrimitive {
 public:
  GroupNormPrimitive(mx::Stream stream, float eps) : CpuPrimitive(stream), eps_(eps) {}
  const char* name() const override { return "MusicgenGroupNorm"; }
  bool is_equivalent(const mx::Primitive& other) const override {
    return static_cast<const GroupNormPrimitive&>(other).eps_ == eps_;
  }

  void eval_cpu(const std::vector<mx::array>& inputs, std::vector<mx::array>& outputs) override {
    auto& out = outputs[0];
    make_room(out, inputs[0]);
    if (out.size() == 0) return;
    const float* x = inputs[0].data<float>();
    const float* gain = inputs[1].data<float>();
    const float* bias = inputs[2].data<float>();
    float* y = out.data<float>();
    const int channels = out.shape(-1);
    const size_t groups = out.shape(0), size = out.size() / groups;
    mx::cpu::get_command_encoder(stream()).dispatch([=, eps = eps_]() {
      // Pieces of whole rows that fit the cache; gains and biases side by side for all of a piece.
      const size_t piece = static_cast<size_t>(channels) * std::max(1, 4096 / channels);
      const size_t pieces = (size + piece - 1) / piece;
      float* gains = scratch<float>(2 * piece + 2 * groups * pieces + 2 * groups);
      float *biases = gains + piece, *means = biases + piece, *squares = means + groups * pieces;
      float *mean = squares + groups * pieces, *factor = mean + groups;
      for (size_t i = 0; i < piece; i++) {
        gains[i] = gain[i % channels];
        biases[i] = bias[i % channels];
      }
      const auto length = [&](size_t i) { return static_cast<int>(std::min(piece, size - i % pieces * piece)); };
      const auto start = [&](size_t i) { return i / pieces * size + i % pieces * piece; };
      Pool& pool = Pool::get();
      const int count = static_cast<int>(groups * pieces);
      pool.run(count, [&](int i) { kernels().moments(x + start(i), length(i), means + i, squares + i); });
      for (size_t n = 0; n < groups; n++) {
        double total = 0, distances = 0;
        for (size_t i = n * pieces; i < (n + 1) * pieces; i++) total += static_cast<double>(means[i]) * length(i);
        const double middle = total / size;
        for (size_t i = n * pieces; i < (n + 1) * pieces; i++)
          distances += squares[i] + (means[i] - middle) * (means[i] - middle) * length(i);
        mean[n] = static_cast<float>(middle);
        factor[n] = static_cast<float>(1 / std::sqrt(distances / size + eps));
      }
      pool.run(count, [&](int i) {
        const size_t at = start(i), n = i / pieces;
        kernels().scale(x + at, gains, biases, y + at, length(i), mean[n], factor[n]);
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
      const int piece = std::max(16, (dim + pool.size() * 2 - 1) / (pool.size() * 2));
      const int pieces = (dim + piece - 1) / piece;
      for (int t = 0; t < steps; t++)
        pool.run(pieces, [&](int i) {
          for (int b = 0; b < batch; b++) {
            const size_t row = static_cast<size_t>(b) * steps + t;
            LstmStep step{dim, w, projected + row * 4 * dim,
                          t ? out + (row - 1) * dim : h0 + static_cast<size_t>(b) * dim,
                          c + static_cast<size_t>(b) * dim, out + row * dim};
            kernels().lstm(step, i * piece, std::min(dim, (i + 1) * piece));
          }
        });
    });
  }
};

// The values in 8 bits, and the scale of each row of the last axis.
inline std::vector<mx::array> round_rows(const mx::array& x) {
  require(x.dtype() == mx::float32 && x.ndim() > 1 && x.shape(-1) > 0, "x must be float32 [..., size]");
  const auto stream = cpu();
  auto rows = x.shape();
  rows.pop_back();
  return mx::array::make_arrays({x.shape(), rows}, {mx::int8, mx::float32}, std::make_shared<RoundPrimitive>(stream),
                                {row_contiguous(x, stream)});
}

// A kernel over the last axis of x, or over each value for itself: of rows of 1.
inline mx::array over_rows(const mx::array& x, mx::Shape shape, const char* name, RowKernel kernel, int size) {
  require(x.dtype() == mx::float32, "x must be float32");
  const auto stream = cpu();
  return mx::array(std::move(shape), mx::float32, std::make_shared<RowsPrimitive>(stream, name, kernel, size),
                   std::vector<mx::array>{row_contiguous(x, stream)});
}

inline mx::array elu(const mx::array& x) { return over_rows(x, x.shape(), "MusicgenElu", &Kernels::elu, 1); }

inline mx::array gelu(const mx::array& x) { return over_rows(x, x.shape(), "MusicgenGelu", &Kernels::gelu, 1); }

// The first half of the last axis times the sigmoid of the second.
inline mx::array glu(const mx::array& x) {
  require(x.ndim() > 0 && x.shape(-1) > 0 && x.shape(-1) % 2 == 0, "x must be [..., values and as many gates]");
  auto shape = x.shape();
  shape.back() /= 2;
  const int size = shape.back();
  return over_rows(x, std::move(shape), "MusicgenGlu", &Kernels::glu, size);
}

// x [N, ..., channels] with a mean of 0 and a deviation of 1 for each x[n], times gain, plus bias.
inline mx::array group_norm(const mx::array& x, const mx::array& gain, const mx::array& bias, float eps) {
  require(x.dtype() == mx::float32 && x.ndim() > 1 && x.shape(-1) > 0, "x must be float32 [N, ..., channels]");
  const auto stream = cpu();
  std::vector<mx::array> arrays{row_contiguous(x, stream)};
  for (const auto& part : {gain, bias}) {
    require(part.dtype() == mx::float32 && part.shape() == mx::Shape({x.shape(-1)}), "gain or bias doesn't fit x");
    arrays.push_back(row_contiguous(part, stream));
  }
  return mx::array(x.shape(), mx::float32, std::make_shared<GroupNormPrimitive>(stream, eps), std::move(arrays));
}

// Hidden states [B, T, dim] and the last cell state [B, dim].
inline std::vector<mx::array> lstm(const mx::array& projected, const mx::array& w, const mx::array& h, const mx::array& c) {
  require(projected.dtype() == mx::float32 && projected.ndim() == 3, "projected must be float32 [B, T, 4 * dim]");
  require(w.dtype() == mx::float32 && w.ndim() == 2 && w.shape(0) == 4 * w.shape(1) &&
              w.shape(0) == projected.shape(2),
          "w must be float32 [4 * dim, dim]");
  const int batch = projected.shape(0), steps = projected.shape(1), dim = w.shape(1);
  const auto stream = cpu();
  std::vector<mx::array> arrays{row_contiguous(projected, stream), row_contiguous(w, stream)};
  for (const auto& state : {h, c}) {
    require(state.dtype() == mx::float32 && state.shape() == mx::Shape({batch, dim}), "states must be [B, dim]");
    arrays.push_back(row_contiguous(state, stream));
  }
  return mx::array::make_arrays({{batch, steps, dim}, {batch, dim}}, {mx::float32, mx::float32},
                                std::make_shared<LstmPrimitive>(stream), arrays);
}

}  // namespace musicgen
