"""Where the work is done, and how exactly: a GPU or the processor, half precision or single."""

from __future__ import annotations

import torch


def device() -> torch.device:
    """Where models are trained and utterances scored: the GPU, if there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def has_bf16(device: torch.device | str) -> bool:
    """Whether the processor multiplies bfloat16 natively."""
    if torch.device(device).type == "cpu":
        able = torch.cpu.get_capabilities()
        return bool(able.get("avx512_bf16", False) or able.get("amx_bf16", False))
    return torch.cuda.is_bf16_supported(including_emulation=False)


def autocast(device: torch.device | str):
    """bf16 for matrix products where the hardware has it, else float32."""
    kind = torch.device(device).type
    return torch.autocast(kind, torch.bfloat16, enabled=has_bf16(device))
