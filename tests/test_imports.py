"""The rooms import one another one way only, and the command line starts without torch."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import lumitok

ROOT = Path(lumitok.__file__).parent

# The rule, once: what each room may import. Every room may import these; of the package itself it may
# take the version alone, since all else there comes from the rooms.
FOR_ALL = {"errors", "config", "__init__"}
MAY_IMPORT: dict[str, set[str]] = {
    "errors": set(),
    "config": set(),
    "nn": set(),
    "data": set(),
    "foundation": {"nn", "data"},
    "tokenizers": {"nn", "data", "foundation"},
    "losses": {"nn", "data", "foundation"},
    "diffusion": {"nn", "data"},
    "interop": {"nn", "data", "foundation", "tokenizers", "diffusion"},
    "evaluation": {"nn", "data", "foundation", "tokenizers", "losses", "diffusion"},
    "training": {"nn", "data", "foundation", "tokenizers", "losses", "diffusion", "evaluation"},
    "pipelines": {
        "nn", "data", "foundation", "tokenizers", "losses", "diffusion", "interop", "evaluation", "training",
    },
    "cli": {"pipelines", "training"},
    "__main__": {"cli"},
    # For type checkers; they load on first use.
    "__init__": {"data", "foundation", "tokenizers", "pipelines"},
}  # fmt: skip


def room_of(module: str) -> str:
    """``lumitok.data.prepare`` -> ``data``; ``lumitok`` -> ``__init__``."""
    steps = module.split(".")
    return steps[1] if len(steps) > 1 else "__init__"


def imports(source: str, package: str = "lumitok") -> set[str]:
    """Modules of lumitok that a source imports anywhere in it, also inside functions."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:  # Relative to the package that holds the file.
                parents = package.split(".")
                base = ".".join([*parents[: len(parents) - node.level + 1], *([base] if base else [])])
            # `from lumitok.data import prepare` may name a module below, or a function of the package.
            below = {f"{base}.{alias.name}" for alias in node.names}
            if base == "lumitok":
                found |= below - {"lumitok.__version__"}
            else:
                found |= {name for name in below if exists(name)} or {base}
    return {name for name in found if name.split(".")[0] == "lumitok"}


def exists(module: str) -> bool:
    path = ROOT.joinpath(*module.split(".")[1:])
    return path.is_dir() or path.with_suffix(".py").is_file()


def faults(path: Path, source: str) -> list[str]:
    relative = path.relative_to(ROOT)
    room = relative.parts[0].removesuffix(".py")
    allowed = MAY_IMPORT[room] | FOR_ALL | {room}
    package = ".".join(["lumitok", *relative.parts[:-1]])
    found = sorted(imports(source, package))
    return [f"{relative.as_posix()} imports {name}" for name in found if room_of(name) not in allowed]


def test_every_room_keeps_the_rule() -> None:
    found = [fault for path in sorted(ROOT.rglob("*.py")) for fault in faults(path, path.read_text("utf-8"))]
    assert not found, "\n".join(found)


def test_every_room_has_a_rule() -> None:
    rooms = {path.relative_to(ROOT).parts[0].removesuffix(".py") for path in ROOT.rglob("*.py")}
    assert not rooms - set(MAY_IMPORT), "add the room to MAY_IMPORT, and to docs if it is new"


def test_the_rule_has_no_circle() -> None:
    order = list(MAY_IMPORT)
    for room, allowed in MAY_IMPORT.items():
        assert all(order.index(other) < order.index(room) for other in allowed), room


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("diffusion/flow.py", "from lumitok.tokenizers import Tokenizer"),
        ("diffusion/flow.py", "def f():\n    import lumitok.tokenizers.base"),
        ("data/prepare.py", "from lumitok import training"),
        ("losses/kl.py", "from ..tokenizers.base import Tokenizer"),
        ("tokenizers/base.py", "from .. import losses"),
        ("data/prepare.py", "from lumitok import Tokenizer"),
        ("training/loop.py", "from lumitok.pipelines.demo import run_demo"),
    ],
)
def test_a_breach_is_seen(file: str, source: str) -> None:
    assert len(faults(ROOT / file, source)) == 1


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("tokenizers/base.py", "from . import vfm_vae\nfrom ..foundation import FoundationEncoder"),
        ("cli/info.py", "from lumitok import __version__\nfrom lumitok.config import load_recipe"),
        ("nn/norm.py", "import torch\nfrom diffusers import ModelMixin"),
    ],
)
def test_what_is_allowed_passes(file: str, source: str) -> None:
    assert faults(ROOT / file, source) == []


def test_the_command_line_starts_without_heavy_packages() -> None:
    code = (
        "import sys, lumitok, lumitok.cli, lumitok.config\n"
        "heavy = {'torch', 'torchvision', 'timm', 'diffusers', 'accelerate', 'numpy', 'matplotlib', 'PIL'}\n"
        "print(*sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
