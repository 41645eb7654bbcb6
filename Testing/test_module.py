"""The module as Slicer meets it: loaded from tree or installation, light, reloaded, scripted from the console."""

import re
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import slicer
from stage import MODULE, ROOT, in_slicer

from ASFEFusionLib import scene
from ASFEFusionLib.errors import FusionError

HERE = str(ROOT / "Testing")


def fresh(code, *paths):
    """Runs code with the test host in a new Python; -> what it printed."""
    lines = f"import sys\nsys.path[:0] = {[HERE, *map(str, paths)]!r}\nimport host\nhost.start()\nimport slicer\n"
    run = subprocess.run(
        [sys.executable, "-c", lines + textwrap.dedent(code)], capture_output=True, text=True, timeout=300, check=False
    )
    assert run.returncode == 0, run.stderr[-3000:]
    return run.stdout.split()


def test_nothing_heavy_is_imported_by_start_or_panel():
    if in_slicer():
        return
    said = fresh(
        f"""
        before = set(sys.modules)
        module = host.loadModule({str(MODULE)!r})
        print(*sorted(n for n in set(sys.modules) - before if n.startswith("ASFEFusion")), "|")
        host.openModule(module)
        print(*sorted({{n.split(".")[0] for n in sys.modules}} & {{"torch", "SimpleITK", "scipy", "matplotlib"}}))
        assert not host.problems, host.problems
        """
    )
    start = said[: said.index("|")]
    assert "ASFEFusion" in start
    assert not [name for name in start if name.startswith("ASFEFusionLib")]
    assert said[said.index("|") + 1 :] == []


def test_an_installed_module_finds_its_parts(tmp_path):
    """Everything flat in one folder, as CMake installs it, and no source tree beside it."""
    import shutil

    if in_slicer():
        return
    flat = tmp_path / "qt-scripted-modules"
    shutil.copytree(
        ROOT / "ASFEFusionLib", flat / "ASFEFusionLib", ignore=shutil.ignore_patterns("__pycache__", "research")
    )
    shutil.copytree(ROOT / "ASFEFusion" / "ASFEFusionPanel", flat / "ASFEFusionPanel")
    shutil.copytree(ROOT / "Resources", flat / "Resources")
    shutil.copy(MODULE, flat)
    said = fresh(
        f"""
        # An editable installation of this project must not lend its library.
        sys.meta_path[:] = [f for f in sys.meta_path if "editable" not in repr(f).lower()]
        sys.path[:] = [p for p in sys.path if p != {str(ROOT)!r}]
        module = host.loadModule({str(flat / "ASFEFusion.py")!r})
        widget = host.openModule(module)
        import ASFEFusionLib, ASFEFusionPanel
        from ASFEFusionLib.network.weights import find
        print(ASFEFusionLib.__file__, ASFEFusionPanel.__file__, find(None), module.icon.isNull())
        assert not host.problems, host.problems
        """
    )
    assert all(str(flat) in path for path in said[:3]), said
    assert said[3] == "False"


def test_reload_reads_the_library_anew_and_ends_the_process():
    if in_slicer():
        return
    said = fresh(
        f"""
        module = host.loadModule({str(MODULE)!r})
        widget = host.openModule(module)
        from ASFEFusionPanel.samples import loadSample
        loadSample("ASFEFusionHeadCTMR")
        widget.initializeParameterNode()
        library, runner = sys.modules["ASFEFusionLib"], widget.logic.runner
        widget.ui.applyButton.click()
        import os, time
        end = time.time() + 240
        while not widget.ui.progressBar.value and time.time() < end:
            slicer.app.processEvents()
        [child] = runner._children
        pid = child.process.processId()
        widget.onReload()
        slicer.app.processEvents()
        try:
            os.kill(pid, 0)
            print("alive")
        except OSError:
            print("gone")
        print(sys.modules["ASFEFusionLib"] is library, runner.busy)
        new = slicer.modules.ASFEFusionWidget
        print(new is widget, new.ui.applyButton.enabled, new.logic.busy)
        new.ui.applyButton.click()
        while new.logic.busy and time.time() < end:
            slicer.app.processEvents()
        print(new.ui.resultLabel.text.split()[0])
        new.cleanup()
        assert not host.problems, host.problems
        """
    )
    assert said == ["gone", "False", "False", "False", "True", "False", "Fused"]


