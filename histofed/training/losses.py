"""The adversarial terms of every objective, and the class terms of every kind of heads; all on logits.

Without the traps that `paper.md` §2 names: the public code that the paper's losses go back to applies softmax *before*
cross-entropy, which applies it again: the loss is then confined to [.313, 1.313], and the class heads stop learning long
before they are right. A discriminator's class term is taken on real tiles only. On fakes it would teach the discriminator
that whatever an untrained generator draws for a class *is* that class, and reward caricatures that are easy to classify.

| loss         | discriminator, on reals    | on fakes        | generator                |
|--------------|----------------------------|-----------------|--------------------------|
| bce          | BCE(real, t_r)             | BCE(fake, t_f)  | BCE(fake, 1)             |
| wasserstein  | -real                      | fake            | -fake                    |
| hinge        | relu(1 - real)             | relu(1 + fake)  | -fake                    |
| relativistic | softplus(fake - real), of pairs              | softplus(real - fake)    |

The whole of ACGAN, for example: generator 1/2 · (term + class); discriminator 1/4 · (reals + class of reals + fakes).
"""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, relu, softplus

from histofed.models.networks import Judgement
from histofed.training.rules import Rules

TEMPERATURE: Final = 0.5
MARGIN: Final = 0.98
"""Of D2D-CE, as in ReACGAN's code: a cosine to the own proxy above it, or to another class below 1 minus it, is enough."""


def judged(judgement: Judgement, labels_B: Tensor, rules: Rules) -> Tensor:
    """The logit that says whether a tile is a real one (of its class, with projection heads), (B,) in float32."""
    validity_B = judgement.validity_B.float()
    if rules.heads != "projection":
        return validity_B
    return validity_B + judgement.classes_BK.float().gather(1, labels_B[:, None]).squeeze(1)


def generator_loss(fake: Judgement, labels_B: Tensor, rules: Rules, real_B: Tensor | None = None, step: int = 0) -> Tensor:
    """What the generator minimises, from judgements of its fakes and the classes it was asked for.

    `real_B` are the logits of as many reals; only relativistic objectives look at them.
    """
    term = _generator_term(judged(fake, labels_B, rules), rules, real_B)
    ramp = min(1.0, (step + 1) / rules.class_ramp) if rules.class_ramp else 1.0
    return rules.objective.generator_scale * _with_class(term, fake, labels_B, rules, ramp)


def discriminator_loss(
    real: Judgement, labels_B: Tensor, fake: Judgement, fake_labels_B: Tensor, rules: Rules, flipped_B: Tensor | None = None
) -> Tensor:
    """What the discriminator minimises, without penalties. `flipped_B` marks reals that it is told are fakes."""
    real_B, fake_B = judged(real, labels_B, rules), judged(fake, fake_labels_B, rules)
    match rules.objective.loss:
        case "bce":
            real_term = _bce(real_B, rules.real_target, flipped_B, rules.fake_target)
            fake_term = _bce(fake_B, rules.fake_target)
        case "wasserstein":
            real_term, fake_term = -real_B.mean(), fake_B.mean()
        case "hinge":
            real_term, fake_term = relu(1 - real_B).mean(), relu(1 + fake_B).mean()
        case "relativistic":
            real_term, fake_term = softplus(fake_B - real_B).mean(), fake_B.new_zeros(())
    total = _with_class(real_term, real, labels_B, rules, 1.0) + fake_term
    return rules.objective.discriminator_scale * total


def d2d_cross_entropy(cosines_BK: Tensor, embedding_BE: Tensor, labels_B: Tensor) -> Tensor:
    """Data-to-data cross-entropy: near the proxy of its class, far from the batch's images of other classes (eq. 5 there).

    With unit vectors f, proxies v, margins m_p = m, m_n = 1 - m: mean of -log(exp(a/τ) / (exp(a/τ) + Σ exp(b/τ))), where
    a = min(f·v_y - m_p, 0) and b = max(f·f' - m_n, 0) for each f' of another class.
    """
    toward_B = (cosines_BK.gather(1, labels_B[:, None]).squeeze(1) - MARGIN).clamp(max=0) / TEMPERATURE
    others_BB = (embedding_BE @ embedding_BE.T - (1 - MARGIN)).clamp(min=0) / TEMPERATURE
    same_BB = labels_B[:, None] == labels_B[None]
    others_BB = others_BB.masked_fill(same_BB, -torch.inf)
    return (torch.cat([toward_B[:, None], others_BB], 1).logsumexp(1) - toward_B).mean()


def _generator_term(fake_B: Tensor, rules: Rules, real_B: Tensor | None) -> Tensor:
    match rules.objective.loss:
        case "bce":
            return _bce(fake_B, 1.0)
        case "wasserstein" | "hinge":
            return -fake_B.mean()
        case "relativistic":
            assert real_B is not None, "a relativistic generator is judged against reals"
            return softplus(real_B - fake_B).mean()


def _with_class(term: Tensor, judgement: Judgement, labels_B: Tensor, rules: Rules, ramp: float) -> Tensor:
    """The term plus the weighted class term of these heads; projection heads have none, their logit judges the class too."""
    if rules.heads == "projection":
        return term
    if rules.heads == "class":
        class_term = cross_entropy(judgement.classes_BK.float(), labels_B)
    else:
        class_term = d2d_cross_entropy(judgement.classes_BK.float(), judgement.embedding_BE.float(), labels_B)
    return term + rules.class_weight * ramp * class_term


def _bce(validity_B: Tensor, target: float, flipped_B: Tensor | None = None, flipped_target: float = 0.0) -> Tensor:
    target_B = torch.full_like(validity_B, target)
    if flipped_B is not None:
        target_B = target_B.masked_fill(flipped_B, flipped_target)
    return binary_cross_entropy_with_logits(validity_B, target_B)
