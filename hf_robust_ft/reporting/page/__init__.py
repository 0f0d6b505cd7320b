"""One self-contained HTML page of several runs; what `hf-robust-ft report` writes."""

from hf_robust_ft.reporting.page.assets import check_target, write_page
from hf_robust_ft.reporting.page.render import plotly_source, render_page
from hf_robust_ft.reporting.page.runs import Run, Timeline, read_runs

__all__ = ["Run", "Timeline", "check_target", "plotly_source", "read_runs", "render_page", "write_page"]
