"""Helpers of the logit losses where their values could go wrong without a trace."""

import torch

from w2s_plugins.losses.logits import soften, split_target, standardize


def test_split_target_where_all_logits_are_far_below_zero():
    logits = torch.tensor([[-5000.0, -5010.0, -5012.0]])
    _, log_not_y, others = split_target(logits, torch.tensor([0]))
    torch.testing.assert_close(
        others[0, 1:], torch.tensor([0.0, -2.0]).log_softmax(0), rtol=0, atol=1e-3
    )
    torch.testing.assert_close(
        log_not_y,
        torch.tensor([0.0, -10.0, -12.0]).log_softmax(0)[1:].logsumexp(0)[None],
        rtol=0,
        atol=1e-3,
    )
    assert others[0, 0].exp() == 0


def test_probability_of_not_the_label_keeps_its_digits():
    """1 - p_y is 0 in float32 where p_y is almost 1; its logarithm is exact all the same."""
    _, log_not_y, _ = split_target(torch.tensor([[40.0, 0.0, 0.0]]), torch.tensor([0]))
    torch.testing.assert_close(log_not_y, torch.tensor([2.0]).log() - 40, rtol=1e-6, atol=0)


def test_standardized_logits_have_mean_0_and_deviation_1_whatever_their_scale():
    logits = torch.randn(4, 50, generator=torch.Generator().manual_seed(0))
    for scale in (1e-3, 1.0, 1e4):
        result = standardize(scale * logits + 3 * scale)
        torch.testing.assert_close(result.mean(1), torch.zeros(4), rtol=0, atol=1e-5)
        torch.testing.assert_close(result.std(1), torch.ones(4), rtol=1e-3, atol=0)
    torch.testing.assert_close(soften(logits, 2.0, True), standardize(logits) / 2)
