"""UNO: unlearning by orthogonalising loss gradients, and UNO-S, its alternation with surgery (arXiv
2506.04712)."""

from pydantic import Field
from torch import Tensor

from pipeline.unlearning.gradients import Gradients
from pipeline.unlearning.methods.exchange import exchange
from pipeline.unlearning.methods.settings import MethodSettings
from pipeline.unlearning.methods.surgery import surgery
from pipeline.unlearning.penalty import penalty_directions


class UnoSettings(MethodSettings):
    penalty: float = Field(0.01, ge=0, description="lambda of grad cos^2")


class UnoSSettings(UnoSettings):
    surgery_every: int = Field(2, ge=1, description="every k-th step is a surgery step")


def uno(gradients: Gradients, settings: UnoSettings) -> Tensor:
    """g_r + lambda grad cos^2(g_f, g_r), in the exact two-phase form: reduce g_f and g_r, then one more
    backward.

    Nothing of L_r + L_x is back-propagated twice, and the result is the same at any number of ranks.
    """
    gradients.log["phase"] = "uno"
    # UNO without its penalty is the exchange loss, at the cost of the exchange loss
    if settings.penalty == 0:
        return exchange(gradients, settings)
    g_f, g_r = gradients.of("forget", "keep", twice=True)
    u, v, d = penalty_directions(g_f, g_r, gradients.total)
    del g_f  # a vector less to hold while the graphs are alive
    h = gradients.second_order_product({"forget": u, "keep": v})
    gradients.log["cos"] = d.cos
    gradients.log["grad_norm/penalty"] = settings.penalty * gradients.norm(h).double()
    return h.mul_(settings.penalty).add_(g_r)


def uno_s(gradients: Gradients, settings: UnoSSettings) -> Tensor:
    """UNO, with a surgery step every `surgery_every`-th step; one optimiser state for both (k = 2 in the
    paper)."""
    if gradients.index % settings.surgery_every == 0:
        gradients.log["phase"] = "surgery"
        return surgery(gradients, settings)
    return uno(gradients, settings)
