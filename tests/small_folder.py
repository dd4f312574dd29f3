"""A folder of generated pictures of three kinds, and settings with which clustering it takes seconds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

COLOURS = ((220, 40, 40), (40, 220, 40), (40, 40, 220))
SHORT = {"moco.train_cfg.max_epochs": 2, "scan-moco.train_cfg.max_epochs": 2, "scan-moco.model.head.num_heads": 2}


def draw(folder: Path, count: int, sizes: tuple[int, ...] = (40, 44, 48)) -> Path:
    """Draw so many pictures of coloured discs on noise, colour by colour, in differing sizes."""
    generator = np.random.default_rng(0)
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        noise = (generator.random((sizes[i % len(sizes)], sizes[0] + 8, 3)) * 60).astype(np.uint8)
        image = Image.fromarray(noise)
        x, y = (int(v) for v in generator.integers(4, 18, 2))
        ImageDraw.Draw(image).ellipse([x, y, x + 18, y + 18], fill=COLOURS[i % 3])
        image.save(folder / f"{i:03d}.png")
    return folder
