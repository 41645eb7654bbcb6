"""The package: CMake installs what the installed module needs and no more; the catalog's entry keeps its rules."""

import ast
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import make_icons
import pytest
from PIL import Image, ImageChops, ImageStat

ROOT = Path(__file__).resolve().parents[1]
STUB = Path(__file__).parent / "cmake_stub"
MODULES = Path("lib/Slicer/qt-scripted-modules")

# In the installed folder lie side by side what these two folders hold.
SOURCES = (ROOT / "ASFEFusion", ROOT)
OURS = ("ASFEFusion", "ASFEFusionPanel", "ASFEFusionLib")
# Where Slicer, the child process and a console user (as the README shows) come in; the panel's files join them.
ENTRIES = ("ASFEFusion", "ASFEFusionLib.worker", "ASFEFusionLib.fusion", "ASFEFusionLib.scene", "ASFEFusionLib.files")
RESOURCES = {
    "Resources/Icons/ASFEFusion.png",
    "Resources/UI/ASFEFusion.ui",
    "Resources/Weights/README.md",
    "Resources/Weights/compact.pt",
}

RAW = "https://raw.githubusercontent.com/ASFEFusion/SlicerASFEFusion/main/"
# Of the index's ACCEPTED_EXTENSION_CATEGORIES (Slicer/ExtensionsIndex, scripts/check_description_files.py, August 2026)
# those that could fit.
CATEGORIES = ("IGT", "Image Synthesis", "Neuroimaging", "Nuclear Medicine", "Planning", "Registration")
# Slicer/ExtensionsIndex, schemas/slicer-extension-catalog-entry-schema-v1.0.2.json: no other keys are allowed.
SCHEMA = (
    "https://raw.githubusercontent.com/Slicer/Slicer/main/Schemas/slicer-extension-catalog-entry-schema-v1.0.2.json#"
)
KEYS = {
    "$schema": str,
    "category": str,
    "scm_url": str,
    "scm_revision": str,
    "scm_type": str,
    "build_dependencies": list,
    "dicom_support_rule": str,
    "build_subdirectory": str,
    "enabled": bool,
    "tier": int,
}


