"""A step of TEMI, against its bare matrix products.

A step is what training does with a batch of pairs once their features are there: teachers, students, loss, gradients,
AdamW, and the update of teachers and marginals. The floor is the matrix products of the layers alone, of the same
shapes: teachers forward, students forward, and of the students the gradients of all weights and of all but the first
layer's input; no bias, GELU, normalisation, softmax, optimiser or average.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from odc.heads import TEMIHead
from odc.memory import LabelStore
from odc.structures import Batch, LocalComm, make_generator

from .timing import Found, in_turn


def temi_step(tiny: bool, bar: float) -> Found:
    """Return how often the bare products a step takes, of 512 pairs, 16 heads and 43 clusters."""
    H, D, K, B = (2, 16, 5, 16) if tiny else (16, 1280, 43, 512)
    torch.manual_seed(0)
    head = TEMIHead(D, K, num_heads=H, batch_size=B)
    head.epochs.set(2)  # the directions train
    optimizer = torch.optim.AdamW(head.student.parameters(), lr=1e-3, fused=True)
    z = torch.randn(B, 2, D, generator=make_generator(0, "z"))
    none = torch.zeros(B, dtype=torch.int64)
    batches = {"pairs": Batch(none, none[:, None].expand(-1, 2), none, none[:, None], {"extract": z})}
    labels, comm = LabelStore(0).view(), LocalComm()

    def step() -> None:
        head.loss(batches, labels, make_generator(0), comm).train["loss"].backward()
        optimizer.step()
        optimizer.zero_grad()
        with torch.no_grad():
            head.update(batches, labels, make_generator(0), comm)

    x = z.flatten(0, 1)
    w1, w2, w3 = (p.detach() for p in (head.student.weight1, head.student.weight2, head.student.direction))

    def products() -> None:
        for gradients in (False, True):
            hidden = F.linear(x, w1.flatten(0, 1)).unflatten(1, w1.shape[:2]).transpose(0, 1)
            embedding = torch.bmm(hidden, w2.mT)
            logits = torch.bmm(embedding, w3.mT)
            if gradients:
                torch.bmm(logits.mT, embedding)
                back = torch.bmm(logits, w3)
                torch.bmm(back.mT, hidden)
                back = torch.bmm(back, w2).transpose(0, 1).flatten(1)
                torch.mm(back.T, x)

    return in_turn(step, products, 3 if tiny else 7, bar).found()
