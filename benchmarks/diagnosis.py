"""`diagnose` of torchvision's classifiers beside one forward and one backward pass of their data.

    OMP_NUM_THREADS=1 python benchmarks/diagnosis.py [NAMES]

Random images of the size each is made for, ten classes, weights as drawn. The goal is
diagnose ≤ 3 × (forward + backward) + 5 s. Times are of the processor, of one process, so that
others on the machine disturb them less; the ratio is within one run. IMAGES=16 takes fewer
than 64, where memory asks. Saves results/diagnosis.json: network × seconds × what was given; those
named replace their rows in it.
"""

from __future__ import annotations

import json
import os
import sys
import time

import torch
import torchvision
from problems import RESULTS, save
from torch.nn import functional as F

import latephase

NETWORKS = (
    "alexnet", "vgg11", "resnet18", "resnet50", "densenet121", "mobilenet_v2",
    "mobilenet_v3_small", "mobilenet_v3_large", "efficientnet_b0", "efficientnet_b1",
    "convnext_tiny", "vit_b_16", "swin_t", "shufflenet_v2_x1_0", "squeezenet1_1", "mnasnet1_0",
    "regnet_y_400mf", "resnext50_32x4d", "googlenet", "maxvit_t",
)  # fmt: skip
SIZES = {"efficientnet_b1": 240}
TIMES, MORE = 3.0, 5.0


def measured(name: str, images: int) -> dict:
    """Return seconds, their ratio, and the fields that were given."""
    torch.manual_seed(0)
    options = {"aux_logits": False} if name == "googlenet" else {}
    network = getattr(torchvision.models, name)(weights=None, num_classes=10, **options).eval()
    size = SIZES.get(name, 224)
    x, y = torch.randn(images, 3, size, size), torch.arange(images) % 10
    passes = []
    # The first pays for what is set up once.
    for _ in range(2):
        begin = time.process_time()
        F.cross_entropy(network(x), y).backward()
        passes.append(time.process_time() - begin)
    begin = time.process_time()
    found = latephase.diagnose(network, x, y)
    seconds = time.process_time() - begin
    return {
        "passes": passes[1],
        "diagnose": seconds,
        "ratio": seconds / passes[1],
        "goal_met": seconds <= TIMES * passes[1] + MORE,
        "layers": len(found.layers),
        "alignment": found.alignment,
        "alignment_error": found.alignment_error,
        "missing": found.missing,
    }


def main() -> None:
    """Measure the networks named behind the command, whose rows are replaced, or all."""
    images, path = int(os.environ.get("IMAGES", "64")), RESULTS / "diagnosis.json"
    known = json.loads(path.read_text(encoding="utf8"))["networks"] if sys.argv[1:] else {}
    # What is loaded on first use is not to be timed.
    _ = latephase.diagnose
    for name in sys.argv[1:] or NETWORKS:
        began = time.perf_counter()
        known[name] = row = measured(name, images)
        row |= {"images": images, "duration": time.perf_counter() - began}
        print(
            f"{name:<20} passes {row['passes']:7.2f} s, diagnose {row['diagnose']:7.2f} s, "
            f"ratio {row['ratio']:5.2f}, goal {'met' if row['goal_met'] else 'missed'}",
            flush=True,
        )
        save(
            "diagnosis", {"networks": known, "duration": sum(r["duration"] for r in known.values())}
        )


if __name__ == "__main__":
    main()
