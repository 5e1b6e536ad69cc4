"""Small datasets of drawn images, to be spoilt in one way or another."""

import copy
import json
import random
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np

from nl_detectron.data.prepare import prepare

W, H = 64, 48
POINTS = ["top_left", "top_right", "centre", "bottom_left", "bottom_right"]
COLOURS = ((0, 0, 255), (0, 255, 0), (255, 0, 0))


def make(folder: Path, *, num_images: int = 4, keypoints: bool = False) -> dict:
    """Draws images of two objects each into ``folder/images``; returns their annotations."""
    rng = random.Random(0)
    images, annotations = [], []
    (folder / "images").mkdir(parents=True, exist_ok=True)
    for i in range(1, num_images + 1):
        picture = np.full((H, W, 3), 120, np.uint8)
        for j in range(2):
            number = 1 + (i + j) % 3
            w, h = rng.randint(14, 24), rng.randint(12, 20)
            x, y = 2 + 32 * j + rng.randint(0, 5), rng.randint(2, 25)
            corners = [(x, y), (x + w, y), (x + w, y + h), (x, y + h)]
            if number > 1:
                corners = [(x, y + h), (x + w, y + h), (x + w // 2, y)]
            cv2.fillPoly(picture, [np.array(corners)], COLOURS[number - 1])
            annotation = {
                "id": len(annotations) + 1,
                "image_id": i,
                "category_id": number,
                "bbox": [x, y, w, h],
                "area": w * h / (1 if number == 1 else 2),
                "iscrowd": 0,
                "segmentation": [[v for point in corners for v in point]],
            }
            if keypoints:
                middle = (x + w // 2, y + h // 2)
                points = [(x, y), (x + w, y), middle, (x, y + h), (x + w, y + h)]
                annotation["category_id"] = 1
                annotation["keypoints"] = [v for point in points for v in (*point, 2)]
                annotation["num_keypoints"] = 5
            annotations.append(annotation)
        cv2.imwrite(str(folder / f"images/{i}.png"), picture)
        images.append({"id": i, "file_name": f"{i}.png", "width": W, "height": H})
    names = ("rectangle", "green triangle", "blue triangle")
    categories = [{"id": i, "name": name} for i, name in enumerate(names, start=1)]
    if keypoints:
        categories = [{"id": 1, "name": "thing", "keypoints": POINTS}]
    return {"info": {}, "images": images, "annotations": annotations, "categories": categories}


def spoil(content: dict, change: Callable[[dict], object], *, of: str, every: int = 1) -> dict:
    """A copy in which every so many entries of a list are changed."""
    content = copy.deepcopy(content)
    for entry in content[of][::every]:
        change(entry)
    return content


def write(content: dict, file: Path, encoding: str = "utf-8") -> str:
    file.write_text(json.dumps(content), encoding=encoding)
    return str(file)


def prepare_annotations(file: str, images: str) -> str:
    """The file that a dataset of one's own reads."""
    prepared = prepare(file, images)
    prepared.stop(corrected=True)
    prepared.log()
    return prepared.json_file
