"""The model card of a robust segmentation checkpoint, rendered from its report and nothing else."""

from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import EvalResult

from hf_robust_ft.attacks.threat_model import format_eps
from hf_robust_ft.evaluation.reliability import is_reliable, reliability_sentence, short_verdict
from hf_robust_ft.evaluation.segmentation.convergence import segmentation_convergence_sentence
from hf_robust_ft.evaluation.segmentation.report import SegmentationReport
from hf_robust_ft.provenance.plain_text import markdown
from hf_robust_ft.reporting.card_sections import BEGIN, END
from hf_robust_ft.reporting.card_template import card_from, hub_metadata, measured_on, more_tags
from hf_robust_ft.reporting.commands import evaluate_segmentation_command, how_to_measure_again, model_to_name
from hf_robust_ft.reporting.comparability import UNNAMED_DATASET, image_digests
from hf_robust_ft.reporting.model_card import EXAMPLES, TAG, THREATS
from hf_robust_ft.reporting.segmentation.verdict import segmentation_verdict

TEMPLATE = Path(__file__).parent / "card_template.md"
TASK = "image-segmentation"

# As cards' model-index and leaderboards call them; clean figures by the Hub's own names.
METRICS = {
    "clean_mean_iou": ("mean_iou", "Clean mean IoU"),
    "adversarial_mean_iou": ("adversarial_mean_iou", "Adversarial mean IoU"),
    "expected_mean_iou": ("expected_mean_iou", "Expected mean IoU"),
    "clean_pixel_accuracy": ("pixel_accuracy", "Clean pixel accuracy"),
    "adversarial_pixel_accuracy": ("adversarial_pixel_accuracy", "Adversarial pixel accuracy"),
    "expected_pixel_accuracy": ("expected_pixel_accuracy", "Expected pixel accuracy"),
}


def render_segmentation_card(report: SegmentationReport, pictures: Sequence[str] = ()) -> str:
    """The text of `README.md`: Hub metadata with the results as `model-index`, and the card.

    Args:
        report: what its facts leave out, the card does too (`RunFacts`).
        pictures: file names beside the card to show; those in `examples/` as overlays.
    """
    facts = report.metadata
    norm, eps = report.threat_model["norm"], format_eps(report.threat_model["eps"])
    subject = facts.get("base_model_text") or facts.get("base_model")
    found = segmentation_verdict(report)
    is_robust = found is None or found.is_robust
    called_robust = is_robust and is_reliable(report)
    title = f"Robustness of {subject}"
    if facts.get("training") or not subject:
        title = "Robust segmentation model" if called_robust else "Segmentation model, adversarially fine-tuned"
    dataset = facts.get("dataset_name") or facts.get("dataset") or UNNAMED_DATASET
    tags = [TAG, "adversarial-robustness", f"{norm}-{eps}".replace("/", "-over-"), *more_tags(facts)]
    data = hub_metadata(facts, title, TASK, tags, _results(report, dataset))
    command = evaluate_segmentation_command(report, model_to_name(facts))
    card = card_from(
        TEMPLATE,
        data,
        report=report,
        facts=facts,
        title=facts.get("model_name") or title,
        subject=subject,
        verdict=found,
        is_robust=is_robust,
        called_robust=called_robust,
        mark="" if is_reliable(report) else " (doubtful)",
        reliability=reliability_sentence(report).partition(": ")[2],
        text=markdown,
        training=facts.get("training", {}),
        norm=norm,
        eps=eps,
        threat=THREATS[norm].format(eps=eps).replace("\n", " "),
        attack=attack_of(report),
        convergence_text=segmentation_convergence_sentence(report.convergence),
        dataset=dataset,
        intervals=report.confidence_intervals,
        pictures=[picture for picture in pictures if not picture.startswith(f"{EXAMPLES}/")],
        examples=[picture for picture in pictures if picture.startswith(f"{EXAMPLES}/")],
        model=model_to_name(facts),
        again=how_to_measure_again(command),
        evaluate_command=command,
        begin=BEGIN,
        end=END,
        percent=lambda value: f"{100 * value:.2f} %",
        curve=list(zip(map(format_eps, report.epsilons), report.mean_ious, report.pixel_accuracies, strict=True)),
    )
    return str(card).rstrip() + "\n"


def attack_of(report: SegmentationReport) -> str:
    """The attack in a few words, "APGD-PIXEL-CE-20"; of several, the protocol's name says which."""
    steps = " and ".join(map(str, sorted({attack["steps"] for attack in report.attacks})))
    if report.convergence:  # how many steps it took is the model's
        steps = f"auto (at most {report.convergence['limit']})"
    losses = [str(attack["loss"]).upper().replace("_", "-") for attack in report.attacks]
    if len(losses) > 1:
        return f"the worst case of APGD-{steps} on {', '.join(losses)}"
    return f"APGD-{losses[0]}-{steps}"


def _results(report: SegmentationReport, dataset: str) -> list[EvalResult]:
    facts, norm = report.metadata, report.threat_model["norm"]
    eps = format_eps(report.threat_model["eps"])
    setting = {
        "norm": norm, "eps": eps, "attack": attack_of(report), "steps": max(each["steps"] for each in report.attacks),
        "protocol": report.protocol, "samples": report.num_samples, "reliability": short_verdict(report.reliability),
    }  # fmt: skip
    setting |= {name: digest for name, digest in image_digests(report).items() if digest}
    doubt = "" if is_reliable(report) else "; doubtful"
    results = []
    for name, (metric, words) in METRICS.items():
        is_clean = name.startswith("clean")
        told = {**setting, "eps": "0", "attack": "none", "steps": 0} if is_clean else setting
        results.append(
            EvalResult(
                task_type=TASK,
                **measured_on(facts, dataset),
                metric_type=metric,
                metric_name=words if is_clean else f"{words} ({norm} {eps}, {attack_of(report)}{doubt})",
                metric_value=round(getattr(report, name), 6),
                metric_args={key: value for key, value in told.items() if key != "reliability" or not is_clean},
            )
        )
    return results
