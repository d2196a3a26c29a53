"""Training and evaluating one fixed network.

``TrainingOptions`` says how, ``hwnas.compute.Compute`` on what; ``train`` resumes by itself, and runs on several
devices under ``torchrun``.
"""

from hwnas.training.evaluation import Scores, evaluate, score
from hwnas.training.loop import train
from hwnas.training.options import TrainingOptions

__all__ = ["Scores", "TrainingOptions", "evaluate", "score", "train"]
