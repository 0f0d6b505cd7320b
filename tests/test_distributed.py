"""Two gloo processes under torchrun do what one does."""

import json

import pytest
import torch
from conftest import run_script

SCRIPT = """
import json
trainer = make_trainer(
    make_model({kind!r}), per_device_train_batch_size={batch_size}, per_device_eval_batch_size=5, optim="sgd",
    learning_rate=0.1, eval_epsilons=None,
)
trainer.train()
metrics = trainer.evaluate()
if trainer.is_world_process_zero():
    torch.save(trainer.model.state_dict(), folder / "final.pt")
report = dict(metrics=metrics, eps=[entry["eps"] for entry in trainer.state.log_history],
              accuracies=trainer.robustness_report.accuracies, samples=trainer.robustness_report.num_samples)
(folder / f"rank{{trainer.args.process_index}}.json").write_text(json.dumps(report))
"""


@pytest.mark.parametrize("kind", ["vit"])
def test_two_processes_equal_one(tmp_path, kind):
    for processes, batch_size in ((1, 8), (2, 4)):
        done = run_script(SCRIPT.format(kind=kind, batch_size=batch_size), tmp_path / str(processes), processes)
        assert done.returncode == 0, done.stderr
    single, both = (torch.load(tmp_path / name / "final.pt", weights_only=True) for name in ("1", "2"))
    for name, tensor in single.items():
        assert torch.allclose(tensor, both[name], atol=1e-5), name
    one, rank0, rank1 = (
        json.loads((tmp_path / path).read_text()) for path in ("1/rank0.json", "2/rank0.json", "2/rank1.json")
    )
    assert one["eps"] == rank0["eps"] == rank1["eps"]
    # 48 images do not divide by 2 x 5: what the sampler repeats is dropped again.
    assert one["samples"] == rank0["samples"] == rank1["samples"] == 48
    assert one["accuracies"] == pytest.approx(rank0["accuracies"], abs=1 / 48 + 1e-9)
    assert rank0["accuracies"] == rank1["accuracies"]
