"""The tree of the package: every file and folder, and what it may import, compared with the sources."""

import ast
import re
import textwrap
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "omni_jax"

# Files and folders of the package, from the lowest to the highest: our modules that each may import beside itself.
# Libraries may be imported, except those in FORBIDDEN.
ARROWS = {
    "environment": "",
    "errors": "",
    "buckets": "",
    "locks": "environment",
    "config": "buckets errors",
    "parallel": "environment errors",
    "nn": "parallel",
    "models": "config nn parallel",
    "processing": "buckets config environment errors",
    "decoding": "buckets config errors nn.cache parallel",
    "weights": "config errors locks models",
    "speech": "buckets config decoding errors models parallel processing weights.speakers",
    "engine": "buckets config decoding environment errors models parallel processing speech",
    "checkpoint": "config errors locks models processing.processor_files weights",
    "small_files": "config decoding errors processing weights",
    "room": "checkpoint.hub environment models parallel weights",
    "omni": "checkpoint config decoding engine errors models parallel processing room small_files speech weights",
    "__init__": "decoding.sampling engine.reply omni",
    "testing": "config models weights",
    "plan": "buckets checkpoint.hub config decoding engine.programs errors models nn parallel speech weights",
    "jobs": "checkpoint.hub config decoding engine errors locks omni parallel processing",
    "cli": "checkpoint decoding engine errors jobs omni plan processing speech testing weights __version__",
}
# The contents of each folder; assets and py.typed are no code.
ENTRIES = {
    "": " ".join([*ARROWS, "assets", "py.typed"]),
    "config": "common decoder defaults encoders family fields foreign parts qwen2_5_omni qwen3_omni speech words",
    "parallel": "jitted mesh multihost param_paths sharding topology",
    "nn": "cache causal_attention conv expert_parallel grouped_matmul kernels layers moe packed_attention resample rope "
    "softmax stack",
    "nn/kernels": "packed_attention packed_attention_cpu splash_attention",
    "models": "decoder memory_layout parts placement qwen2_5_omni qwen3_omni talker thinker vision",
    "models/qwen3_omni": "audio_encoder code2wav talker vision_encoder",
    "models/qwen2_5_omni": "audio_encoder bigvgan dit ecapa_tdnn talker vision_encoder",
    "processing": "arrays audio_packing batch content_part conversation limits media options positions processor_files prompt "
    "request spoken talker_prompt tmrope_clock transcript transformers_classes vision_packing",
    "processing/media": "audio audio_file container image local_file patches reader source video video_track",
    "processing/talker_prompt": "qwen2_5_omni qwen3_omni",
    "decoding": "defaults frames grammar sampling slots text",
    "weights": "layerwise published safetensors_reader safetensors_writer shards speakers table tables to_devices torch_pickle",
    "weights/tables": "common qwen2_5_omni qwen3_omni",
    "speech": "qwen2_5_omni qwen3_omni stream synthesizer token2wav",
    "engine": "answer continuous encode keywords options programs reply request transformers_keywords",
    "checkpoint": "describe hub manifest tensors",
    "testing": "checkpoint config_qwen2_5 family qwen2_5_omni qwen3_omni tokenizer tokenizer_qwen2_5",
    "plan": "hlo kernel_costs lower_bound lowering workload",
    "jobs": "input output",
    "cli": "__main__ batch convert demo generate inspect main options plan sound_file speak terminal",
}
FORBIDDEN = {
    "processing": ["jax", "jaxlib", "flax", "orbax"],
    "config": ["jax", "flax"],
    "": ["torch", "convert", "tpu", "benchmarks", "tests"],
}
TERMINAL = ("typer", "click", "rich")


def sources(folder):
    return sorted(path for path in folder.rglob("*.py") if "__pycache__" not in path.parts)


def imports(path):
    """Dotted names that a file imports, anywhere in it; ``from a import b`` is both a and a.b."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level or "tests" in path.parts, f"{path}: imports by full names"
            found |= {node.module or ""} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def within(name, parents):
    return any(name == parent or name.startswith(f"{parent}.") for parent in parents)


def own(path):
    """Our modules that a file imports, and names from the package itself, without the package's name: ``nn.cache``."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            found |= {name if is_module(name) or node.module == "omni_jax" else node.module for name in names}
    return {name.removeprefix("omni_jax.") for name in found if name.startswith("omni_jax.")}


def is_module(name):
    path = ROOT / name.replace(".", "/")
    return path.is_dir() or path.with_name(f"{path.name}.py").exists()


def block():
    """The tree as in CONTRIBUTING.md."""
    lines = []
    for part, allowed in ARROWS.items():
        folders = [folder for folder in ENTRIES if folder == part or folder.startswith(f"{part}/")]
        lines.append(f"    {part + '/' * bool(folders):<12} {', '.join(allowed.split()) or '-'}")
        for folder in folders:
            head = f"        {folder.removeprefix(part).lstrip('/') or '.':<14} "
            lines += textwrap.wrap(ENTRIES[folder], 110, initial_indent=head, subsequent_indent=" " * len(head))
    return "\n".join(lines)


