import torch

from hf_robust_ft import ThreatModel
from hf_robust_ft.benchmarks.dense_attack_parity import (
    LOSSES,
    class_weights,
    compare,
    criterion,
    random_networks,
    right_share,
)


def test_ours_and_the_authors_leave_as_many_pixels_right_for_every_loss():
    ((segmenter, pixels, labels),) = random_networks(1, 2)
    found = compare(segmenter, pixels, labels, ThreatModel("Linf", "8/255"), steps=10)
    assert set(found) == {f"{loss}, {start} start" for loss in LOSSES for start in ("clean", "random")}
    with torch.no_grad():
        assert right_share(segmenter(pixels), labels).tolist() == [1, 1]
    for name, (ours, theirs) in found.items():
        assert abs(ours - theirs) < 0.03 and max(ours, theirs) < 0.9, name


def test_what_the_authors_climb_leaves_out_pixels_without_a_label_and_masked_losses_those_that_are_wrong():
    labels = torch.tensor([[[0, 1, -100, 1]]])
    logits = torch.tensor([[3.0, 3.0, 3.0, 0.0], [0.0, 0.0, 0.0, 2.0]]).view(1, 2, 1, 4)
    counts = {loss: (criterion(loss)(logits, labels) > 0).flatten().tolist() for loss in LOSSES}
    assert counts["pixel_ce"] == counts["js"] == [True, True, False, True]
    assert counts["masked_ce"] == counts["masked_ce_balanced"] == [True, False, False, True]
    both = torch.cat([labels, torch.zeros_like(labels)])
    assert class_weights(both, by_image=True)[0, 0, [0, 1, 3]].tolist() == [1, 0.5, 0.5]
    assert class_weights(both, by_image=False)[:, 0, 0].tolist() == torch.tensor([0.2, 0.2]).tolist()
