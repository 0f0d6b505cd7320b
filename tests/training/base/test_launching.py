"""What a launcher started and the Trainer would not do is refused before any compute is spent."""

import json

import pytest

from hf_robust_ft.runs.fine_tune import DataArguments, ModelArguments, fine_tune
from hf_robust_ft.training.base.launching import check_fp16, check_launch, check_sharding, refuse_zero_3


@pytest.fixture
def as_torchrun(monkeypatch):
    """From the call on, one of two processes that torchrun started; arguments made before see one."""

    def start():
        for name, value in {"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0"}.items():
            monkeypatch.setenv(name, value)

    return start


def test_processes_that_would_train_alone_are_refused(make_args, make_trainer, as_torchrun, monkeypatch):
    args = make_args()
    check_launch(args)
    as_torchrun()
    with pytest.raises(ValueError, match=r"started 2 processes, and training sees 1: .* give use_cpu=True"):
        check_launch(args)
    with pytest.raises(ValueError, match="give use_cpu=True"):
        make_trainer(args=args)
    monkeypatch.delenv("LOCAL_RANK")  # a cluster's own variable, not a launcher's
    check_launch(args)


def test_train_refuses_them_before_it_reads_anything(make_args, as_torchrun, tmp_path, monkeypatch):
    monkeypatch.setattr("hf_robust_ft.runs.fine_tune.prepare_run", lambda *args: pytest.fail("data were read"))
    args = make_args(output_dir=str(tmp_path / "run"))
    as_torchrun()
    with pytest.raises(ValueError, match="The launcher started 2 processes"):
        fine_tune(ModelArguments(model="cnx"), DataArguments(dataset="digits"), args)
    assert not (tmp_path / "run").exists()


def test_ranks_without_a_last_batch_are_refused(make_args, as_torchrun, monkeypatch):
    args = make_args(accelerator_config={"even_batches": False})
    as_torchrun()
    monkeypatch.setattr(type(args), "world_size", 2)
    with pytest.raises(ValueError, match="leaves some of the processes without a last batch"):
        check_launch(args)


def test_fp16_that_accelerate_ignores_is_refused(make_trainer):
    with pytest.raises(ValueError, match="accelerate ignores it on a CPU: training would be in float32"):
        make_trainer(fp16=True)
    check_fp16("fp16", "cuda")
    check_fp16("bf16", "cpu")


def test_fsdp_that_accelerate_ignores_is_refused(make_args, monkeypatch):
    args = make_args()
    check_sharding(args, is_fsdp_enabled=False)
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    check_sharding(args, is_fsdp_enabled=True)
    with pytest.raises(ValueError, match="accelerate ignores it where there is no GPU"):
        check_sharding(args, is_fsdp_enabled=False)
    monkeypatch.delenv("ACCELERATE_USE_FSDP")
    args.fsdp = True
    with pytest.raises(ValueError, match="Leave fsdp out here"):
        check_sharding(args, is_fsdp_enabled=False)


@pytest.mark.parametrize("by", ["stage", "file"])
def test_zero_3_of_accelerate_launch_is_refused(make_args, monkeypatch, tmp_path, by):
    """As `accelerate launch` passes its own configuration on, whether or not DeepSpeed is installed."""
    path = tmp_path / "ds.json"
    path.write_text(json.dumps({"zero_optimization": {"stage": 3}}))
    variables = {
        "stage": ("ACCELERATE_DEEPSPEED_ZERO_STAGE", "3"),
        "file": ("ACCELERATE_DEEPSPEED_CONFIG_FILE", str(path)),
    }
    monkeypatch.setenv(*variables[by])
    refuse_zero_3(None)  # not in use
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    with pytest.raises(ValueError, match="ZeRO-3"):
        make_args()


@pytest.mark.parametrize("stage", [0, 1, 2])
def test_other_stages_are_not(monkeypatch, stage):
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    monkeypatch.setenv("ACCELERATE_DEEPSPEED_ZERO_STAGE", str(stage))
    assert refuse_zero_3({"zero_optimization": {"stage": stage}}) is None


def test_zero_3_as_json_on_the_command_line_is_refused(make_args):
    config = json.dumps({"zero_optimization": {"stage": 3}})
    with pytest.raises(ValueError, match="ZeRO-3"):
        make_args(deepspeed=config)


def test_deepspeed_that_is_not_installed_is_told(make_args, monkeypatch):
    monkeypatch.setattr("hf_robust_ft.training.base.launching.is_deepspeed_available", lambda: False)
    with pytest.raises(ImportError, match=r'pip install "hf_robust_ft\[deepspeed\]"'):
        make_args(deepspeed={"zero_optimization": {"stage": 1}})
