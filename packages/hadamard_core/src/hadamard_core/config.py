"""What every method of the family is configured with.

Fields that peft's own methods have keep their names and rules. ``roles`` is the addition: it names projections by what
they do ("query"), which means the same on every architecture, fused projections included.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from numbers import Integral
from pathlib import Path
from typing import Any, ClassVar, get_args

from peft import PeftConfig

from hadamard_core.functional import Compute

DEFAULT_ROLES = ("query", "value")

# What PeftConfig.from_pretrained says without the import is a bare KeyError, so the card that lies beside the config
# says what to do.
_CARD_SECTION = """
## Loading this adapter

This is a {method} adapter. peft learns the method from the package `{distribution}`, which has to be imported first:

```python
import {module}
from peft import PeftModel

model = PeftModel.from_pretrained(base_model, "PATH")
```
"""


@dataclass
class HadamardConfig(PeftConfig):
    """Base of the configs of the family.

    Args:
        target_modules: names of the modules to adapt, by peft's rules: a list of names or suffixes, a regular
            expression, or ``"all-linear"``. Takes the place of ``roles``, which is then left out, and adapts a fused
            projection as one layer.
        exclude_modules: names or a regular expression of modules to leave out.
        roles: what to adapt where ``target_modules`` is not given, see :mod:`hadamard_core.targets`. Of a fused
            projection (GPT-2's ``c_attn``), only the slices that have the role.
        layers_to_transform: indices of the layers to adapt; all if None. With ``roles``, each must be there.
        layers_pattern: the name of the ``nn.ModuleList`` that ``layers_to_transform`` counts in; with ``roles`` the
            list of the layers if None.
        modules_to_save: further modules to train and save whole, such as a classification head.
        init_weights: True starts as the identity: the adapted model is the base model, bit for bit. False starts with
            random values around it, for tests.
        compute: how :func:`hadamard_core.functional.scaled_linear` is computed: ``"auto"``, ``"weight"`` or
            ``"activation"``. The function is the same.

    Attributes:
        package: what a reader of an adapter has to import: the method's name for people, the distribution, the module.

    Raises:
        ValueError: fields that exclude each other, or values out of range.
    """

    package: ClassVar[tuple[str, str, str] | None] = None

    target_modules: list[str] | str | None = field(
        default=None, metadata={"help": "Modules to adapt: names or suffixes, a regular expression, or 'all-linear'."}
    )
    exclude_modules: list[str] | str | None = field(
        default=None, metadata={"help": "Modules to leave out: names or suffixes, or a regular expression."}
    )
    roles: Sequence[str] | None = field(
        default=DEFAULT_ROLES,
        metadata={"help": "What to adapt where target_modules is not given, by role: 'query', 'value', ..."},
    )
    layers_to_transform: list[int] | int | None = field(
        default=None, metadata={"help": "Indices of the layers to adapt; all if not given."}
    )
    layers_pattern: list[str] | str | None = field(
        default=None, metadata={"help": "Name of the nn.ModuleList that layers_to_transform counts in."}
    )
    modules_to_save: list[str] | None = field(
        default=None, metadata={"help": "Further modules to train and save whole, such as a classification head."}
    )
    init_weights: bool = field(
        default=True, metadata={"help": "Start as the identity; False starts with random values, for tests."}
    )
    compute: str = field(
        default="auto", metadata={"help": "How the product is computed: 'auto', 'weight' or 'activation'."}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.roles, str):
            self.roles = (self.roles,)
        if self.target_modules is not None:
            if self.roles is not None and tuple(self.roles) != type(self).roles:
                raise ValueError(f"target_modules and roles={tuple(self.roles)} are both given; give one of them.")
            self.roles = None
        elif self.roles is None and type(self).roles is None:
            pass  # by default the method adapts all that it can
        elif not self.roles:
            raise ValueError("Neither target_modules nor roles is given; name what to adapt.")
        else:
            self.roles = tuple(self.roles)
        if isinstance(self.target_modules, str):
            for name in ("layers_to_transform", "layers_pattern"):
                if getattr(self, name) is not None:
                    raise ValueError(f"`{name}` cannot be used when `target_modules` is a str.")
        elif self.target_modules is not None:
            self.target_modules = set(self.target_modules)
        if self.exclude_modules is not None and not isinstance(self.exclude_modules, str):
            self.exclude_modules = set(self.exclude_modules)
        if self.layers_pattern and self.layers_to_transform is None:
            raise ValueError("layers_pattern is given without layers_to_transform; name the layers to adapt.")
        if self.compute not in get_args(Compute):
            raise ValueError(
                f"compute is {self.compute!r}; it must be one of {', '.join(map(repr, get_args(Compute)))}."
            )

    def save_pretrained(self, save_directory: str, **kwargs: Any) -> None:
        """As peft's; also tells a reader of the model card, where one was written, what to import."""
        super().save_pretrained(save_directory, **kwargs)
        card = Path(save_directory) / "README.md"
        if self.package is not None and card.is_file():
            method, distribution, module = self.package
            section = _CARD_SECTION.format(method=method, distribution=distribution, module=module)
            text = card.read_text(encoding="utf-8")
            if section not in text:
                card.write_text(text + section, encoding="utf-8")

    def to_dict(self) -> dict[str, Any]:
        """As peft's, with sets in sorted order, so that equal configs are equal files."""
        return {name: sorted(value) if isinstance(value, set) else value for name, value in super().to_dict().items()}


def require_at_least(config: HadamardConfig, name: str, minimum: int) -> None:
    """Stores ``config``'s field ``name`` as an int, numpy's integers too, which ``json`` does not write.

    Raises:
        ValueError: it is no integer, or below ``minimum``.
    """
    value = getattr(config, name)
    if isinstance(value, bool) or not isinstance(value, Integral) or value < minimum:
        raise ValueError(
            f"{name} is {value!r} in {type(config).__name__}; it must be an integer of at least {minimum}."
        )
    setattr(config, name, int(value))
