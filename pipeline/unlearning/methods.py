"""The table of methods. A new one is one file and one line here; the contract tests walk this table."""

from collections.abc import Callable

from torch import Tensor

from pipeline.unlearning.ascent import ascent, ascent_descent
from pipeline.unlearning.esd import esd
from pipeline.unlearning.exchange import exchange
from pipeline.unlearning.finetune import finetune
from pipeline.unlearning.salun import salun
from pipeline.unlearning.settings import MethodSettings
from pipeline.unlearning.step import Step
from pipeline.unlearning.surgery import surgery, surgery_ascent
from pipeline.unlearning.uno import uno, uno_s

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
