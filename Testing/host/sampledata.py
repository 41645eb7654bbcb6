"""The registry of Slicer's SampleData module, which modules fill at start-up; it downloads nothing."""

import slicer


class SampleDataSource:
    def __init__(self, **given):
        self.__dict__.update(given)
        lists = "uris", "fileNames", "nodeNames", "loadFiles", "loadFileTypes", "checksums"
        if isinstance(given["uris"], str):
            self.__dict__.update({name: [given[name]] for name in lists})
        lengths = {len(getattr(self, name)) for name in lists if getattr(self, name) is not None}
        if len(lengths) != 1:
            raise ValueError(f"sample data {given['sampleName']}: lists of different lengths")

    def __eq__(self, other):
        return vars(self) == vars(other)

    __hash__ = None


class SampleDataLogic:
    @staticmethod
    def registerCustomSampleDataCategory(category, title):
        slicer.modules.sampleDataSourceCategories[category] = {"title": title}

    @staticmethod
    def registerCustomSampleDataSource(
        category="Custom",
        sampleName=None,
        uris=None,
        fileNames=None,
        nodeNames=None,
        customDownloader=None,
        thumbnailFileName=None,
        loadFileTypes=None,
        loadFiles=None,
        loadFileProperties={},  # noqa: B006, as Slicer has it
        checksums=None,
        loadFileType=None,
    ):
        given = {k: v for k, v in locals().items() if k not in ("category", "loadFileType")}
        given["loadFileTypes"] = loadFileTypes or loadFileType
        registered = slicer.modules.sampleDataSources.setdefault(category, [])
        if SampleDataSource(**given) not in registered:
            registered.append(SampleDataSource(**given))


slicer.modules.sampleDataSources, slicer.modules.sampleDataSourceCategories = {}, {}
