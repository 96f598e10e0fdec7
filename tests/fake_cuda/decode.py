"""Record the decoding of a backbone on the stand-in device, and print what it counted of a step: run by a test.

run.sh decode.py dit_ar|alitok|llamagen
"""

from __future__ import annotations

import ctypes
import json
import sys
from typing import Any

import torch
from torch._dynamo.utils import counters

from rearkit.components.backbones.dit_ar import DiTAR
from rearkit.components.backbones.dit_ar_blocks import DiTARSettings
from rearkit.contracts import TokenSpace
from rearkit.sampling.graphs import GraphedBackbone

# Positions that are recorded; each step after the first two is like the one before.
POSITIONS = 6


def published(name: str) -> Any:
    """A backbone of a published size: S of DiTAR, B of the others."""
    space = TokenSpace(num_tokens=256, codebook_size=1024, num_classes=1000)
    if name == "dit_ar":
        return DiTAR(DiTARSettings(), space)
    if name == "alitok":
        from rearkit_alitok.backbone import AliTokAR, AliTokARSettings

        return AliTokAR(AliTokARSettings(), TokenSpace(273, 4096, 1000))
    from rearkit_llamagen.backbone import LlamaGenGPT, LlamaGenGPTSettings

    return LlamaGenGPT(LlamaGenGPTSettings(), space)


@torch.no_grad()
def main(name: str) -> None:
    """Record a few steps, and count those of the last two."""
    counter = ctypes.CDLL(None)
    backbone = published(name).cuda().bfloat16().eval()
    classes = torch.arange(128, device="cuda")
    seen = []
    for positions in (POSITIONS, POSITIONS + 1):
        counter.fake_reset()
        GraphedBackbone(backbone, positions, fuse=True).start(classes)
        seen.append({prefix: counter.fake_count(prefix.encode()) for prefix in ("capk:", "ERROR:", "capk:cudnn")})
    print(
        json.dumps(
            {
                "kernels": seen[1]["capk:"] - seen[0]["capk:"],
                "refused": sum(one["ERROR:"] for one in seen),
                "cudnn": sum(one["capk:cudnn"] for one in seen),
                "compiled": counters["stats"]["unique_graphs"],
            }
        )
    )


if __name__ == "__main__":
    main(sys.argv[1])
