"""What a window knows of the model: frozen data under a key, and the error when it is gone."""

from dataclasses import dataclass, field

from sst_ui.errors import UserError
from sst_ui.recipe import ModelSpec


class Replaced(UserError):
    """The window's model is no longer the loaded one."""

    def __init__(self, name: str) -> None:
        super().__init__(f"another window loaded {name}; reload this page to work with it.")
        self.name = name


@dataclass(frozen=True)
class Loaded:
    """What a window needs to know of the model; safe to keep in a session."""

    key: str = ""
    name: str = ""
    spec: ModelSpec = field(default_factory=ModelSpec)
    layers: int = 12
    parameters: int = 0
    dtype: str = ""
    device: str = ""
    context: int = 0
    thinking: bool = False
    warnings: tuple[str, ...] = ()
