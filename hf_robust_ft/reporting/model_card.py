"""The model card of a robust checkpoint, rendered from its report and nothing else."""

from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import EvalResult

from hf_robust_ft.attacks.threat_model import format_eps, parse_eps
from hf_robust_ft.evaluation.confidence_intervals import interval_method
from hf_robust_ft.evaluation.convergence_text import convergence_sentence
from hf_robust_ft.evaluation.protocols import PROTOCOLS
from hf_robust_ft.evaluation.reliability import (
    OK,
    is_reliable,
    reliability_of_autoattack,
    reliability_sentence,
    short_verdict,
)
from hf_robust_ft.evaluation.report import RobustnessReport
from hf_robust_ft.evaluation.trust_verdicts import is_of_several_attacks
from hf_robust_ft.provenance.plain_text import markdown
from hf_robust_ft.reporting.card_sections import BEGIN, END
from hf_robust_ft.reporting.card_template import card_from, hub_metadata, measured_on, more_tags
from hf_robust_ft.reporting.commands import evaluate_command, how_to_measure_again, model_to_name
from hf_robust_ft.reporting.comparability import UNNAMED_DATASET, attack_name, image_digests, measured_by
from hf_robust_ft.reporting.measured_table import measured_rows
from hf_robust_ft.reporting.objective import objective_doubt
from hf_robust_ft.reporting.probing import probe_doubt
from hf_robust_ft.reporting.reach import LEAST, reach_of, reach_sentence
from hf_robust_ft.reporting.verdict import verdict

TAG = "hf_robust_ft"
EXAMPLES = "examples"
TEMPLATE = Path(__file__).parent / "model_card_template.md"

# What the attacker may do, in words.
THREATS = {
    "Linf": "every pixel by up to {eps} of the\npixel range",
    "L2": "the image by up to {eps} in\nEuclidean distance, pixels in [0, 1]",
    "L1": "the image by up to {eps} in the sum\nof absolute differences, pixels in [0, 1]",
}

METRIC_NAMES = {
    "clean_accuracy": "Clean accuracy",
    "adversarial_accuracy": "Adversarial accuracy",
    "expected_robustness": "Expected robustness",
    "autoattack_accuracy": "AutoAttack accuracy",
}


