"""Teaches peft the name of a method that it does not ship.

``peft.utils.register_peft_method`` takes only names that are members of the enum ``peft.PeftType``, which cannot be
subclassed once it has members. :func:`register` adds the member in memory, then hands over to peft; no file of the
installed package is touched.
"""

from __future__ import annotations

from peft import PeftConfig, PeftType
from peft.mapping import (
    PEFT_TYPE_TO_CONFIG_MAPPING,
    PEFT_TYPE_TO_PREFIX_MAPPING,
    PEFT_TYPE_TO_TUNER_MAPPING,
)
from peft.tuners.tuners_utils import BaseTuner
from peft.utils import register_peft_method


def peft_type(name: str) -> PeftType:
    """Returns ``PeftType[name.upper()]``, adding the member if there is none.

    A config needs it in ``__post_init__``, which may run before the method is registered.

    Args:
        name: the method's name, lower case.
    """
    member_name = name.upper()
    if member_name in PeftType.__members__:
        return PeftType[member_name]
    # What the enum's own metaclass does for a member of a (str, Enum) class when the class body is executed.
    member = str.__new__(PeftType, member_name)
    member._name_ = member_name
    member._value_ = member_name
    member.__objclass__ = PeftType
    member._sort_order_ = len(PeftType.__members__)
    PeftType._member_names_.append(member_name)
    PeftType._member_map_[member_name] = member
    PeftType._value2member_map_[member_name] = member
    type.__setattr__(PeftType, member_name, member)
    return member


def register(name: str, config_cls: type[PeftConfig], tuner_cls: type[BaseTuner]) -> None:
    """Makes ``get_peft_model``, ``PeftModel.from_pretrained`` and all that builds on them know a method.

    Registering the same classes again changes nothing, so that a package may do it whenever it is imported. Classes of
    the same module and name replace those registered before: they come from reloading it.

    Args:
        name: lower case; ``peft_type`` in ``adapter_config.json`` is its upper case.
        config_cls: sets ``peft_type`` in ``__post_init__`` with :func:`peft_type`.
        tuner_cls: its ``prefix`` is that of its layers' parameter containers.

    Raises:
        RuntimeError: another class is registered under this name, by peft itself or by another package.
    """
    member = peft_type(name)
    owner = PEFT_TYPE_TO_CONFIG_MAPPING.get(member) or PEFT_TYPE_TO_TUNER_MAPPING.get(member)
    if owner is None:
        register_peft_method(name=name, config_cls=config_cls, model_cls=tuner_cls, prefix=tuner_cls.prefix)
    elif _full_name(owner) == _full_name(config_cls):
        PEFT_TYPE_TO_CONFIG_MAPPING[member] = config_cls
        PEFT_TYPE_TO_TUNER_MAPPING[member] = tuner_cls
        PEFT_TYPE_TO_PREFIX_MAPPING[member] = tuner_cls.prefix
    else:
        raise RuntimeError(
            f"peft already has a method {name!r} ({_full_name(owner)}), which is not {_full_name(config_cls)}; "
            f"uninstall one of the two packages, or pin a peft release that does not ship {name!r}."
        )


def _full_name(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"
