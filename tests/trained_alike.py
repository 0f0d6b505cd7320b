"""That two trainers with hidden modules trained the same."""

import torch
from conftest import assert_same_weights, weights

from hf_robust_ft.training.objectives.hidden import hidden_tensors


def assert_goes_on_to_the_bit(whole, resumed, checkpoint):
    """Resumed there, a run ends with the weights, hidden weights and averages of the one that was left alone."""
    resumed.train(resume_from_checkpoint=str(checkpoint))
    assert_same_weights(resumed.model, whole.model)
    assert_same_weights(hidden_tensors(resumed.model), hidden_tensors(whole.model))
    if whole.weight_averaging is not None:
        assert_same_weights(resumed.weight_averaging.averages, whole.weight_averaging.averages)


def assert_train_the_same(plain, other, tolerance):
    """Both are trained; weights and hidden weights then differ by no more than the tolerance."""
    for trainer in (plain, other):
        trainer.train()
    for tensors in (weights, hidden_tensors):
        first, second = tensors(plain.model), tensors(other.model)
        assert all(torch.allclose(first[name].float(), second[name].float(), atol=tolerance) for name in first)
