import numpy as np
import pytest
from datasets import ClassLabel, Dataset, Features, Value

from hf_robust_ft.data import DatasetSpec, stratified_sample
from hf_robust_ft.data.splits import SplitSizes, canonical_names, check_source, split_by_spec


def numbered(*counts):
    """Rows of a number and a label, `counts` of each class, sorted by class."""
    labels = np.repeat(np.arange(len(counts)), counts)
    features = Features({"number": Value("int64"), "label": ClassLabel(num_classes=len(counts))})
    return Dataset.from_dict({"number": np.arange(len(labels)), "label": labels}, features=features)


def spec(**changes):
    settings = {
        "name": "toy",
        "hub_id": "some/toy",
        "num_classes": 3,
        "source_sizes": {"train": 60, "test": 30},
        "sizes": {"train": 54, "validation": 6, "test": 10},
        "license": "-",
        "citation": "-",
        "verified": "-",
    }
    return DatasetSpec(**(settings | changes))


@pytest.mark.parametrize("counts", [(40, 40, 40), (100, 15, 5), (7, 11, 13, 1), (1000, 1)])
@pytest.mark.parametrize("share", [0.03, 0.37, 1.0])
def test_a_stratified_sample_is_exact_and_proportional(counts, share):
    dataset, total = numbered(*counts), sum(counts)
    count = max(1, round(share * total))
    drawn = stratified_sample(dataset, count, seed=3)
    assert len(drawn) == count == len(set(drawn["number"]))
    for index, size in enumerate(counts):
        assert abs(drawn["label"][:].count(index) - size * count / total) < 1


def test_the_largest_remainders_are_rounded_up():
    for counts, expected in (((1, 1, 8), [1, 1, 7]), ((8, 1, 1), [7, 1, 1])):
        assert np.bincount(stratified_sample(numbered(*counts), 9, seed=0)["label"]).tolist() == expected


def test_a_stratified_sample_depends_on_its_seed_alone():
    dataset = numbered(20, 20, 20)
    np.random.seed(1)
    first = stratified_sample(dataset, 20, seed=0)["number"][:]
    np.random.seed(2)
    assert (
        first == stratified_sample(dataset, 20, seed=0)["number"][:] != stratified_sample(dataset, 20, 1)["number"][:]
    )
    labels = np.array(first) // 20
    assert len(set(labels[:6])) > 1, "any first part holds several classes"


@pytest.mark.parametrize("count", [0, 61, -1, 2.0, True])
def test_an_impossible_count_is_refused(count):
    with pytest.raises(ValueError, match="whole number from 1 to the 60"):
        stratified_sample(numbered(20, 20, 20), count, seed=0)


def test_a_spec_holds_out_validation_and_draws_the_test_split():
    source = {"train": numbered(20, 20, 20), "test": numbered(15, 12, 3)}
    parts = split_by_spec(source, spec(), seed=0)
    assert {name: len(part) for name, part in parts.items()} == dict(spec().sizes)
    assert np.bincount(parts["validation"]["label"]).tolist() == [2, 2, 2]
    assert np.bincount(parts["test"]["label"]).tolist() == [5, 4, 1]
    assert sorted(parts["train"]["number"][:] + parts["validation"]["number"][:]) == list(range(60))
    again, other = split_by_spec(source, spec(), seed=0), split_by_spec(source, spec(), seed=1)
    for name in ("validation", "test"):
        assert again[name]["number"][:] == parts[name]["number"][:] != other[name]["number"][:]


def test_a_pooled_spec_takes_as_many_of_each_class():
    pooled = spec(pooled=True, sizes={"train": 30, "validation": 6, "test": 54})
    parts = split_by_spec({"train": numbered(30, 20, 10), "test": numbered(10, 10, 10)}, pooled, seed=0)
    found = {name: np.bincount(part["label"], minlength=3).tolist() for name, part in parts.items()}
    assert found == {"train": [10, 10, 10], "validation": [2, 2, 2], "test": [28, 18, 8]}


def test_fewer_images_than_a_complete_copy_are_refused_and_more_are_said(caplog):
    with pytest.raises(
        ValueError, match=r"holds \{'train': 59, 'test': 30\} images, a complete one .*force_redownload"
    ):
        check_source({"train": numbered(19, 20, 20), "test": numbered(30)}, spec())
    with pytest.raises(ValueError, match=r"no split 'test'.*Hub id, some/toy, with label_column='label'"):
        check_source({"train": numbered(60)}, spec())
    with pytest.raises(ValueError, match="'all': 89"):
        check_source({"train": numbered(60), "test": numbered(29)}, spec(pooled=True))
    check_source({"train": numbered(61), "test": numbered(30)}, spec())
    assert "may not compare with the paper's" in caplog.text


def test_validation_is_known_by_its_other_names():
    assert list(canonical_names({"train": 1, "val": 2, "test": 3})) == ["train", "validation", "test"]
    assert list(canonical_names({"validation": 1, "dev": 2})) == ["validation", "dev"]


def test_shares_do_not_apply_to_the_papers_datasets():
    SplitSizes().check_unchanged(spec())
    with pytest.raises(ValueError, match=r"has the paper's splits.*some/toy"):
        SplitSizes(validation=0.3).check_unchanged(spec())
