"""What is printed of eps, and what is kept."""

import pytest
from transformers import PrinterCallback, ProgressCallback

from hf_robust_ft.training.readable_logs import ReadablePrinter, ReadableProgress


@pytest.mark.parametrize(("norm", "eps", "read"), [("Linf", 0.08 / 255, "0.08/255"), ("L2", 0.25, "0.25")])
@pytest.mark.parametrize("bar", [False, True], ids=["printer", "bar"])
def test_eps_reads_as_people_write_it_and_stays_a_number(make_trainer, make_model, capsys, bar, norm, eps, read):
    trainer = make_trainer(
        make_model(), norm=norm, eps=str(eps), eps_schedule="constant", disable_tqdm=not bar, num_train_epochs=1,
        logging_steps=1, logging_strategy="steps", robust_eval="no", eval_epsilons=None,
    )  # fmt: skip
    trainer.train()
    assert f"'eps': '{read}'" in capsys.readouterr().out
    logged = [entry["eps"] for entry in trainer.state.log_history]
    assert logged and all(type(each) is float and each == pytest.approx(eps) for each in logged)


def test_trainers_own_names_still_find_the_printers(make_trainer, make_model):
    for off, ours, theirs in ((True, ReadablePrinter, PrinterCallback), (False, ReadableProgress, ProgressCallback)):
        trainer = make_trainer(make_model(), disable_tqdm=off)
        assert [type(each) for each in trainer.callback_handler.callbacks if isinstance(each, theirs)] == [ours]
        trainer.remove_callback(theirs)
        assert not [each for each in trainer.callback_handler.callbacks if isinstance(each, theirs)]


def test_a_cpus_loaders_do_not_warn_of_pinned_memory(make_trainer, make_model, recwarn):
    trainer = make_trainer(make_model(), num_train_epochs=1, robust_eval="no")
    trainer.train()
    trainer.evaluate()
    assert not [each for each in recwarn if "pin_memory" in str(each.message)]


def test_training_into_a_file_draws_no_bar(make_trainer, make_model, capsys):
    trainer = make_trainer(make_model(), disable_tqdm=False, num_train_epochs=1, robust_eval="no")
    trainer.train()
    trainer.evaluate()
    told = capsys.readouterr()
    assert "%|" not in told.err + told.out and "\r" not in told.err and "'train_loss'" in told.out
