"""Small sets of a user's own, as annotation tools write them."""

import json
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

WIDTH, HEIGHT = 96, 64
CORNERS = ("left_top", "right_top", "centre", "left_bottom", "right_bottom")


def make_set(categories: Sequence[dict], *, num_images: int = 8, keypoints: bool = False) -> dict:
    """The content of an annotation file: two rectangles in each image, of categories in turn.

    With ``keypoints`` their corners and centre are annotated, in the order of ``CORNERS``.
    """
    rng = np.random.default_rng(0)
    images, annotations = [], []
    for i in range(1, num_images + 1):
        images.append({"id": i, "file_name": f"{i}.png", "width": WIDTH, "height": HEIGHT})
        for j in range(2):
            w, h = (int(value) for value in rng.integers((18, 24), (36, 40)))
            x, y = 4 + 46 * j, int(rng.integers(2, HEIGHT - h - 2))
            category = categories[(i + j) % len(categories)]
            annotation = {
                "id": len(annotations) + 1,
                "image_id": i,
                "category_id": category["id"],
                "bbox": [x, y, w, h],
                "area": w * h,
                "iscrowd": 0,
                "segmentation": [[x, y, x + w, y, x + w, y + h, x, y + h]],
            }
            if keypoints:
                points = [(x, y), (x + w, y), (x + w // 2, y + h // 2), (x, y + h), (x + w, y + h)]
                annotation["keypoints"] = [value for point in points for value in (*point, 2)]
                annotation["num_keypoints"] = 5
            annotations.append(annotation)
    return {"images": images, "annotations": annotations, "categories": list(categories)}


def write_set(folder: Path, content: dict, *, name: str = "train") -> tuple[str, str, str]:
    """Writes a set's file and images; returns name, annotation file and folder of images."""
    images = folder / "images"
    images.mkdir(parents=True, exist_ok=True)
    colours = {c["id"]: colour for c, colour in zip(content["categories"], COLOURS, strict=False)}
    for record in content["images"]:
        image = np.full((HEIGHT, WIDTH, 3), 120, np.uint8)
        for annotation in content["annotations"]:
            if annotation["image_id"] == record["id"]:
                x, y, w, h = annotation["bbox"]
                colour = colours[annotation["category_id"]]
                cv2.rectangle(image, (x, y), (x + w, y + h), colour, cv2.FILLED)
        cv2.imwrite(str(images / record["file_name"]), image)
    file = folder / f"{name}.json"
    file.write_text(json.dumps(content))
    return name, str(file), str(images)


def renumbered(content: dict, ids: dict[int, int]) -> dict:
    """The same with other category ids; categories that ``ids`` lacks go, with what is theirs."""
    categories = [c | {"id": ids[c["id"]]} for c in content["categories"] if c["id"] in ids]
    annotations = [
        a | {"category_id": ids[a["category_id"]]}
        for a in content["annotations"]
        if a["category_id"] in ids
    ]
    return content | {"categories": categories, "annotations": annotations}


COLOURS = ((40, 40, 220), (60, 200, 60), (220, 80, 40), (200, 60, 200))
FRUIT = ({"id": 0, "name": "apple"}, {"id": 10, "name": "pear"}, {"id": 12, "name": "plum"})
BOARD = ({"id": 3, "name": "board", "keypoints": list(CORNERS), "skeleton": [[1, 2], [4, 5]]},)
