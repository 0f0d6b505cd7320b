"""One model's measured robustness, from a report or from the `model-index` of a model card."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from numbers import Real

from huggingface_hub import EvalResult

from hf_robust_ft.attacks.threat_model import ThreatModel, format_eps
from hf_robust_ft.evaluation.convergence_text import first_round
from hf_robust_ft.evaluation.detection.report import DetectionReport
from hf_robust_ft.evaluation.reliability import DOUBTFUL, OK, short_verdict
from hf_robust_ft.evaluation.segmentation.report import SegmentationReport
from hf_robust_ft.reporting.artifacts import DRAWERS
from hf_robust_ft.reporting.comparability import (
    CLASSIFICATION,
    UNKNOWN,
    UNNAMED_DATASET,
    Setting,
    dataset_text,
    image_set,
)
from hf_robust_ft.reporting.report_files import SEGMENTATION, Report
from hf_robust_ft.reporting.segmentation.card import METRICS
from hf_robust_ft.reporting.segmentation.setting import segmentation_setting

SCORES = ("expected_robustness", "adversarial_accuracy", "clean_accuracy")
NEEDED = ("norm", "eps", "protocol")  # without them a figure means nothing
# Of a segmentation report, and in its card by the metrics' own names.
SCORES_OF_MASKS = dict(zip(("expected_mean_iou", "adversarial_mean_iou", "clean_mean_iou"), SCORES, strict=True))
METRICS_OF_MASKS = {METRICS[of][0]: name for of, name in SCORES_OF_MASKS.items()}
ROUNDING = 1e-5  # of the figures in a card
NOT_TOLD = f"{DOUBTFUL}: not told"


@dataclass(frozen=True)
class Result:
    """What a source says of one model in one setting; accuracies lie in [0, 1].

    Attributes:
        source: a repository's id or a folder's name.
        setting: how it was measured.
        expected_robustness, adversarial_accuracy, clean_accuracy: None where it is not told.
        interval: 95 % of the expected robustness, None where it is not told.
        first_adversarial: adversarial accuracy after the first round of steps "auto", the paper's; None otherwise.
        settled: whether the accuracy settled then; None where the steps were fixed, or nothing is told.
        reliability: "ok", or "doubtful: REASON, ..." by the names of `reliability_of`; a card that does not
            tell is doubtful.
        url: where it is found, None for a folder.
    """

    source: str
    setting: Setting
    expected_robustness: float | None = None
    adversarial_accuracy: float | None = None
    clean_accuracy: float | None = None
    interval: tuple[float, float] | None = None
    first_adversarial: float | None = None
    settled: bool | None = None
    reliability: str = NOT_TOLD
    url: str | None = None

    @classmethod
    def of_report(cls, report: Report, source: str, url: str | None = None) -> "Result":
        """The result of a `robustness_report.json`; of segmentation its mean IoU takes the place of accuracy.

        Raises:
            ValueError: scores that do not follow from the report's own curve, or a report of detection.
        """
        DRAWERS[type(report)].check(report)
        if isinstance(report, DetectionReport):
            raise ValueError(f"it is of {report.task}, which is experimental and not ranked yet.")
        if isinstance(report, SegmentationReport):
            interval = report.confidence_intervals.get("expected_mean_iou")
            return cls(
                source,
                segmentation_setting(report),
                **{name: getattr(report, of) for of, name in SCORES_OF_MASKS.items()},
                interval=tuple(interval) if interval else None,
                first_adversarial=first["adversarial_mean_iou"] if (first := first_round(report.convergence)) else None,
                settled=report.convergence.get("settled"),
                reliability=short_verdict(report.reliability),
                url=url,
            )
        interval = report.confidence_intervals.get("expected_robustness")
        return cls(
            source,
            Setting.of(report),
            **{name: getattr(report, name) for name in SCORES},
            interval=tuple(interval) if interval else None,
            first_adversarial=first["adversarial_accuracy"] if (first := first_round(report.convergence)) else None,
            settled=report.convergence.get("settled"),
            reliability=short_verdict(report.reliability),
            url=url,
        )

    @property
    def is_reliable(self) -> bool:
        """Whether its reliability is "ok"."""
        return self.reliability == OK

    def disagreements(self, other: "Result") -> list[str]:
        """Scores that both tell and that differ by more than a card's rounding."""
        pairs = [(name, getattr(self, name), getattr(other, name)) for name in SCORES]
        return [
            f"{name.replace('_', ' ')} {mine:.4f} in the report, {theirs:.4f} in the card"
            for name, mine, theirs in pairs
            if mine is not None and theirs is not None and abs(mine - theirs) > ROUNDING
        ]