def test_removed_volumes_are_let_go():
    """Nothing of the panel or the watch keeps a patient's voxels after the scene was closed."""
    if in_slicer():
        return
    said = fresh(
        f"""
        import gc, time
        from vtkmodules.vtkCommonCore import vtkWeakReference
        widget = host.openModule(host.loadModule({str(MODULE)!r}))
        from ASFEFusionPanel.samples import makeHead

        def settle():
            end = time.time() + 0.6
            while time.time() < end:
                slicer.app.processEvents()

        def fuse():
            nodes = [makeHead("CT"), makeHead("MR")]  # in no view: a view holds what it showed last
            widget.initializeParameterNode()
            nodes.append(widget.logic.fuse(*nodes))
            settle()
            references = [vtkWeakReference() for _ in nodes]
            for reference, node in zip(references, nodes):
                reference.Set(node.GetImageData())
            return references

        references = fuse()
        slicer.mrmlScene.Clear(0)
        settle()
        gc.collect()
        print(*[reference.Get() is None for reference in references])
        widget.cleanup()
        assert not host.problems, host.problems
        """
    )
    assert said == ["True"] * 3


def test_what_the_module_says_of_itself(stage):
    module = slicer.modules.asfefusion
    assert module.title == "ASFE Image Fusion"
    assert not module.icon.isNull()
    assert "not for quantitation" in module.helpText
    assert "not clinically validated" in module.helpText
    assert "10.1016/j.bspc.2024.106478" in module.acknowledgementText


def test_the_modules_own_test(stage):
    import ASFEFusion

    test = ASFEFusion.ASFEFusionTest()
    test.messageDelay = 0
    test.runTest()


def test_sample_data_needs_no_network(stage):
    import SampleData

    from ASFEFusionPanel.samples import SAMPLES

    sources = slicer.modules.sampleDataSources["ASFEFusion"]
    assert {source.sampleName for source in sources} == set(SAMPLES)
    for source in sources:
        nodes = source.customDownloader(source)
        assert [scene.modality_of(node) for node in nodes] == list(SAMPLES[source.sampleName])
        assert (ROOT / "Resources" / "Icons" / f"{source.sampleName}.png").is_file()
    assert scene.units_of(nodes[1]) == "SUV"
    assert SampleData.SampleDataLogic is not None


# ---- the console -----------------------------------------------------------------------------------------------------


