"""The tests of module, panel and scene inside a real Slicer; see README. Slicer ends with pytest's exit code."""

import os
import sys
import traceback

HERE = os.path.dirname(os.path.abspath(__file__))
FILES = ("test_scene.py", "test_module.py", "test_panel.py", "test_runs.py")


def main():
    import slicer

    try:
        import pytest
    except ImportError:
        print("pytest is not there: run PythonSlicer -m pip install pytest, then try again.")
        slicer.util.exit(2)
        return
    sys.path[:0] = [HERE, os.path.dirname(HERE)]
    code = 1
    try:  # without pytest's capture: the console of Slicer is no file
        code = int(
            pytest.main(
                [
                    "-q",
                    "-s",
                    "-p",
                    "no:cacheprovider",
                    "-p",
                    "no:faulthandler",
                    *(os.path.join(HERE, name) for name in FILES),
                ]
            )
        )
    except BaseException:
        traceback.print_exc()
    slicer.util.exit(code)


main()
