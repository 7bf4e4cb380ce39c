"""A quantized layer whose weights lie in tiles, for the native extension."""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn

GROUP_SIZE = 64
"""Weights that share a scale, in the quantized layers that the extension computes."""
TILE = 16
"""Outputs whose quantized weights lie side by side: a processor multiplies them at once."""


class TiledQuantizedLinear(nn.Module):
    """`nn.QuantizedLinear` with weights, scales and biases in tiles `[outputs / TILE, n, TILE]`.

    `ops.linear.linear` computes it through the extension; called by itself it takes MLX's slow way.
    """

    int8_activations = False
    """Whether its inputs are quantized to int8 too."""

    def __init__(
        self,
        weight: mx.array,
        scales: mx.array,
        biases: mx.array,
        bias: mx.array | None,
        group_size: int,
        bits: int,
    ) -> None:
        """The first three are in tiles already; see `from_linear`."""
        super().__init__()
        self.weight, self.scales, self.biases = weight, scales, biases
        if bias is not None:
            self.bias = bias
        self.group_size, self.bits = group_size, bits

    @staticmethod
    def supports(layer: nn.Module) -> bool:
        return (
            type(layer) is nn.QuantizedLinear
            and layer.weight.shape[0] % TILE == 0
            and layer.group_size == GROUP_SIZE
            and layer.bits in (4, 8)
            and layer.scales.dtype in (mx.float16, mx.float32)
        )

    @classmethod
    def from_linear(cls, layer: nn.QuantizedLinear) -> TiledQuantizedLinear:
        """The same layer; its arrays are copied, at the latest when they are used."""
        return cls(
            _to_tiles(layer.weight),
            _to_tiles(layer.scales),
            _to_tiles(layer["biases"]),
            layer.get("bias"),
            layer.group_size,
            layer.bits,
        )

    def to_linear(self) -> nn.QuantizedLinear:
        """The same layer, in MLX's order; its arrays are copied, at the latest when they are used."""
        layer = nn.QuantizedLinear.__new__(nn.QuantizedLinear)  # without the random weights of its own
        nn.Module.__init__(layer)
        layer.group_size, layer.bits, layer.mode = self.group_size, self.bits, "affine"
        layer.weight, layer.scales, layer.biases = (
            _from_tiles(array) for array in (self.weight, self.scales, self.biases)
        )
        if "bias" in self:
            layer.bias = self.bias
        return layer

    def __call__(self, x: mx.array) -> mx.array:
        """`[..., inputs]` → `[..., outputs]`."""
        weight, scales, biases = (_from_tiles(array) for array in (self.weight, self.scales, self.biases))
        y = mx.quantized_matmul(x, weight, scales, biases, group_size=self.group_size, bits=self.bits)
        return y + self.bias if "bias" in self else y


def _to_tiles(array: mx.array) -> mx.array:
    """`[outputs, n]` → `[outputs / TILE, n, TILE]`."""
    return mx.contiguous(array.reshape(-1, TILE, array.shape[1]).swapaxes(1, 2))


def _from_tiles(tiles: mx.array) -> mx.array:
    """`[outputs / TILE, n, TILE]` → `[outputs, n]`."""
    return mx.contiguous(tiles.swapaxes(1, 2).reshape(-1, tiles.shape[1]))
