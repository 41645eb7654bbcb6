"""ITK's filters, run so that they can be watched and stopped."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .progress import Tick

if TYPE_CHECKING:
    import SimpleITK as sitk


def execute(image_filter: Any, image: sitk.Image, tick: Tick) -> sitk.Image:
    """Runs a SimpleITK filter with its progress told to `tick`, and stopped when that raises."""
    import SimpleITK as sitk

    stopped: list[BaseException] = []

    def report() -> None:
        # An exception cannot pass through ITK's C++: keep it, stop the filter, raise it afterwards.
        try:
            tick(image_filter.GetProgress())
        except BaseException as error:
            stopped.append(error)
            image_filter.Abort()

    image_filter.AddCommand(sitk.sitkProgressEvent, report)
    try:
        result = image_filter.Execute(image)
    except RuntimeError as error:
        raise (stopped[0] if stopped else error) from None
    finally:  # a filter that runs again gets another
        image_filter.RemoveAllCommands()
    if stopped:
        raise stopped[0]
    return result
