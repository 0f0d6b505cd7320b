"""A diagnosis in words: a table, and a sentence of advice."""

from hf_robust_ft.attacks.threat_model import format_eps
from hf_robust_ft.provenance.validation_curves import PAPER_THRESHOLD
from hf_robust_ft.reporting.diagnosis import FEWEST_POINTS, Diagnosis, RunDiagnosis, ScheduleEpochs, counted

# A smaller loss of final accuracy calls for no schedule; the paper's fix runs lose 38 points on average at 4/255.
TOLERATED_DROP = 0.05


def render_diagnosis(diagnosis: Diagnosis) -> str:
    """Delay, final accuracy and severity of every run, their correlation, what to beware of, and the advice."""
    length = f"{diagnosis.num_epochs:g}"
    lines = [
        f"{'run':<28} {'eps':>8} {'adapted in epoch':>17} {'final accuracy':>15} {'drop':>8}",
        *(
            f"{run.name:<28} {format_eps(run.eps):>8} {_shown_delay(run):>17} {run.final_accuracy:>15.1%} "
            f"{run.severity:>8.1%}"
            for run in diagnosis.runs
        ),
        "",
        f"Adapted: validation accuracy above {diagnosis.threshold:.1%}. Drop: against standard fine-tuning.",
    ]
    if diagnosis.never:
        lines.append(f"'never' (in {length} epochs) counts as {length}, a lower bound.")
    found = diagnosis.correlation
    if len(diagnosis.runs) < FEWEST_POINTS:
        lines.append(
            f"A correlation of delay and drop needs {FEWEST_POINTS} runs: add some at other eps, or other seeds."
        )
    elif found is None:
        lines.append("Delay or drop is the same in all runs, so their correlation is not defined.")
    else:
        lines.append(
            f"Correlation of delay and drop over {found.num_points} runs: {found.value:.2f}, {found.level:.0%} "
            f"bootstrap interval {found.interval[0]:.2f} to {found.interval[1]:.2f} (of delay and final accuracy, "
            f"the paper's Figure 9: {-found.value:.2f})."
        )
    if warning := chance_warning(diagnosis.threshold, len(diagnosis.facts.get("classes", ()))):
        lines.append(f"Beware: {warning}")
    return "\n".join([*lines, "", advice(diagnosis)])


def advice(diagnosis: Diagnosis) -> str:
    """Whether a schedule is needed, and with which T1 and T2; the first can be told where the second cannot."""
    unknown = f"T1 and T2 cannot be told from these runs. {diagnosis.no_schedule}"
    if any(run.delay is None for run in diagnosis.runs if run.eps == 0):
        return unknown
    worst = max((run for run in diagnosis.runs if run.eps > 0), key=lambda run: run.severity)
    last = f"at eps {format_eps(worst.eps)} fix ends {100 * worst.severity:.1f} points below standard fine-tuning"
    epochs = schedule_text(diagnosis.schedule) if diagnosis.schedule else None
    if_used = f"; if you use one, {epochs}" if epochs else f". {unknown}"
    if worst.severity <= TOLERATED_DROP:
        return (
            f"No schedule is needed up to eps {format_eps(diagnosis.runs[-1].eps)}: fix loses at most "
            f"{100 * max(worst.severity, 0):.1f} points against standard fine-tuning{if_used}"
        )
    later = _later(diagnosis, worst)
    if worst.delay is not None and later <= 0:
        return (
            f"A schedule may help little: {last}, but does not adapt later, so the drop is rather the price of "
            f"robustness than suboptimal transfer{if_used}"
        )
    how = "and never adapts" if worst.delay is None else f"and adapts {later:.3g} epochs later"
    return f"Use a schedule: {last} {how}. " + (f"Take {epochs}" if epochs else unknown)


def schedule_text(schedule: ScheduleEpochs) -> str:
    """T1 and T2 in epochs and as `train`'s options."""
    start, end = schedule.shares
    note = f" {schedule.note[0].upper()}{schedule.note[1:]}." if schedule.note else ""
    return (
        f"T1 = {schedule.start} and T2 = {schedule.end} of {schedule.num_epochs:g} epochs "
        f"(--schedule_start {start:.4g} --schedule_end {end:.4g}).{note}"
    )


def chance_warning(threshold: float, num_classes: int) -> str:
    """What to say of a threshold that guessing exceeds; empty where it does not, or the classes are unknown."""
    if not num_classes or threshold > 1 / num_classes:
        return ""
    return (
        f"guessing among {num_classes} classes is right in {1 / num_classes:.1%} of cases, so the threshold of "
        f"{threshold:.1%} tells little; try --threshold {threshold_for(num_classes):.2g}. (The paper's tasks have 100 "
        "classes and more.)"
    )


def threshold_for(num_classes: int) -> float:
    """The paper's threshold, or where guessing exceeds it five times what guessing achieves, at most a half.

    Args:
        num_classes: 0 where it is not known.

    >>> threshold_for(100), threshold_for(20), threshold_for(10)
    (0.05, 0.25, 0.5)
    """
    return min(5 / num_classes, 0.5) if num_classes and 1 / num_classes >= PAPER_THRESHOLD else PAPER_THRESHOLD


def _shown_delay(run: RunDiagnosis) -> str:
    return "never" if run.delay is None else f"{run.delay:g}"


def _later(diagnosis: Diagnosis, run: RunDiagnosis) -> float:
    """Epochs by which a run adapts later than the standard runs do on average."""
    standard = [counted(each.delay, diagnosis.num_epochs) for each in diagnosis.runs if each.eps == 0]
    return counted(run.delay, diagnosis.num_epochs) - sum(standard) / len(standard)
