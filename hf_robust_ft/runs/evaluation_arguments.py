"""What `hf-robust-ft evaluate` is told."""

from dataclasses import dataclass, field
from functools import cached_property

from hf_robust_ft.attacks.losses import LOSSES
from hf_robust_ft.attacks.threat_model import ThreatModel
from hf_robust_ft.evaluation.convergence import AUTO, STEPS_LIMIT
from hf_robust_ft.evaluation.protocols import evaluation_attack
from hf_robust_ft.evaluation.settings import EvaluationSettings, check
from hf_robust_ft.runs.checkpoint_arguments import CheckpointArguments


@dataclass
class EvaluationArguments(CheckpointArguments):
    """How `hf-robust-ft evaluate` measures."""

    model: str = field(
        metadata={
            "help": "A checkpoint: the Hub id of an image model of transformers, a folder or a weight file.",
            "affects": ("weights", "measurement"),
        }
    )
    split: str = field(
        default="test", metadata={"help": "Split to evaluate on: test, validation or train.", "affects": "measurement"}
    )
    norm: str = field(
        default="Linf", metadata={"help": "Norm of the perturbation: Linf, L2, L1.", "affects": "measurement"}
    )
    eps: str = field(
        default="4/255",
        metadata={"help": "Largest budget, in pixel units of [0, 1]: 4/255 or 0.0157.", "affects": "measurement"},
    )
    epsilons: list[str] | None = field(
        default=None,
        metadata={
            "help": "Budgets, increasing from 0 to eps (default: under Linf every 1/255, the paper's grid; under L2 "
            "and L1 8 equal steps).",
            "affects": "measurement",
        },
    )
    attack_steps: str = field(
        default=None,
        metadata={
            "help": "APGD steps; 'auto' doubles them, from 10, on what still stands until the accuracy settles "
            "(default: 10; under protocol reliable auto).",
            "affects": "measurement",
        },
    )
    attack_steps_limit: int = field(
        default=STEPS_LIMIT,
        metadata={"help": "The most steps of 'auto'.", "affects": "measurement", "of": "attack_steps"},
    )
    attack_loss: str = field(
        default="ce",
        metadata={
            "help": "Loss that the attack climbs: ce, dlr, dlr_targeted; of masks "
            "pixel_ce (for ce), segpgd, masked_ce, js, masked_spherical.",
            "affects": "measurement",
        },
    )
    protocol: str = field(
        default="paper",
        metadata={
            "help": "How the curve is measured: paper (comparable), exact (stronger, no quadrature error), "
            "reliable (the worst case of four attacks, its steps auto).",
            "affects": "measurement",
        },
    )
    eps_distributions: list[str] = field(
        default_factory=list,
        metadata={
            "help": "Also report expected robustness for these distributions of eps: beta:2,5  truncnorm:MEAN,STD  "
            "dirac:EPS, or any weights of any eps, e.g. weights:0=1,2/255=3.",
            "affects": "measurement",
        },
    )
    autoattack: int = field(
        default=0,
        metadata={
            "help": "Run standard AutoAttack on what is left of so many images, drawn at random.",
            "affects": "measurement",
        },
    )
    trust_checks: bool = field(
        default=True,
        metadata={
            "help": "Check on 64 images, drawn by class, whether the numbers can be trusted.",
            "affects": "measurement",
        },
    )
    batch_size: int = field(
        default=64, metadata={"help": "Images at a time.", "affects": "measurement", "stated": "never"}
    )
    device: str | None = field(
        default=None, metadata={"help": "cpu, cuda, cuda:1, ... (default: cuda if there is).", "affects": "launch"}
    )
    output_dir: str | None = field(
        default=None,
        metadata={
            "help": "Write robustness_report.json, the curve and a card here, and the results of each batch, from "
            "which a run that was cut off goes on (default: print only).",
            "affects": "launch",
        },
    )
    save_examples: int = field(
        default=0,
        metadata={
            "help": "Write strips of image, adversarial example and difference for so many images that were right, "
            "half of which fell.",
            "affects": "launch",
        },
    )

    store_examples: bool = field(
        default=False,
        metadata={
            "help": "Store the adversarial example found for each image in output_dir, with which 'hf-robust-ft "
            "verify' checks the report without attacking: 4 bytes a channel of each pixel of the images that fall.",
            "affects": "launch",
        },
    )

    def __post_init__(self):
        if self.batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {self.batch_size}.")
        for name in ("autoattack", "save_examples"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is a number of images, got {getattr(self, name)}.")
        for name in ("save_examples", "store_examples"):
            if getattr(self, name) and not self.output_dir:
                raise ValueError(f"{name} needs an output_dir to write to.")
        self.asked_steps = self.attack_steps  # None where the protocol's own are meant
        if self.attack_loss in LOSSES and (LOSSES[self.attack_loss].dense or LOSSES[self.attack_loss].given):
            return  # of another task, which has settings of its own
        self.attack_steps = AUTO if self.settings.converges else self.settings.attack.steps

    @cached_property
    def settings(self) -> EvaluationSettings:
        """What decides the figures."""
        return check(
            ThreatModel(self.norm, self.eps),
            epsilons=self.epsilons,
            attack=evaluation_attack(loss=self.attack_loss, norm=self.norm),
            attack_steps=self.attack_steps,
            attack_steps_limit=self.attack_steps_limit,
            protocol=self.protocol,
            distributions=self.eps_distributions,
            autoattack=self.autoattack,
        )
