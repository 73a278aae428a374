"""A whole run, and how it is read: by name or path, over its base, with changes from the command line."""

from __future__ import annotations

import contextlib
import types
import typing
from pathlib import Path
from typing import Annotated, Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from lumitok.config.diffusion import DiffusionRecipe
from lumitok.config.end_to_end import EndToEndRecipe
from lumitok.config.origin import INIT, model_of
from lumitok.config.picture_recipe import PictureRecipe
from lumitok.config.section import Section
from lumitok.errors import LumitokError, nearest

RECIPES = Path(__file__).parent.parent / "recipes"
# Words that people try for `init`, and that no spelling is near to.
_WORDS_FOR_INIT = ("start", "checkpoint", "pretrained", "weights")


class Recipe(PictureRecipe):
    """A whole run that trains a tokenizer."""


AnyRecipe = Recipe | DiffusionRecipe | EndToEndRecipe
"""Every kind of run."""
_TRAINS: dict[type[Section], str] = {
    Recipe: "a tokenizer",
    DiffusionRecipe: "a diffusion network",
    EndToEndRecipe: "a tokenizer and a diffusion network together",
}


# ------------------------------------------------------------------------------------------------
# Reading


def recipe_names() -> list[str]:
    """Names of the recipes that come with the package, such as ``vfm-vae/demo``."""
    return sorted(p.relative_to(RECIPES).with_suffix("").as_posix() for p in RECIPES.rglob("*.yaml"))


def recipe_path(name: str) -> Path:
    """Return the file of a shipped recipe, or of a YAML file named by its path."""
    if name.endswith((".yaml", ".yml")):
        path = Path(name).expanduser()
        if not path.is_file():
            beside = [str(p) for p in (*path.parent.glob("*.yaml"), *path.parent.glob("*.yml"))]
            raise LumitokError(f"there is no recipe file '{name}'{nearest(name, beside)}")
        return path
    names = recipe_names()
    if name not in names:
        raise LumitokError(f"there is no recipe '{name}'{nearest(name, names)} (`lumitok recipes` lists all)")
    return RECIPES / f"{name}.yaml"


Overrides = list[str] | tuple[str, ...]
"""Such as ``data.train=photos`` or ``stages.0.batch_size=16``; values are YAML."""


def load_any(name: str, overrides: Overrides = ()) -> AnyRecipe:
    """Read a recipe by name or path, and apply ``key=value`` overrides.

    Args:
        name: a shipped recipe's name or the path of a YAML file.
        overrides: what to change.

    Returns:
        The recipe of a tokenizer where it has a ``model``, of a diffusion network where it has a
        ``network``, and of both together where it has both.
    """
    tree = _tree(name, overrides)
    if "network" not in tree:
        return _validate(tree, name, Recipe)
    if "model" in tree:
        return _validate(tree, name, EndToEndRecipe)
    return _validate(tree, name, DiffusionRecipe)


def load_recipe(name: str, overrides: Overrides = ()) -> Recipe:
    """Read a tokenizer's recipe; as :func:`load_any`, but another kind of recipe is an error."""
    found = load_any(name, overrides)
    if not isinstance(found, Recipe):
        raise LumitokError(f"recipe {name} trains {_TRAINS[type(found)]}, and a tokenizer's is needed here")
    return found


def load_diffusion_recipe(name: str, overrides: Overrides = ()) -> DiffusionRecipe:
    """Read a diffusion network's recipe; as :func:`load_any`, but another kind of recipe is an error."""
    found = load_any(name, overrides)
    if not isinstance(found, DiffusionRecipe):
        raise LumitokError(
            f"recipe {name} trains {_TRAINS[type(found)]}, and a diffusion network's is needed here"
        )
    return found


def _tree(name: str, overrides: Overrides) -> dict[str, Any]:
    path = recipe_path(name)
    tree = _read(path)
    tree.setdefault("name", path.stem if name.endswith((".yaml", ".yml")) else name)
    for override in overrides:
        _override(tree, override)
        _spell_out(tree)
    _take_model(tree, str(name))
    return tree


