"""The table of methods. A new one is one file and one line here; the contract tests walk this table."""

from collections.abc import Callable

from torch import Tensor

from pipeline.unlearning.gradients import Step
from pipeline.unlearning.methods.ascent import ascent, ascent_descent
from pipeline.unlearning.methods.esd import esd
from pipeline.unlearning.methods.exchange import exchange
from pipeline.unlearning.methods.finetune import finetune
from pipeline.unlearning.methods.salun import salun
from pipeline.unlearning.methods.settings import MethodSettings
from pipeline.unlearning.methods.surgery import surgery, surgery_ascent
from pipeline.unlearning.methods.uno import uno, uno_s

Method = Callable[[Step, MethodSettings], Tensor]  # returns the gradient (P,) given to the optimiser

METHODS: dict[str, Method] = {
    "finetune": finetune,
    "exchange": exchange,
    "ascent": ascent,
    "ascent_descent": ascent_descent,
    "surgery_ascent": surgery_ascent,
    "surgery": surgery,
    "uno": uno,
    "uno_s": uno_s,
    "esd": esd,
    "salun": salun,
}