def from_eval_results(entries: Iterable[EvalResult], source: str, url: str | None = None) -> list[Result]:
    """The results in a card's `model-index`, one for each setting that it names; entries of other metrics are left.

    A card tells no grid, so its protocol's own is taken to be meant.

    Raises:
        ValueError: a robustness figure without its norm, eps or protocol, or one that is no share.
    """
    entries = [entry for entry in entries if _score_of(entry)]
    scores: dict[Setting, dict[str, float]] = {}
    reliabilities: dict[Setting, list[str]] = {}
    for entry in entries:
        if (name := _score_of(entry)) != "clean_accuracy":
            setting = _setting_of(entry)
            scores.setdefault(setting, {})[name] = _share(entry.metric_value, name)
            reliabilities.setdefault(setting, []).append(_reliability_of(entry))
    clean = [entry for entry in entries if _score_of(entry) == "clean_accuracy"]
    return [
        Result(
            source,
            setting,
            **found,
            clean_accuracy=_clean_accuracy(clean, setting),
            reliability=next((each for each in reliabilities[setting] if each != OK), OK),
            url=url,
        )
        for setting, found in scores.items()
    ]


def _score_of(entry: EvalResult) -> str | None:
    """Which of our scores an entry holds; clean accuracy may go by the Hub's own name of accuracy."""
    if entry.task_type == SEGMENTATION:
        return METRICS_OF_MASKS.get(entry.metric_type)
    if entry.metric_type in SCORES:
        return entry.metric_type
    is_clean = entry.metric_type == "accuracy" and str(entry.metric_name or "").lower().startswith("clean")
    return "clean_accuracy" if is_clean else None


def _setting_of(entry: EvalResult) -> Setting:
    told = entry.metric_args if isinstance(entry.metric_args, dict) else {}
    if lacking := [name for name in NEEDED if told.get(name) in (None, "")]:
        raise ValueError(
            f"its {entry.metric_type.replace('_', ' ')} does not tell {', '.join(lacking)} (metric args in model-index)"
        )
    threat_model = ThreatModel(told["norm"], told["eps"])
    return Setting(
        dataset=_dataset_of(entry),
        split=str(entry.dataset_split or UNKNOWN),
        images=str(told.get("samples", UNKNOWN)),
        norm=threat_model.norm,
        eps=format_eps(threat_model.eps),
        protocol=str(told["protocol"]),
        attack=str(told.get("attack", UNKNOWN)),
        image_set=image_set(told) or UNKNOWN,
        task=_task_of(entry),
    )


def _task_of(entry: EvalResult) -> str:
    return SEGMENTATION if entry.task_type == SEGMENTATION else CLASSIFICATION


def _reliability_of(entry: EvalResult) -> str:
    told = str(entry.metric_args.get("reliability", NOT_TOLD))
    return told if told == OK or told.startswith(DOUBTFUL) else NOT_TOLD


def _clean_accuracy(entries: Sequence[EvalResult], setting: Setting) -> float | None:
    """Clean accuracy on the same data; an eps of its own it need not name, as it has none."""
    for entry in entries:
        told = entry.metric_args if isinstance(entry.metric_args, dict) else {}
        where = _task_of(entry), _dataset_of(entry), str(entry.dataset_split or UNKNOWN)
        images = str(told.get("samples", setting.images)), image_set(told) or setting.image_set
        if where == (setting.task, setting.dataset, setting.split) and images == (setting.images, setting.image_set):
            return _share(entry.metric_value, "clean_accuracy")
    return None


def _dataset_of(entry: EvalResult) -> str:
    """By its id; one without an id by its name, as in a report."""
    names = (
        each for each in (entry.dataset_type, entry.dataset_name) if each not in (None, "unknown", UNNAMED_DATASET)
    )
    return dataset_text(next(names, None), entry.dataset_config)


def _share(value: object, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, Real) or not 0 <= value <= 1:
        raise ValueError(f"its {name.replace('_', ' ')} is {value!r}, not a share in [0, 1]")
    return float(value)
