// The Python bindings.
#include <nanobind/nanobind.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/variant.h>
#include <nanobind/stl/vector.h>

#include <string>
#include <vector>

#include "attention.h"
#include "block.h"
#include "linear.h"
#include "mapped_file.h"
#include "rows.h"
#include "training.h"

namespace nb = nanobind;
using namespace nb::literals;

NB_MODULE(_extension, m) {
  using namespace musicgen;
  m.def("linear", &linear, "x"_a, "w"_a, "scales"_a = nb::none(), "biases"_a = nb::none(), "bits"_a = 0,
        "norm_weight"_a = nb::none(), "norm_bias"_a = nb::none(), "eps"_a = 1e-5f, "bias"_a = nb::none(),
        "gelu"_a = false, "residual"_a = nb::none(), "int8_activations"_a = false);
  m.def("attention", &attention, "q"_a, "k"_a, "v"_a, "scale"_a, "mask"_a = nb::none(),
        "k_scales"_a = nb::none(), "v_scales"_a = nb::none());
  m.def("attention_full", &attention_full, "q"_a, "k"_a, "v"_a, "scale"_a);
  nb::class_<FusedNorm>(m, "FusedNorm")
      .def(nb::init<const mx::array&, const mx::array&, float>(), "weight"_a, "bias"_a, "eps"_a);
  nb::class_<FusedLinear>(m, "FusedLinear")
      .def(nb::init<const mx::array&, const OptionalArray&, const OptionalArray&, int, bool, const OptionalArray&>(),
           "w"_a, "scales"_a = nb::none(), "biases"_a = nb::none(), "bits"_a = 0, "int8_activations"_a = false,
           "bias"_a = nb::none());
  nb::class_<FusedCrossAttention>(m, "FusedCrossAttention")
      .def(nb::init<FusedNorm, FusedLinear, FusedLinear, const mx::array&, const mx::array&, const OptionalArray&>(),
           "norm"_a, "query"_a, "out"_a, "k"_a, "v"_a, "mask"_a = nb::none());
  nb::class_<FusedBlockStep>(m, "FusedBlockStep")
      .def(nb::init<int, FusedLinear, std::optional<FusedCrossAttention>, FusedNorm, FusedLinear, FusedLinear>(),
           "heads"_a, "out"_a, "cross_attention"_a.none(), "norm"_a, "linear1"_a, "linear2"_a)
      .def("__call__", &FusedBlockStep::operator(), "x"_a, "qkv"_a, "cache"_a, "scales"_a.none(), "starts"_a,
           "ends"_a);
  m.def("write_kv", &write_kv, "cache"_a, "qkv"_a, "positions"_a);
  m.def("quantize_rows_int8", &quantize_rows_int8, "x"_a);
  m.def("elu", &elu, "x"_a);
  m.def("gelu", &gelu, "x"_a);
  m.def("glu", &glu, "x"_a);
  m.def("group_norm", &group_norm, "x"_a, "gain"_a, "bias"_a, "eps"_a);
  m.def("lstm", &lstm, "projected"_a, "w"_a, "h"_a, "c"_a);
  m.def("attention_forward", &attention_forward, "q"_a, "k"_a, "v"_a, "scale"_a, "causal"_a = false,
        "mask"_a = nb::none());
  m.def("attention_backward", &attention_backward, "q"_a, "k"_a, "v"_a, "out"_a, "softmax"_a, "d_out"_a, "scale"_a,
        "causal"_a = false, "mask"_a = nb::none());
  m.def("gelu_forward", &gelu_forward, "x"_a);
  m.def("gelu_gradient", &gelu_gradient, "x"_a, "dy"_a);
  m.def("layer_norm", &layer_norm, "x"_a, "weight"_a, "bias"_a, "eps"_a);
  m.def("layer_norm_gradient", &layer_norm_gradient, "x"_a, "weight"_a, "dy"_a, "eps"_a);
  m.def("cross_entropy", &cross_entropy, "logits"_a, "targets"_a);
  m.def("cross_entropy_gradient", &cross_entropy_gradient, "logits"_a, "targets"_a, "log_sum"_a, "d_losses"_a);
  m.def("dropout", &dropout, "x"_a, "key"_a, "p"_a);
  m.def("map_tensors", &map_tensors, "path"_a, "places"_a);
  m.def("empty", &empty, "shape"_a, "dtype"_a);
  m.def("instruction_set", [] { return std::string(kernels().name); });
  m.def("instruction_sets", [] {
    const Kernels* tables[8];
    std::vector<std::string> names;
    for (int i = 0, n = supported_kernels(tables, 8); i < n; i++) names.emplace_back(tables[i]->name);
    return names;
  });
}
