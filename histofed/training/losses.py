"""ACGAN's objective (Odena et al., arXiv 1610.09585), without the traps that `paper.md` §2 names.

Everything works on logits. The public code that the paper's losses go back to applies softmax *before* cross-entropy, which
applies it again: the loss is then confined to [.313, 1.313], and the class heads stop learning long before they are right.

    generator       1/2 · ( adversarial(fake → real) + class(fake) )
    discriminator   1/2 · ( real half + fake half )
                    real half = 1/2 · ( adversarial(real → real) + class(real) )
                    fake half = 1/2 ·   adversarial(fake → fake)

The discriminator's class loss is taken on real tiles only. On fakes it would teach the discriminator that whatever an
untrained generator draws for a class *is* that class, and reward the generator for caricatures that are easy to classify.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy


def generator_loss(validity_B: Tensor, classes_BK: Tensor, labels_B: Tensor) -> Tensor:
    """What the generator minimises, from the discriminator's logits for its fakes and the classes it was asked for."""
    return 0.5 * (_adversarial(validity_B, real=True) + cross_entropy(classes_BK, labels_B))


def discriminator_loss(real_B: Tensor, real_classes_BK: Tensor, labels_B: Tensor, fake_B: Tensor) -> Tensor:
    """What the discriminator minimises, from its validity logits for reals and fakes and its class logits for reals."""
    real_half = 0.5 * (_adversarial(real_B, real=True) + cross_entropy(real_classes_BK, labels_B))
    fake_half = 0.5 * _adversarial(fake_B, real=False)
    return 0.5 * (real_half + fake_half)


def _adversarial(validity_B: Tensor, real: bool) -> Tensor:
    target_B = torch.full_like(validity_B, float(real))
    return binary_cross_entropy_with_logits(validity_B, target_B)
