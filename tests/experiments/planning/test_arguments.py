import pytest

from hf_robust_ft.experiments.planning import GPUS, PlanArguments
from hf_robust_ft.experiments.planning.gpus import get_gpu


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"gpu": "h10"}, "Unknown gpu 'h10'. Did you mean h100"),
        ({"utilisation": 0.0}, r"share in \(0, 1\], got 0.0"),
        ({"utilisation": 30.0}, r"share in \(0, 1\], got 30.0"),
        ({"samples": [10, 10]}, "three counts"),
        ({"samples": [10, 0, 10]}, "each at least 1"),
    ],
)
def test_bad_values_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        PlanArguments(dry_run=True, **changes)


@pytest.mark.parametrize("changes", [{"gpu": "t4"}, {"plan_json": "x"}, {"samples": [1, 1, 1]}, {"utilisation": 0.4}])
def test_options_of_a_plan_do_nothing_without_one_and_are_refused(changes):
    with pytest.raises(ValueError, match=f"{next(iter(changes))}: only with --dry_run"):
        PlanArguments(**changes)


@pytest.mark.parametrize("name", GPUS)
def test_rates_are_of_dense_products(name):
    gpu = get_gpu(name.upper())
    assert gpu.half >= 2 * gpu.fp32 * 0.99 and gpu.source  # a rate with sparsity would be another factor of two
    if gpu.tf32 is not None:
        assert gpu.half / gpu.tf32 == pytest.approx(2, rel=0.02)
    assert gpu.peak("fp16") == gpu.half


def test_a_device_without_a_mode_says_so():
    with pytest.raises(ValueError, match="NVIDIA T4 has no fast bf16"):
        get_gpu("t4").peak("bf16")
