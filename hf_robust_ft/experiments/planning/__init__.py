"""What a run would cost, before any of it is spent: `hf-robust-ft train --dry_run`."""

from hf_robust_ft.experiments.planning.arguments import PlanArguments
from hf_robust_ft.experiments.planning.gpus import GPUS
from hf_robust_ft.experiments.planning.offline import offline
from hf_robust_ft.experiments.planning.plan import Plan, configuration, hours_text, plan_run

__all__ = ["GPUS", "Plan", "PlanArguments", "configuration", "hours_text", "offline", "plan_run"]
