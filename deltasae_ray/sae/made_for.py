"""Whether a dictionary was made for the base model, by name and family: models of one width are common, and
what a dictionary of another does to activations shows only after the harvest."""

import re
from dataclasses import dataclass

from deltasae_ray.errors import DictionaryError

_VARIANT = re.compile(r"-(pt|it|base|chat|instruct|hf|v\d+(\.\d+)*)$")
"""Endings that leave a model's residual stream what a dictionary made for its sibling can read: whether it
does, base activations show."""
_FAMILIES = {
    "gemma-3-": "gemma3",
    "gemma-2-": "gemma2",
    "gemma-": "gemma",
    "llama-": "llama",
    "deepseek-r1-distill-llama-": "llama",
    "mistral-": "mistral",
    "qwen3.5-": "qwen3_5",
    "qwen3-": "qwen3",
    "qwen2.5-": "qwen2",
    "gpt-oss-": "gpt_oss",
    "gpt2": "gpt2",
    "pythia-": "gpt_neox",
}
"""How names begin → `model_type` of the config, the more special first."""
_SCOPE = re.compile(
    r"gemma-scope-(2-)?([0-9]+[mb])-(pt|it)(?:-(res|mlp|att))?(?:/(?:snapshots/\w+/)?(\w+)(?=/layer_))?"
)


@dataclass(frozen=True)
class BaseModel:
    """What a dictionary is to be made for."""

    label: str
    """What the user calls it."""
    name: str
    """Name of the model on the hub; empty where a folder does not say."""
    kind: str
    """`model_type` of its config."""
    d_model: int


def check_model(reference: object, made_for: str | None, base: BaseModel, accepted: str = "") -> None:
    """Holds the name that a dictionary's metadata give against the base model, where both are known.

    Args:
        made_for: what the metadata say; where they say nothing there is nothing to hold.
        accepted: a name that the user says is right.

    Raises:
        DictionaryError: another model, or one of another family; both are named.
    """
    if not made_for or plain_name(made_for) == plain_name(accepted):
        return
    name = plain_name(made_for)
    family = next((kind for prefix, kind in _FAMILIES.items() if name.startswith(prefix)), None)
    if base.name:
        same = name == plain_name(base.name)
    else:
        same = not family or not base.kind or base.kind == family or base.kind.startswith(f"{family}_")
    if not same:
        base_name = base.name or f"of the family {base.kind}"
        raise DictionaryError(
            f"{reference} was made for {made_for}, but model.base={base.label} is {base_name}: give a"
            f" reference that was made for it, or set reference.made_for={made_for} if that model is the"
            " one this was tuned from"
        )


def has_rms_norm(name: str) -> bool:
    """Whether a model of this name is of a family that normalises by the root mean square, which sees the
    mean over d_model."""
    plain = plain_name(name)
    return any(
        plain.startswith(prefix) and kind not in ("gpt2", "gpt_neox") for prefix, kind in _FAMILIES.items()
    )


def plain_name(name: str) -> str:
    """A model's name without its owner, in lower case, without what distinguishes siblings:
    google/gemma-2-9b-it → gemma-2-9b."""
    name = name.rstrip("/").rsplit("/", 1)[-1].lower().removeprefix("meta-")
    while (shorter := _VARIANT.sub("", name)) != name:
        name = shorter
    return "gpt2" if name == "gpt2-small" else name


def scope_of(path: str) -> tuple[str, str] | None:
    """(model, kind of hookpoint) that the name of a Gemma Scope repository in a path stands for; None where
    there is none.

    The kind is res, mlp or att by the name, or the folder of the second Gemma Scope, such as resid_post;
    empty where neither is there.
    """
    match = _SCOPE.search(path)
    if match is None:
        return None
    second, size, variant, kind, folder = match.groups()
    ending = "-it" if variant == "it" else "" if not second or size == "270m" else "-pt"
    return f"google/gemma-{'3' if second else '2'}-{size}{ending}", kind or folder or ""
