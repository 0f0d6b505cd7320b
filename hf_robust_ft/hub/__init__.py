"""Publishing on the Hub: a checkpoint with the evidence of its robustness, and the metric as a Space."""

from hf_robust_ft.hub.errors import BackgroundPushError, PublishError
from hf_robust_ft.hub.metric_space import publish_metric
from hf_robust_ft.hub.publishing import publish
from hf_robust_ft.hub.repository import create_repository

__all__ = ["BackgroundPushError", "PublishError", "create_repository", "publish", "publish_metric"]
