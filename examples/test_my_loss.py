"""The test of a loss of your own, my_loss.py of docs/losses.md: its value and its gradient.

python -m pytest test_my_loss.py
"""

import my_loss  # noqa: F401  # the import registers the loss
import torch

from w2s_plugins.losses import LossInputs, create_loss


def test_logit_mse():
    loss = create_loss("logit_mse", scale=0.5)
    z, w = torch.randn(2, 8, 5, dtype=torch.float64)
    terms = loss(LossInputs(student_logits=z, teacher_logits=w))
    torch.testing.assert_close(terms["mse"], 0.5 * ((z - w) ** 2).sum() / 40)
    assert torch.autograd.gradcheck(lambda z: loss(LossInputs(z, w))["mse"], z.requires_grad_())