def run(*command, expect=0, **more):
    """What the command says; its exit code must be the expected one."""
    more |= {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    done = subprocess.run([*map(str, command)], check=False, **more)
    assert done.returncode == expect, done.stdout
    return done.stdout


def tool(name):
    """cmake or ctest: of the PyPI package before the system's, which may be too old."""
    try:
        import cmake

        found = shutil.which(name, path=cmake.CMAKE_BIN_DIR)
    except ImportError:
        found = shutil.which(name)
    assert found, f"{name} is not there: pip install cmake"
    return found


def configure(source, build, config=STUB, expect=0, **more):
    options = [f"-DSlicer_DIR={config}", f"-DCMAKE_TOOLCHAIN_FILE={STUB / 'no_compiler.cmake'}"]
    return run(tool("cmake"), "-S", source, "-B", build, "-G", "Unix Makefiles", *options, expect=expect, **more)


def files_in(folder):
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def install(folder, config=STUB, **more):
    """Configures, builds and installs the extension into folder/install."""
    configure(ROOT, folder / "build", config, **more)
    run(tool("cmake"), "--build", folder / "build")
    run(tool("cmake"), "--install", folder / "build", "--prefix", folder / "install")
    return folder


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    """Folder with `build` and `install`, made with the stub of Slicer."""
    return install(tmp_path_factory.mktemp("package"))


def file_of(name):
    """File of one of our modules, or None."""
    for folder in SOURCES:
        stem = folder.joinpath(*name.split("."))
        for path in (stem / "__init__.py", stem.parent / f"{stem.name}.py"):
            if path.is_file():
                return path
    return None


def named_in(name, path):
    """Pairs of a module that the file names and whether it must exist (`from x import y`: y may be a function)."""
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((alias.name, True) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = importlib.util.resolve_name("." * node.level + (node.module or ""), package)
            yield base, True
            yield from ((f"{base}.{alias.name}", False) for alias in node.names)
        elif isinstance(node, ast.Constant) and re.fullmatch(r"ASFEFusion(Lib|Panel)(\.\w+)+", str(node.value)):
            yield node.value, False  # python -m ASFEFusionLib.worker, import_module("ASFEFusionLib.fusion")


def reached():
    """Installed path and source of every Python file that the entries reach, imports inside functions included."""
    panel = sorted((ROOT / "ASFEFusion" / "ASFEFusionPanel").glob("**/*.py"))
    entries = [".".join(p.relative_to(SOURCES[0]).with_suffix("").parts).removesuffix(".__init__") for p in panel]
    found, todo = {}, [("an entry", name, True) for name in (*ENTRIES, "ASFEFusionPanel", *entries)]
    while todo:
        namer, name, must = todo.pop()
        path = file_of(name)
        assert path or not must, f"{namer} names {name}, which is not there"
        if path is None or name in found:
            continue
        found[name] = path
        todo += [(name, name.rpartition(".")[0], True)] if "." in name else []
        todo += [(name, *named) for named in named_in(name, path) if named[0].split(".")[0] in OURS]
    return {
        next(path.relative_to(folder).as_posix() for folder in SOURCES if path.is_relative_to(folder)): path
        for path in found.values()
    }


def test_the_installed_tree_is_what_the_module_needs(package):
    resources = {f"Resources/{name}" for name in files_in(ROOT / "Resources")}
    wanted = {*reached(), *(name for name in resources if not name.startswith("Resources/Screenshots/"))}
    assert files_in(package / "install") == {(MODULES / name).as_posix() for name in wanted}
    assert wanted >= {"ASFEFusion.py", "ASFEFusionLib/network/asfe.py", *RESOURCES}
    # What trains, scores or belongs to a terminal must not even be reached.
    outside = re.compile(r"ASFEFusionLib/(research/|commands/|__main__\.py|preview\.py)")
    assert not [name for name in wanted if outside.match(name)]


def test_each_file_is_installed_unchanged(package):
    for name, source in reached().items():
        assert (package / "install" / MODULES / name).read_bytes() == source.read_bytes(), name
    for name in RESOURCES:
        assert (package / "install" / MODULES / name).read_bytes() == (ROOT / name).read_bytes(), name


def test_resources_that_the_installed_files_name(package):
    folder = package / "install" / MODULES
    known = {f"/{name}" for name in files_in(folder / "Resources")}
    named = {}
    for path in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and re.fullmatch(r"[\w./-]*\w\.(ui|png|svg|pt)", str(node.value)):
                named[node.value] = path.name
    for path in folder.rglob("*.ui"):
        pictures = re.findall(r"[\w./-]*\w\.(?:png|svg)", path.read_text(encoding="utf-8"))
        named |= dict.fromkeys(pictures, path.name)
    assert any(name.endswith("ASFEFusion.ui") for name in named)
    # Thumbnails are named after the samples.
    samples = ast.parse((folder / "ASFEFusionPanel" / "samples.py").read_text(encoding="utf-8"))
    given = {node.targets[0].id: node.value for node in samples.body if isinstance(node, ast.Assign)}
    named |= {f"Icons/{name}.png": "samples.py" for name in ast.literal_eval(given["SAMPLES"])}
    for name, where in named.items():
        tail = "/" + re.sub(r"^(\.*/)*(Resources/)?", "", name)
        assert any(path.endswith(tail) for path in known), f"{where} names {name}, which is not installed"


# Run with -S, so that the checkout in a virtual environment (pip install -e) cannot stand in for a missing file.
CHECK = """
import importlib, pathlib, sys
here = pathlib.Path(sys.argv[1])
sys.path[:0] = [str(here)]
sys.path += sys.argv[2:]
import ASFEFusionLib.fusion
for path in sorted(here.glob("ASFEFusionLib/**/*.py")):
    name = ".".join(path.relative_to(here).with_suffix("").parts).removesuffix(".__init__")
    try:
        assert pathlib.Path(importlib.import_module(name).__file__) == path, name
    except ModuleNotFoundError as error:
        if error.name not in ("slicer", "vtk", "qt", "ctk"):
            raise
from ASFEFusionLib import files, phantom
from ASFEFusionLib.network import weights
assert weights.find(None) == (here / "Resources" / "Weights" / "compact.pt").resolve()
ct, mr = (phantom.head(m, noise=False, spacing=(8.0, 8.0, 12.0)) for m in ("CT", "MR"))
fused, report = ASFEFusionLib.fusion.fuse(ct, mr)
assert fused.size_ijk == ct.size_ijk
assert fused.voxels.max() > 100
assert not [name for name in sys.modules if name.startswith("ASFEFusionLib.research")]
print("fused")
"""


def test_the_installed_library_works_alone(package):
    site = {str(Path(importlib.util.find_spec(name).origin).parents[1]) for name in ("numpy", "SimpleITK", "torch")}
    here = (package / "install" / MODULES).resolve()
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-I", "-S", "-B", "-c", CHECK, here, *site]
    assert run(*command, cwd=package, env=environment).endswith("fused\n")


def test_tests_are_registered(package):
    names = re.findall(r"Test +#\d+: (\S+)", run(tool("ctest"), "-N", cwd=package / "build"))
    assert sorted(names) == ["py_ASFEFusion", "py_nomainwindow_qSlicerASFEFusionModuleGenericTest"]


@pytest.mark.parametrize("missing", ["ASFEFusionLib/network/aff.py", "Resources/Weights/compact.pt"])
def test_a_listed_file_that_is_missing_stops_the_build(tmp_path, missing):
    copy = tmp_path / "copy"
    copy.mkdir()
    shutil.copy(ROOT / "CMakeLists.txt", copy)
    for folder in ("ASFEFusion", "ASFEFusionLib", "Resources"):
        shutil.copytree(ROOT / folder, copy / folder, ignore=shutil.ignore_patterns("__pycache__"))
    configure(copy, tmp_path / "whole")
    (copy / missing).unlink()
    assert f"{missing} is listed and not there" in configure(copy, tmp_path / "lacking", expect=1)


@pytest.mark.skipif(
    not {"SLICER_SOURCE_DIR", "CTK_SOURCE_DIR"} <= set(os.environ),
    reason="SLICER_SOURCE_DIR and CTK_SOURCE_DIR name no sources of Slicer and CTK: their real macros were not tried",
)
def test_the_same_with_slicers_own_macros(package, tmp_path):
    environment = {**os.environ, "PYTHON_EXECUTABLE": sys.executable}
    said = configure(ROOT, tmp_path / "build", STUB / "real", env=environment)
    assert "CMake Error" not in said
    run(tool("cmake"), "--build", tmp_path / "build")
    run(tool("cmake"), "--install", tmp_path / "build", "--prefix", tmp_path / "install")
    installed = files_in(tmp_path / "install")
    description = "share/Slicer/ASFEFusion.s4ext"
    compiled = {name for name in installed if name.endswith(".pyc")}
    expected = files_in(package / "install")
    assert installed - compiled - {description} == expected
    assert compiled == {f"{name}c" for name in expected if name.endswith(".py")}
    lines = (tmp_path / "install" / description).read_text(encoding="utf-8").splitlines()
    stub = description_of(package)
    for key in ("depends", "homepage", "contributors", "iconurl", "screenshoturls", "description"):
        assert f"{key} {stub[key.upper()]}" in lines
    names = re.findall(r"Test +#\d+: (\S+)", run(tool("ctest"), "-N", cwd=tmp_path / "build"))
    assert sorted(names) == ["py_ASFEFusion", "py_nomainwindow_qSlicerASFEFusionModuleGenericTest"]


def description_of(package):
    """The extension's description as CMake has it."""
    lines = (package / "build" / "description.txt").read_text(encoding="utf-8").splitlines()
    return dict(line.split("=", 1) for line in lines)


def test_the_description(package):
    of = description_of(package)
    assert of["name"] == "ASFEFusion"
    assert of["CATEGORY"] == ""  # stands in the catalog entry
    text = of["DESCRIPTION"]
    assert ";" not in text  # CMake would take it for a list
    assert text.count(". ") == 1  # the index wants one or two sentences
    for word in ("not for quantitation", "not clinically validated", "no related patents"):
        assert word in text
    assert of["ICONURL"] == RAW + "Resources/Icons/ASFEFusion.png"
    shots = of["SCREENSHOTURLS"].split()
    assert shots
    for url in shots:
        assert url.startswith(RAW + "Resources/Screenshots/")
        assert (ROOT / url.removeprefix(RAW)).is_file(), url


def test_what_the_index_reads_by_pattern():
    """It looks into the file's text, not at CMake's values."""
    text = (ROOT / "CMakeLists.txt").read_text(encoding="utf-8")
    assert re.search(r"project\s*\(\s*([^\s)]+)", text, re.IGNORECASE).group(1) == "ASFEFusion"
    assert len(re.findall(r'set\s*\(EXTENSION_ICONURL\s*"([^"]+)" *\)', text)) == 1
    assert len(re.findall(r'set\s*\(EXTENSION_SCREENSHOTURLS\s*"([^"]+)"\)', text)) == 1
    assert (ROOT / "LICENSE.txt").is_file()


def test_the_catalog_entry(package):
    raw = (ROOT / "ASFEFusion.json").read_bytes()
    assert b"\r" not in raw
    assert b"\t" not in raw
    entry = json.loads(raw)
    assert raw.decode() == json.dumps(entry, indent=2) + "\n"
    for key, value in entry.items():
        assert type(value) is KEYS[key], key
    assert entry["$schema"] == SCHEMA
    assert entry["category"] in CATEGORIES
    assert entry["scm_revision"] == "main"
    assert 1 <= entry["tier"] <= 5
    url, of = entry["scm_url"], description_of(package)
    assert url == f"{of['HOMEPAGE']}.git"
    # The repository's name begins with Slicer, the extension's must not.
    assert re.fullmatch(r"https://github\.com/\w+/Slicer" + of["name"] + r"\.git", url)
    assert not of["name"].lower().startswith("slicer")
    assert entry["build_dependencies"] == of["DEPENDS"].split() == ["PyTorch"]


def test_the_icon():
    with Image.open(ROOT / "Resources" / "Icons" / "ASFEFusion.png") as icon:
        assert icon.format == "PNG"
        assert icon.size == (128, 128)
        change = ImageChops.difference(icon.convert("RGBA"), make_icons.draw())
    # Another Pillow may round otherwise.
    assert max(ImageStat.Stat(change).mean) < 1


def test_sizes():
    """The index refuses a checkout above 100 MB, history included."""
    assert sum(path.stat().st_size for path in (ROOT / "Resources" / "Weights").iterdir()) < 10e6
    if (ROOT / ".git").exists():  # a downloaded archive has no history
        tracked = run("git", "-C", ROOT, "ls-files", "-z").split("\0")[:-1]
        files = sum((ROOT / name).stat().st_size for name in tracked if (ROOT / name).is_file())
        objects = dict(line.split(": ") for line in run("git", "-C", ROOT, "count-objects", "-v").splitlines())
        assert files + 1024 * (int(objects["size"]) + int(objects["size-pack"])) < 100e6