def dump_recipe(recipe: AnyRecipe | PictureRecipe) -> str:
    """Return the resolved recipe as YAML: every key, defaults included."""
    text: str = yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, width=100, allow_unicode=True)
    return text


def save_recipe(recipe: AnyRecipe | PictureRecipe, path: Path) -> None:
    """Write the resolved recipe."""
    path.write_text(dump_recipe(recipe), encoding="utf-8")


def _read(path: Path, seen: tuple[Path, ...] = ()) -> dict[str, Any]:
    """Read a YAML file over the recipe that its ``base`` names, or the recipes that its ``chain`` names."""
    path = path.resolve()
    if path in seen:
        raise LumitokError(f"recipe {path} is its own base: {' -> '.join(str(p) for p in (*seen, path))}")
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise LumitokError(f"{path} is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(tree, dict):
        raise LumitokError(f"{path} is not a recipe: it holds a {type(tree).__name__}, not keys and values")
    _spell_out(tree)
    base, chain = tree.pop("base", None), tree.pop("chain", None)
    if base is not None and chain is not None:
        raise LumitokError(f"{path} has both 'base' and 'chain'; keep one of them")
    if chain is not None:
        return _chained(chain, tree, path, seen)
    if base is None:
        return tree
    merged: dict[str, Any] = _merge(_parent(base, path, seen), tree)
    return merged


def _parent(name: Any, path: Path, seen: tuple[Path, ...]) -> dict[str, Any]:
    """Read a recipe that the one at ``path`` builds on."""
    if str(name).endswith((".yaml", ".yml")):
        name = path.parent / str(name)  # A file is named from where the recipe lies.
    parent = _read(recipe_path(str(name)), (*seen, path))
    for key in ("name", "out"):  # The child's own.
        parent.pop(key, None)
    return parent


def _chained(chain: Any, tree: dict[str, Any], path: Path, seen: tuple[Path, ...]) -> dict[str, Any]:
    """Join recipes into one that runs through the stages of all in turn."""
    if not isinstance(chain, list) or not chain:
        raise LumitokError(f"{path}: 'chain' is a list of recipes, not {chain!r}")
    links = [_parent(name, path, seen) for name in chain]
    joined: dict[str, Any] = {}
    for link in links:
        joined = _merge(joined, link)
    joined["stages"] = [stage for link in links for stage in link.get("stages", [])]
    joined["init"] = links[0].get("init", "")  # The others start from the one before.
    merged: dict[str, Any] = _merge(joined, tree)
    return merged


def _spell_out(tree: dict[str, Any]) -> None:
    """Write ``model: init`` as a section, so that other recipes and changes can be laid over it."""
    if tree.get("model") == INIT:
        tree["model"] = {"type": INIT}


def _take_model(tree: dict[str, Any], source: str) -> None:
    """Put the checkpoint's model where ``model: init`` stands, and over it what else stands there."""
    model = tree.get("model")
    if not isinstance(model, dict) or model.get("type") != INIT:
        return
    if not tree.get("init"):
        raise LumitokError(
            f"recipe {source}: its model is that of the checkpoint to begin with, and none is named; add "
            "init=FOLDER, a run, a checkpoint or a tokenizer"
        )
    changes = {key: value for key, value in model.items() if key != "type"}
    tree["model"] = _merge(model_of(str(tree["init"])), changes)


def _merge(base: Any, change: Any) -> Any:
    """Lay ``change`` over ``base``: sections key by key; a section of numbers over a list, item by item."""
    if isinstance(base, dict) and isinstance(change, dict):
        if "type" in base and change.get("type", base["type"]) != base["type"]:
            return change  # A model of another type has other keys.
        return {**base, **{k: _merge(base[k], v) if k in base else v for k, v in change.items()}}
    if isinstance(base, list) and isinstance(change, dict):
        items = list(base)
        for key, value in change.items():
            place = _index(items, str(key), f"{key}: {value}")
            items[place] = _merge(items[place], value)
        return items
    return change


def _override(tree: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise LumitokError(f"'{override}' is not key=value, for example data.train=photos")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        value = text
    if isinstance(value, str):  # YAML 1.1 reads 1e-4 as text.
        with contextlib.suppress(ValueError):
            value = float(value) if value[:1].isdigit() else value
    node: Any = tree
    *path, last = key.split(".")
    for depth, step in enumerate(path):
        if isinstance(node, list):
            node = node[_index(node, step, override)]
        else:
            if node.get(step) is None:
                node[step] = {}
            node = node[step]
        if not isinstance(node, dict | list):
            raise LumitokError(f"'{override}': {'.'.join(path[: depth + 1])} has no keys below it")
    if isinstance(node, list):
        node[_index(node, last, override)] = value
    else:
        node[last] = value


def _index(items: list[Any], step: str, override: str) -> int:
    if not step.isdigit() or int(step) >= len(items):
        raise LumitokError(
            f"'{override}': '{step}' is not a place in a list of {len(items)} (0 to {len(items) - 1})"
        )
    return int(step)


_Kind = TypeVar("_Kind", Recipe, DiffusionRecipe, EndToEndRecipe)


def _validate(tree: dict[str, Any], source: str, kind: type[_Kind]) -> _Kind:
    try:
        return kind.model_validate(tree)
    except ValidationError as error:
        raise LumitokError(f"recipe {source}: {first_fault(error, kind)}") from None


def first_fault(error: ValidationError, kind: type[Section] | None = None) -> str:
    """Say the first thing that is wrong in one sentence; a misspelt key before all else.

    Args:
        error: what pydantic found.
        kind: the section that was read; None: a whole recipe.
    """
    first = min(error.errors(), key=lambda fault: fault["type"] != "extra_forbidden")
    where, known = _follow(first["loc"], kind or Recipe)
    if first["type"] == "extra_forbidden":
        if where in _WORDS_FOR_INIT:
            return f"there is no key '{where}'; the weights to begin with are named by 'init'"
        return f"there is no key '{where}'{nearest(str(first['loc'][-1]), known)}"
    if first["type"] == "missing":
        return f"the key '{where}' is missing"
    if first["type"] == "union_tag_invalid":
        return _wrong_type(where, first)
    message = first["msg"].removeprefix("Value error, ")
    got = "" if isinstance(first["input"], dict | BaseModel) else f", not {first['input']!r}"
    return f"{where + ': ' if where else ''}{message[:1].lower() + message[1:]}{got}"


def _wrong_type(where: str, fault: Any) -> str:
    if not isinstance(fault["input"], dict):
        return f"{where}: input should be a section with keys and values, not {fault['input']!r}"
    wrong, known = fault["ctx"]["tag"], [tag.strip("' ") for tag in fault["ctx"]["expected_tags"].split(",")]
    return f"{where}.type: there is no '{wrong}', only {', '.join(known)}{nearest(wrong, known)}"


def _follow(location: tuple[int | str, ...], kind: Any) -> tuple[str, list[str]]:
    """Where a fault lies as the recipe writes it, and the keys that are right beside its last step.

    Where a section may be of several types, pydantic names the chosen one as a step of its own.
    """
    steps: list[str] = []
    known: list[str] = []
    for step in location:
        sections = _sections_of(kind)
        chosen = [s for s in sections if "type" in s.model_fields and s.model_fields["type"].default == step]
        if len(sections) > 1 and chosen:
            kind = chosen[0]
            continue
        steps.append(str(step))
        if isinstance(step, str):
            fields = sections[0].model_fields if sections else {}
            known = list(fields)
            kind = fields[step].annotation if step in fields else None
    return ".".join(steps), known


def _sections_of(annotation: Any) -> list[type[Section]]:
    """Find the section classes inside an annotation such as ``list[StageConfig]`` or ``X | None``."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return [annotation]
    if typing.get_origin(annotation) in (list, tuple, typing.Union, types.UnionType, Annotated):
        return [found for part in typing.get_args(annotation) for found in _sections_of(part)]
    return []