def render_model_card(report: RobustnessReport, pictures: Sequence[str] = ()) -> str:
    """The text of `README.md`: Hub metadata with the results as `model-index`, and the card.

    Args:
        report: what its facts leave out, the card does too (`RunFacts`).
        pictures: file names beside the card to show; those in `examples/` as strips of attacked images.
    """
    facts = report.metadata
    norm, eps = report.threat_model["norm"], format_eps(report.threat_model["eps"])
    attack = measured_by(report)
    subject = facts.get("base_model_text") or facts.get("base_model")
    found = verdict(report)
    is_robust = found is None or found.is_robust
    called_robust = is_robust and is_reliable(report)
    title = f"Robustness of {subject}"
    if facts.get("training") or not subject:
        title = "Robust image classifier" if called_robust else "Image classifier, adversarially fine-tuned"
    dataset = facts.get("dataset_name") or facts.get("dataset") or UNNAMED_DATASET
    setting = {
        "norm": norm, "eps": eps, "attack": attack, "steps": report.attack["steps"], "protocol": report.protocol,
        "samples": report.num_samples, "reliability": short_verdict(report.reliability),
    }  # fmt: skip
    setting |= {name: digest for name, digest in image_digests(report).items() if digest}
    how = attack if report.protocol == "paper" else f"{attack}, {report.protocol}"
    reach = reach_of(facts.get("training"))
    mark = "" if is_reliable(report) else " (doubtful)"
    autoattack_mark = "" if reliability_of_autoattack(report.reliability)["verdict"] == OK else " (doubtful)"
    results = [
        EvalResult(
            task_type="image-classification",
            **measured_on(facts, dataset),
            metric_type="accuracy" if key == "clean_accuracy" else key,
            metric_name=_metric_name(key, f"{norm} {eps}", how, report),
            metric_value=round(getattr(report, key), 6),
            metric_args=_metric_args(key, report, setting),
        )
        for key in METRIC_NAMES
        if getattr(report, key) is not None
    ]
    tags = [TAG, "adversarial-robustness", f"{norm}-{eps}".replace("/", "-over-"), *more_tags(facts)]
    data = hub_metadata(facts, title, "image-classification", tags, results)
    command = evaluate_command(report, model_to_name(facts))
    card = card_from(
        TEMPLATE,
        data,
        report=report,
        facts=facts,
        subject=subject,
        title=facts.get("model_name") or title,
        verdict=found,
        is_robust=is_robust,
        called_robust=called_robust,
        mark=mark,
        reliability=reliability_sentence(report).partition(": ")[2],
        text=markdown,
        training=facts.get("training", {}),
        reach=None if reach is None else ("" if reach >= LEAST else "**Warning.** ") + reach_sentence(reach),
        objective_doubt=objective_doubt(report),
        probe_doubt=probe_doubt(facts.get("probe")),
        is_undertrained=_is_undertrained(facts.get("training", {})),
        norm=norm,
        eps=eps,
        threat=THREATS[norm].format(eps=eps),
        attack=attack_name({**report.attack, "random_start": False}, report.convergence),  # attack_start tells
        measured=measured_rows(report, mark, autoattack_mark),
        convergence_text=convergence_sentence(report.convergence),
        attack_start="a random point of the ball" if report.attack["random_start"] else "the clean image",
        several_attacks=is_of_several_attacks(report.protocol),
        protocol_text=PROTOCOLS[report.protocol].description,
        intervals=report.confidence_intervals,
        interval_method=interval_method(report.confidence_intervals),
        dataset=dataset,
        differs_from_paper=_differs(facts.get("split_sizes"), facts.get("paper_split_sizes")),
        skipped={name: len(images) for name, images in facts.get("skipped_images", {}).items() if images},
        licences=_licences(facts),
        pictures=[picture for picture in pictures if not picture.startswith(f"{EXAMPLES}/")],
        examples=[picture for picture in pictures if picture.startswith(f"{EXAMPLES}/")],
        model=model_to_name(facts),
        again=how_to_measure_again(command),
        evaluate_command=command,
        begin=BEGIN,
        end=END,
        percent=lambda value: f"{100 * value:.2f} %",
        curve=[(format_eps(e), a) for e, a in zip(report.epsilons, report.accuracies, strict=True)],
    )
    return str(card).rstrip() + "\n"


def _is_undertrained(training: dict) -> bool:
    """Whether the weights are of a moment at which eps was still below its target; images' own eps may stay there."""
    weights_eps = training.get("weights_eps")
    is_of_all = weights_eps is not None and training.get("eps_schedule") != "per_sample"
    return is_of_all and parse_eps(weights_eps) < parse_eps(training["eps"]) - 1e-6


def _licences(facts: dict) -> str:
    """What the weights and images may be used for, as far as it is known; not the licence of the result."""
    known = (("dataset_license", "images"), ("base_model_license", "pretrained weights"))
    return " ".join(f"Licence of the {what}: {facts[name]}." for name, what in known if facts.get(name))


def _differs(sizes: dict[str, int] | None, stated: dict[str, int] | None) -> bool:
    """Whether the splits are not of the sizes stated for some of them."""
    return any((sizes or {}).get(name) != count for name, count in (stated or {}).items())


def _metric_name(key: str, budget: str, attack: str, report: RobustnessReport) -> str:
    """With threat model and attack, and whether the figure is doubtful."""
    if key == "clean_accuracy":
        return METRIC_NAMES[key]
    if key == "autoattack_accuracy":
        doubt = "" if reliability_of_autoattack(report.reliability)["verdict"] == OK else "; doubtful"
        return f"{METRIC_NAMES[key]} ({budget}{doubt})"
    return f"{METRIC_NAMES[key]} ({budget}, {attack}{'' if is_reliable(report) else '; doubtful'})"


def _metric_args(key: str, report: RobustnessReport, setting: dict) -> dict:
    """Threat model, attack, protocol, images and verdict of one result; clean accuracy is the one at eps 0."""
    if key == "clean_accuracy":
        clean = {name: value for name, value in setting.items() if name != "reliability"}
        return {**clean, "eps": "0", "attack": "none", "steps": 0}
    if key == "autoattack_accuracy":
        told = {"norm": setting["norm"], "eps": setting["eps"], "attack": "AutoAttack", "protocol": "standard"}
        verdict_on_it = short_verdict(reliability_of_autoattack(report.reliability))
        return {**told, "samples": report.autoattack_samples, "reliability": verdict_on_it}
    return setting
