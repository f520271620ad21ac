"""What the default after training costs, by arithmetic, for models of three sizes.

Run: python -m benchmarks.gpu.arithmetic
"""

from __future__ import annotations

import sys
from dataclasses import dataclass

from hf_headprune.pipeline.cost_path import CALIBRATION, DEEP, DENSITIES

LENGTH, HELD_OUT = 128, 2000
PLANS = 1 + len(DENSITIES)  # the whole model is measured, too
FLOAT32, GIB = 4, 2**30
RATE = 20e12  # floating-point operations per second that a device reaches in practice, not its peak


@dataclass(frozen=True)
class Size:
    """Sizes of a model: parameters in all, layers, residual stream, head columns, FFN units, and FFN matrices."""

    name: str
    parameters: float
    layers: int
    hidden: int
    columns: int
    ffn: int
    matrices: int = 2

    @property
    def linear_weights(self) -> int:
        """Weights of the attention and FFN matrices, where query, key, value and output are equally large."""
        return self.layers * (4 * self.hidden * self.columns + self.matrices * self.hidden * self.ffn)

    @property
    def moments_gib(self) -> float:
        """Second moments of what each output projection is given (half of a symmetric matrix) and of its gradient."""
        entries = (self.columns**2 + self.ffn**2) / 2 + 2 * self.hidden**2
        return FLOAT32 * self.layers * entries / GIB

    @property
    def activations_gib(self) -> float:
        """What a refit in order holds while all its examples wait at one module: its inputs, and both streams."""
        return FLOAT32 * LENGTH * CALIBRATION / 2 * (self.ffn + 3 * self.hidden) / GIB

    @property
    def hours(self) -> float:
        """Forward and backward passes of the calibration, and what each plan takes to refit and to test, at `RATE`."""
        tokens = LENGTH * ((3 + len(DEEP)) * CALIBRATION + PLANS * HELD_OUT)
        return 2 * self.linear_weights * tokens / RATE / 3600


SIZES = (
    Size("BERT-base", 110e6, 12, 768, 768, 3072),
    Size("BERT-large", 335e6, 24, 1024, 1024, 4096),
    Size("Llama-8B (if all heads had keys of their own)", 8.0e9, 32, 4096, 4096, 14336, 3),
)


def main() -> None:
    """Prints a table for docs/costs.md."""
    names = (
        "model",
        "linear weights",
        "weights, bf16",
        "two copies more",
        "moments, on the CPU",
        "activations of a refit",
        "passes after training",
    )
    sys.stdout.write(f"| {' | '.join(names)} |\n{'|---' * len(names)}|\n")
    for size in SIZES:
        weights = 2 * size.parameters / GIB
        sys.stdout.write(
            f"| {size.name} | {size.linear_weights / 1e6:,.0f} M | {weights:.1f} GiB | {2 * weights:.1f} GiB | "
            f"{size.moments_gib:.1f} GiB | {size.activations_gib:.1f} GiB | {60 * size.hours:.1f} minutes |\n"
        )


if __name__ == "__main__":
    main()
