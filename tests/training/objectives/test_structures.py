"""A training adds its own modules to a model, and begins as from the saved one, whatever an earlier training left."""

import copy

import pytest
from conftest import assert_same_weights, weights
from pretrained_norms import pretrained

from hf_robust_ft.training.objectives.hidden import hidden_tensors
from hf_robust_ft.training.objectives.twins import Twin

QUICK = {"num_train_epochs": 1, "eps_schedule": "constant", "optim": "sgd", "learning_rate": 0.05, "robust_eval": "no"}
METHODS = {
    "twins": {"twins_lambda": 0.5, "batch_norm": "trainer"},
    "autolora": {"autolora": True, "autolora_rate": "off", "autolora_rank": 2},
    "plain": {},
}


@pytest.mark.parametrize("second", METHODS)
@pytest.mark.parametrize("first", ["twins", "autolora"])
def test_a_second_training_of_a_model_begins_as_from_the_saved_one(make_trainer, make_model, first, second):
    used = make_trainer(pretrained(make_model("resnet")), **QUICK, **METHODS[first])
    used.train()
    saved = make_model("resnet", seed=1)
    saved.load_state_dict(used.model.state_dict())
    again, anew = (make_trainer(model, **QUICK, **METHODS[second]) for model in (used.model, saved))
    assert [name for name, _ in again.model.named_parameters()] == [name for name, _ in anew.model.named_parameters()]
    assert [type(each) for each in again.model.modules()] == [type(each) for each in anew.model.modules()]
    assert_same_weights(hidden_tensors(again.model), hidden_tensors(anew.model))
    for trainer in (again, anew):
        trainer.train()
    assert_same_weights(again.model, anew.model)


def test_each_trial_of_a_search_has_modules_of_its_own(make_trainer, make_model, make_args, dataset, processor):
    from hf_robust_ft import AdversarialTrainer
    from hf_robust_ft.evaluation.batches import stack_examples

    base = pretrained(make_model("resnet"))
    args = make_args(**QUICK, **METHODS["twins"])
    trainer = AdversarialTrainer(
        model_init=lambda: copy.deepcopy(base), args=args, train_dataset=dataset, eval_dataset=dataset,
        processing_class=processor, data_collator=stack_examples,
    )  # fmt: skip
    trainer.train()
    assert any(isinstance(each, Twin) for each in trainer.model.modules())
    first = weights(trainer.model)
    trainer.train()  # from model_init again
    assert_same_weights(trainer.model, first)
