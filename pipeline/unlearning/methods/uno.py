"""UNO: unlearning by orthogonalising loss gradients, and UNO-S, its alternation with surgery (arXiv
2506.04712)."""

from torch import Tensor

from pipeline.unlearning.gradients import Step
from pipeline.unlearning.methods.settings import MethodSettings
from pipeline.unlearning.methods.surgery import surgery
from pipeline.unlearning.penalty import penalty_directions


def uno(step: Step, settings: MethodSettings) -> Tensor:
    """g_r + lambda grad cos^2(g_f, g_r), in the exact two-phase form: reduce g_f and g_r, then one more
    backward.

    Nothing of L_r + L_x is back-propagated twice, and the result is the same at any number of ranks.
    """
    step.log["phase"] = "uno"
    # UNO without its penalty is the exchange loss, at the cost of the exchange loss
    if settings.penalty == 0:
        return step.gradient("keep")
    g_f, g_r = step.gradients("forget", "keep", twice=True)
    u, v, d = penalty_directions(g_f, g_r)
    del g_f  # a vector less to hold while the graphs are alive
    h = step.second_order_product({"forget": u, "keep": v})
    step.log["cos"] = d.cos
    step.log["grad_norm/penalty"] = settings.penalty * h.norm().item()
    return g_r + settings.penalty * h


def uno_s(step: Step, settings: MethodSettings) -> Tensor:
    """UNO, with a surgery step every `surgery_every`-th step; one optimiser state for both (k = 2 in the
    paper)."""
    if step.index % settings.surgery_every == 0:
        step.log["phase"] = "surgery"
        return surgery(step, settings)
    return uno(step, settings)