def readme_lines(title):
    """The Python lines of the README's section."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    section = text[text.index(f"## {title}") :]
    return re.search(r"```python\n(.*?)```", section, re.DOTALL).group(1)


def test_the_console_lines_of_the_readme(stage, monkeypatch, tmp_path):
    lines = readme_lines("From Slicer's Python console")
    assert "ASFEFusionLogic().fuse(" in lines
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(compile(lines, "README.md", "exec"), names)
    fused = names["fused"]
    assert fused.GetName().endswith("fused, not for quantitation")
    assert scene.out_of_date(fused) is None
    assert names["coloured"].GetClassName() == "vtkMRMLVectorVolumeNode"
    assert all(scene.is_fused(node) for node in names["several"])


def test_the_logic_blocks_and_reports(stage, heads):
    ct, mr = stage.pair(heads)
    said = []
    fused = stage.logic.fuse(ct, mr, progress=lambda fraction, text: said.append((fraction, text)), grid="second")
    assert fused.GetImageData().GetDimensions() == mr.GetImageData().GetDimensions()
    assert said[-1] == (1.0, "Done")
    assert not stage.logic.busy


@pytest.mark.parametrize(
    ("settings", "code"),
    [
        ({"girds": "first"}, "setting_unknown"),
        ({"grid": "third"}, "setting_unknown"),
        ({"colour": "mauve"}, "setting_unknown"),
        ({"region": "here"}, "setting_unknown"),
        ({"firstWindow": "pet-suv-5"}, "window_units"),
        ({"secondWindow": "pet-suv-5"}, "units_unknown"),
        ({"firstWindow": (5, 5)}, "window_empty"),
        ({"device": "mps"}, "device_missing"),
        ({"weights": "nowhere.pt"}, "weights_missing"),
    ],
)
def test_wrong_settings_are_one_sentence(stage, heads, settings, code):
    ct, _ = stage.pair(heads)
    pet = stage.add(heads["PET"], "PET", "PT")
    before = stage.nodes()
    with pytest.raises(FusionError) as caught:
        stage.logic.fuse(ct, pet, **settings)
    assert caught.value.code == code
    assert str(caught.value).count("\n") == 0
    assert stage.nodes() == before


def test_wrong_nodes_are_one_sentence(stage, heads):
    ct, _ = stage.pair(heads)
    labels = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLabelMapVolumeNode", "labels")
    labels.SetAndObserveImageData(ct.GetImageData())
    empty = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "empty")
    for pair, code in (
        ((ct, ct), "node_same"),
        ((ct, None), "node_missing"),
        ((ct, labels), "node_kind"),
        ((empty, ct), "node_empty"),
    ):
        with pytest.raises(FusionError) as caught:
            stage.logic.fuse(*pair)
        assert caught.value.code == code


def test_a_batch_goes_on_after_a_failure(stage, heads, caplog):
    ct, mr = stage.pair(heads)
    fused = stage.logic.fusePairs([(ct, mr), (ct, ct), (mr, ct)])
    assert [node is None for node in fused] == [False, True, False]
    assert "pair 2 was not fused" in caplog.text
    assert np.array_equal(scene.read_volume(ct).voxels, heads["CT"].voxels)


def test_every_code_of_a_run_has_words(stage):
    """Of all errors and warnings that the files behind a run can raise."""
    from ASFEFusionLib import errors
    from ASFEFusionPanel import words

    run = (
        "aligned",
        "bent",
        "colour",
        "engine",
        "exchange",
        "fusion",
        "intensity",
        "planes",
        "scene",
        "settings",
        "space",
        "volume",
        "worker",
    )
    files = [ROOT / "ASFEFusionLib" / f"{name}.py" for name in run]
    files += [*(ROOT / "ASFEFusion").rglob("*.py"), *(ROOT / "ASFEFusionLib" / "network").glob("*.py")]
    files += (ROOT / "ASFEFusionLib" / "alignment").glob("*.py")
    text = "\n".join(file.read_text(encoding="utf-8") for file in files)
    raised = set(re.findall(r'FusionError\(\s*"(\w+)"', text))
    warned = set(re.findall(r'Notice\(\s*"(\w+)"', text))
    only_files = {
        "file_missing",
        "landmarks_unreadable",
        "transform_flat",
        "transform_output",
        "transform_unreadable",
        "output_failed",
    }
    only_files |= {"image_empty", "image_4d", "image_vector", "volume_colour", "dimensions_differ", "sizes_differ"}
    only_pictures = {"picture_grid", "picture_colour", "setting_not_positive", "outputs_same"}
    assert raised - only_files - only_pictures <= set(words._errorTexts()), raised
    assert warned == set(words._warningTexts())
    assert set(errors.STALE) == set(words._staleTexts())
    assert set(errors.STEPS) <= set(words._stepTexts())
    # The same facts go into both wordings.
    for ours, theirs in ((words._errorTexts(), errors.MESSAGES), (words._warningTexts(), errors.WARNINGS)):
        for code, sentence in ours.items():
            if code in theirs:
                assert set(re.findall(r"{(\w+)}", sentence)) <= set(re.findall(r"{(\w+)}", theirs[code])), code
