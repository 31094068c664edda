"""What step size controllers around another one have in common."""

from typing import Any

import diffrax as dfx


class AbstractWrappedController(dfx.AbstractAdaptiveStepSizeController):
    """A step size controller that changes what another, its `controller`, proposes; tolerances are that one's."""

    controller: Any

    @property
    def rtol(self) -> Any:
        return self.controller.rtol

    @property
    def atol(self) -> Any:
        return self.controller.atol

    @property
    def norm(self) -> Any:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.controller.norm
