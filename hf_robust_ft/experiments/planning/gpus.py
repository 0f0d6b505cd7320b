"""What accelerators can do at most, as their makers state it."""

from dataclasses import dataclass

from hf_robust_ft.provenance.choices import alike, did_you_mean


@dataclass(frozen=True)
class Gpu:
    """Peak rates of dense matrix products, in TFLOPS (the makers' headline figures with sparsity are twice these).

    Args:
        name: in full.
        half: bfloat16 and float16 with float32 accumulation.
        tf32: None where there is no such mode.
        fp32: without tensor cores.
        source: where the maker states them.
        bf16: whether `half` holds for bfloat16 too.
    """

    name: str
    half: float
    tf32: float | None
    fp32: float
    source: str
    bf16: bool = True

    def peak(self, precision: str) -> float:
        """TFLOPS in "bf16", "fp16", "tf32" or "fp32".

        Raises:
            ValueError: the device has no such mode.
        """
        rate = {"bf16": self.half if self.bf16 else None, "fp16": self.half, "tf32": self.tf32, "fp32": self.fp32}
        if rate[precision] is None:
            raise ValueError(f"{self.name} has no fast {precision}: plan with --fp16 true, or another --gpu.")
        return rate[precision]


_HOPPER = "NVIDIA H100 Tensor Core GPU data sheet and architecture white paper"
GPUS = {
    "h100": Gpu("NVIDIA H100 SXM", 989.4, 494.7, 66.9, _HOPPER),
    "h100_pcie": Gpu("NVIDIA H100 PCIe", 756.0, 378.0, 51.0, _HOPPER),
    "h200": Gpu("NVIDIA H200 SXM", 989.0, 494.0, 67.0, "NVIDIA H200 Tensor Core GPU data sheet"),
    "a100": Gpu("NVIDIA A100", 312.0, 156.0, 19.5, "NVIDIA A100 Tensor Core GPU data sheet"),
    "a10": Gpu("NVIDIA A10", 125.0, 62.5, 31.2, "NVIDIA A10 data sheet"),
    "l4": Gpu("NVIDIA L4", 121.0, 60.0, 30.3, "NVIDIA L4 data sheet (halved: it states rates with sparsity)"),
    "rtx4090": Gpu("NVIDIA GeForce RTX 4090", 165.2, 82.6, 82.6, "NVIDIA Ada GPU architecture white paper"),
    "rtx3090": Gpu("NVIDIA GeForce RTX 3090", 71.0, 35.6, 35.6, "NVIDIA Ampere GA102 white paper"),
    "v100": Gpu("NVIDIA V100 SXM2", 125.0, None, 15.7, "NVIDIA V100 data sheet", bf16=False),
    "t4": Gpu("NVIDIA T4", 65.0, None, 8.1, "NVIDIA T4 data sheet", bf16=False),
}


def get_gpu(name: str) -> Gpu:
    """Look a device up.

    Raises:
        ValueError: unknown; the nearest names come first.
    """
    if name.lower() not in GPUS:
        near = alike(name, GPUS, 2)
        raise ValueError(f"Unknown gpu {name!r}.{did_you_mean(near)} Known: {', '.join(GPUS)}.")
    return GPUS[name.lower()]
