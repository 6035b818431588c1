"""The values of a run's secrets, from wherever they can be had; they are handed over and kept nowhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from holdfast.plan import Plan
    from holdfast.spec import Spec


def secret_values(spec: Spec, plan: Plan, given: Sequence[str], environ: Mapping[str, str]) -> dict[str, str]:
    """The value of every secret: from --secret, from the environment, or fetched. Raises SecretUnavailable."""
    from holdfast import credentials

    values = credentials.fetch(plan.secret_recipes)
    said = {name: value for name, equals, value in (option.partition("=") for option in given) if equals}
    for name in spec.secrets:
        if name not in values:
            values[name] = said[name] if name in said else environ[name]
    return values


def secrets_of(plan: Mapping[str, Any], environ: Mapping[str, str]) -> dict[str, str]:
    """The run's secrets that can be had: from `{file:}` and `{command:}`, and from the caller's environment.

    Raises SecretUnavailable. What is still missing the supervisor will say.
    """
    from holdfast.credentials import fetch

    given = {name: environ[name] for name in plan.get("secret_names", ()) if name in environ}
    return {**fetch(plan.get("secret_recipes", {})), **given}
