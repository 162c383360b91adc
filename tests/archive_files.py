"""Archives of given contents."""

import io
import tarfile
import zipfile


def write(path, contents, mode="w"):
    """An archive of what `contents` maps names to, in that order."""
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, mode) as archive:
            for name, content in contents.items():
                archive.writestr(name, content)
        return path
    with tarfile.open(path, f"w:{path.suffix[1:]}" if path.suffix != ".tar" else "w") as archive:
        for name, content in contents.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path