@pytest.mark.parametrize("folder", ENTRIES)
def test_every_entry_is_known(folder):
    """A new file or folder, with its imports, is entered here and in CONTRIBUTING.md."""
    found = {path.name.removesuffix(".py") for path in (PACKAGE / folder).iterdir() if path.name != "__pycache__"}
    assert found - ({"__init__"} if folder else set()) == set(ENTRIES[folder].split())


def test_every_folder_is_listed():
    folders = {path.parent.relative_to(PACKAGE).as_posix() for path in sources(PACKAGE)}
    assert {"" if folder == "." else folder for folder in folders} == set(ENTRIES)
    assert len(list(PACKAGE.glob("*.py"))) <= 8


@pytest.mark.parametrize("part", ARROWS)
def test_a_part_imports_only_what_is_below_it(part):
    files = sources(PACKAGE / part) if (PACKAGE / part).is_dir() else [PACKAGE / f"{part}.py"]
    assert files
    for path in files:
        for name in own(path):
            assert within(name, [part, *ARROWS[part].split()]), f"{path.relative_to(ROOT)} imports omni_jax.{name}"


def test_imports_point_down():
    order = list(ARROWS)
    for part, allowed in ARROWS.items():
        for name in allowed.split():
            assert name == "__version__" or order.index(name.split(".")[0]) < order.index(part), f"{part} -> {name}"


def test_the_package_is_imported_for_its_version_alone():
    """``import omni_jax`` imports Omni, which is above; only the manifest of a converted folder needs the version."""
    for path in sources(PACKAGE):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import) and any(alias.name == "omni_jax" for alias in node.names):
                uses = [
                    found.attr
                    for found in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
                    if isinstance(found, ast.Attribute) and getattr(found.value, "id", "") == "omni_jax"
                ]
                assert set(uses) == {"__version__"}, path.relative_to(ROOT)


def test_contributing_lists_this_tree():
    assert block() in (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"), f"expected there:\n{block()}"


@pytest.mark.parametrize("part", FORBIDDEN)
def test_libraries_stay_where_they_belong(part):
    for path in sources(PACKAGE / part):
        for name in imports(path):
            assert not within(name, FORBIDDEN[part]), f"{path.relative_to(ROOT)} imports {name}"


def test_only_the_shell_uses_a_terminal_and_nothing_imports_it():
    for path in sources(PACKAGE):
        if not path.is_relative_to(PACKAGE / "cli"):
            for name in imports(path):
                assert not within(name, ["omni_jax.cli", *TERMINAL]), f"{path.relative_to(ROOT)} imports {name}"


def test_only_parity_tests_import_torch():
    """Parity tests and benchmarks compare with it; our code and all other tests run without it."""
    for folder in ("omni_jax", "convert", "tpu", "tests"):
        for path in sources(ROOT / folder):
            if not path.is_relative_to(ROOT / "tests" / "parity"):
                for name in imports(path):
                    assert not within(name, ["torch"]), f"{path.relative_to(ROOT)} imports {name}"


def test_imports_are_found(tmp_path):
    (tmp_path / "a.py").write_text("import x.y\nfrom omni_jax.nn import cache\ndef f():\n    import torch\n")
    assert imports(tmp_path / "a.py") == {"x.y", "omni_jax.nn", "omni_jax.nn.cache", "torch"}
    assert own(tmp_path / "a.py") == {"nn.cache"}
    assert not within("torchaudio", ["torch"])


FOREIGN = {"_replace", "_exit", "_get_file"}  # of named tuples and of libraries: public there, in spite of the name


def private_uses(path: Path) -> set[str]:
    """Names with an underscore that a file takes of another object or module than its own."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    own = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    own |= {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store)}
    taken = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    taken |= {name.name for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) for name in node.names}
    return {name for name in taken - own - FOREIGN if re.match("_[^_]", name)}


def test_no_module_takes_a_private_name_of_another():
    folders = ("omni_jax", "convert", "tpu", "benchmarks")
    found = {path.name: private_uses(path) for folder in folders for path in (ROOT / folder).rglob("*.py")}
    assert {name: names for name, names in found.items() if names} == {}


def test_no_file_has_more_than_400_lines():
    folders = ("omni_jax", "tests", "benchmarks", "convert", "tpu")
    lengths = {
        path.relative_to(ROOT).as_posix(): len(path.read_text(encoding="utf-8").splitlines())
        for folder in folders
        for path in (ROOT / folder).rglob("*.py")
    }
    assert len(lengths) > 300
    assert {name: lines for name, lines in lengths.items() if lines > 400} == {}
