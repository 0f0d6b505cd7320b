import json
from random import Random

import pytest

from hf_robust_ft.schedules import PerSample


def test_a_level_up_while_correct_and_down_when_fooled_within_bounds():
    rule = PerSample(levels=2)
    memory = rule.begin()
    for fooled, expected in ((True, 0), (False, 0.5), (False, 1), (False, 1), (True, 0.5)):
        rule.record(memory, ["a"], [fooled])
        assert rule.alphas(memory, ["a", "unseen"]) == [expected, 0]


def test_an_image_always_correct_reaches_the_budget_in_as_many_visits_as_levels():
    rule = PerSample(levels=7, initial=3)
    memory = rule.begin()
    assert rule(memory, 0.0) == 3 / 7 and rule.alphas(memory, ["a"]) == [3 / 7]
    for _ in range(4):
        rule.record(memory, ["a"], [False])
    assert rule.alphas(memory, ["a"]) == [1.0]


def test_the_order_of_other_images_does_not_matter_and_json_keeps_it():
    rule, draw = PerSample(levels=5), Random(0)
    visits = [(str(image), draw.random() < 0.4) for _ in range(9) for image in range(6)]
    one, other = rule.begin(), rule.begin()
    for image, fooled in visits:
        rule.record(one, [image], [fooled])
    for image in "531024":  # image by image
        rule.record(other, *zip(*[visit for visit in visits if visit[0] == image], strict=True))
        other = json.loads(json.dumps(other))
    assert one == other
    assert rule(one, 0.5) == pytest.approx(sum(rule.alphas(one, "012345")) / 6)


@pytest.mark.parametrize("bad", [{"levels": 0}, {"levels": 2.0}, {"initial": -1}, {"levels": 3, "initial": 4}])
def test_bad_arguments_are_refused(bad):
    with pytest.raises(ValueError, match="per_sample needs whole numbers"):
        PerSample(**bad)
