"""The page of an example's results in the documentation, and its pictures."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from PIL import Image

REPRODUCTIONS = Path(__file__).parents[1] / "docs" / "reproductions"


def write(folder: Path, name: str, text: str, pictures: Mapping[Path, str]) -> Path:
    """Write a page, and the pictures to the folder ``images`` beside that of the page.

    Args:
        folder: Folder of the page.
        name: Name of the page, and of the folder of its pictures.
        text: The page; the name of a picture in braces stands for it, for example ``{plane.png}``.
        pictures: PNG files with captions.
    """
    images = folder.parent / "images" / name
    for path in (folder, images):
        path.mkdir(parents=True, exist_ok=True)
    for picture, caption in pictures.items():
        small = Image.open(picture).convert("RGB").quantize()  # a third of the size
        small.save(images / picture.name, optimize=True)
        shown = f"![{caption}](../images/{name}/{picture.name})\n\n*{caption}.*"
        text = text.replace(f"{{{picture.name}}}", shown)
    page = folder / f"{name}.md"
    page.write_text(text)
    return page
