"""The report as one markdown table."""

from typing import Any

from hf_robust_ft.benchmarks.gpu.sections import SECTIONS


def render(report: dict[str, Any]) -> str:
    """What ran where, and a row for each case: its figures, or why there are none."""
    setup = report["setup"]
    size = "tiny models, which show that it runs and nothing else" if setup["small"] else "224 px"
    head = (
        f"{report['card']}, torch {report['torch']}, {size}, {setup['batch_size']} images a batch, "
        f"{setup['steps']} attack steps, {report['minutes']:g} minutes given, {report['seconds']:.0f} s used."
    )
    lines = ["| section | model | setting | figures |", "|---|---|---|---|"]
    for row in report["rows"]:
        cells = [SECTIONS[row["section"]].title, row.get("model", ""), row.get("setting", ""), _figures(row)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([head, "", *lines])


def _figures(row: dict[str, Any]) -> str:
    if "error" in row:
        return f"not measured: {row['error']}".replace("|", "/")
    return "; ".join(f"{name} {shown(value)}" for name, value in row["figures"].items())


def shown(value: Any) -> str:
    """
    >>> shown({"median": 1.0314, "min": 1.0, "max": 1.25}), shown(12345.6), shown(0.1234), shown(3), shown("none")
    ('1.031 (1.000..1.250)', '12346', '0.123', '3', 'none')
    """
    if isinstance(value, dict):
        return f"{value['median']:.3f} ({value['min']:.3f}..{value['max']:.3f})"
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 100 else f"{value:.0f}"
    return str(value)
