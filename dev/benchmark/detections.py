"""Annotations and detections in COCO's format, drawn from a seed, without images or a model."""

import json
import pickle
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from pycocotools import mask as mask_util
from tqdm import tqdm
from typing_extensions import Self

KINDS = ("instances", "person_keypoints")  # of COCO's annotation files
NUM_CLASSES = {"instances": 80, "person_keypoints": 1}
MEAN_OBJECTS = {"instances": 7.3, "person_keypoints": 4.1}  # per image, as in val2017
SIZES = ((480, 640), (427, 640), (640, 480))  # (height, width)
ANGLES = np.linspace(0, 2 * np.pi, 24, endpoint=False)
CIRCLE = np.stack([np.cos(ANGLES), np.sin(ANGLES)], -1)  # (24, 2)
# COCO's 17 keypoints of a person who stands in a box of height and width 1: (17, 2)
POSE = np.array(
    [(0.50, 0.10), (0.53, 0.08), (0.47, 0.08), (0.57, 0.10), (0.43, 0.10), (0.65, 0.25)]
    + [(0.35, 0.25), (0.75, 0.40), (0.25, 0.40), (0.80, 0.52), (0.20, 0.52), (0.60, 0.55)]
    + [(0.40, 0.55), (0.62, 0.75), (0.38, 0.75), (0.63, 0.95), (0.37, 0.95)]
)


def generate(
    folder: Path, kind: str, *, num_images: int, seed: int, num_detections: int = 100
) -> None:
    """Writes ``annotations.json`` and ``predictions.pkl``, each image's list of results.

    Up to four detections are made of each annotated object by moving it a little or a lot, most
    of them of its class; the others are anywhere. Scores have three decimals, so that many are
    equal. 1.5 % of the objects are crowds, and a fifth of the people have no visible keypoint.

    Args:
        folder: gets made.
        kind: "instances", with polygons and run-length encoded masks, or "person_keypoints".
        num_detections: of each image.
    """
    rng = np.random.default_rng(seed)
    names = [f"class {k + 1}" for k in range(NUM_CLASSES[kind])]
    truth: dict[str, list[dict]] = {"images": [], "annotations": [], "categories": []}
    truth["categories"] = [{"id": k + 1, "name": name} for k, name in enumerate(names)]
    folder.mkdir(parents=True)
    with open(folder / "predictions.pkl", "wb") as file:
        for i in tqdm(range(1, num_images + 1), desc=f"generating {kind}", unit="image"):
            height, width = SIZES[rng.integers(len(SIZES))]
            truth["images"].append({"id": i, "height": height, "width": width})
            objects = _Objects.draw(rng, kind, rng.poisson(MEAN_OBJECTS[kind]), height, width)
            for annotation in objects.annotations(rng):
                annotation |= {"id": len(truth["annotations"]) + 1, "image_id": i}
                truth["annotations"].append(annotation)
            pickle.dump(objects.detections(rng, i, num_detections), file)
    (folder / "annotations.json").write_text(json.dumps(truth), encoding="utf-8")


def read_predictions(folder: Path) -> Iterator[list[dict]]:
    """The results of each image in turn."""
    with open(folder / "predictions.pkl", "rb") as file:
        while file.peek(1):
            yield pickle.load(file)


class _Objects:
    """N objects of an image.

    Attributes:
        classes: (N,), from 1.
        boxes: (N, 4), XYWH, within the image.
        shapes: where in its box an object is: outlines as radii (N, 24) or poses (N, 17, 2).
    """

    def __init__(
        self,
        kind: str,
        height: int,
        width: int,
        classes: np.ndarray,
        boxes: np.ndarray,
        shapes: np.ndarray,
    ):
        self.kind, self.height, self.width = kind, height, width
        low = boxes[:, :2].clip(0, [width - 4, height - 4])
        high = (boxes[:, :2] + boxes[:, 2:]).clip(low + 2, [width, height])
        self.classes, self.boxes, self.shapes = classes, np.hstack([low, high - low]), shapes

    @classmethod
    def draw(cls, rng: np.random.Generator, kind: str, count: int, height: int, width: int) -> Self:
        frequency = 1 / np.arange(3, NUM_CLASSES[kind] + 3)  # some are rare
        classes = rng.choice(len(frequency), count, p=frequency / frequency.sum()) + 1
        # About as many small, medium and large ones as in COCO
        sides = np.exp(rng.normal(np.log(55), 0.95, (count, 1))).clip(8, 420)
        aspect = np.exp(rng.normal(0, 0.35, (count, 1)))
        sides = np.hstack([sides * aspect, sides / aspect]).clip(None, [width - 2, height - 2])
        corners = rng.uniform(0, [width, height] - sides)
        if kind == "instances":
            shapes = rng.uniform(0.75, 1, (count, len(CIRCLE)))
        else:
            shapes = POSE + rng.normal(0, 0.03, (count, *POSE.shape))
        return cls(kind, height, width, classes, np.hstack([corners, sides]), shapes)

    def polygons(self) -> np.ndarray:
        """(N, 48): x, y, x, y, ..."""
        centers, radii = self.boxes[:, :2] + self.boxes[:, 2:] / 2, self.boxes[:, 2:] / 2
        points = centers[:, None] + radii[:, None] * self.shapes[..., None] * CIRCLE
        return points.reshape(len(points), CIRCLE.size)

    def keypoints(self) -> np.ndarray:
        """(N, 17, 2)"""
        return self.boxes[:, None, :2] + self.boxes[:, None, 2:] * self.shapes

    def annotations(self, rng: np.random.Generator) -> Iterator[dict]:
        for k, box in enumerate(self.boxes.round(2)):
            annotation = {"category_id": int(self.classes[k]), "bbox": box.tolist()}
            annotation |= {"iscrowd": int(rng.random() < 0.015), "area": 0.6 * box[2] * box[3]}
            if self.kind == "instances":
                annotation |= self._mask(k, annotation["iscrowd"])
            else:
                annotation |= self._pose(k, rng)
            yield annotation

    def _mask(self, k: int, crowd: int) -> dict:
        polygon = self.polygons()[k].round(2)
        (mask,) = mask_util.frPyObjects([polygon], self.height, self.width)
        area = float(mask_util.area(mask))
        if not crowd:
            return {"segmentation": [polygon.tolist()], "area": area}
        pixels = mask_util.decode(mask).ravel(order="F")
        ends = np.flatnonzero(np.diff(pixels, prepend=0, append=1 - pixels[-1]))
        counts = np.diff(ends, prepend=0).tolist()  # runs of 0 and 1 in turns, first of 0
        return {"segmentation": {"size": [self.height, self.width], "counts": counts}, "area": area}

    def _pose(self, k: int, rng: np.random.Generator) -> dict:
        points = np.zeros((len(POSE), 3))
        points[:, :2] = self.keypoints()[k].round()
        points[:, 2] = rng.choice(3, len(POSE), p=(0.3, 0.1, 0.6)) * (rng.random() > 0.2)
        points[points[:, 2] == 0] = 0
        visible = int((points[:, 2] > 0).sum())
        return {"keypoints": points.astype(int).ravel().tolist(), "num_keypoints": visible}

    def detections(self, rng: np.random.Generator, image_id: int, count: int) -> list[dict]:
        num_true = min(4 * len(self.classes), count)
        of = np.arange(num_true) % max(len(self.classes), 1)
        found = self.draw(rng, self.kind, count, self.height, self.width)
        noise = np.exp(rng.normal(-2.6, 0.8, num_true))  # how far off, relative to its size

        boxes, shapes = self.boxes[of], self.shapes[of]
        boxes[:, :2] += rng.normal(0, 1, (num_true, 2)) * noise[:, None] * boxes[:, 2:]
        boxes[:, 2:] *= np.exp(rng.normal(0, 1, (num_true, 2)) * noise[:, None])
        blur = noise.reshape(-1, *[1] * (shapes.ndim - 1))
        shapes += rng.normal(0, 0.4, shapes.shape) * blur
        classes = np.where(rng.random(num_true) < 0.85, self.classes[of], found.classes[:num_true])
        scores = rng.exponential(0.15, count)
        scores[:num_true] = 0.95 - 1.2 * noise + rng.normal(0, 0.15, num_true)
        scores = scores.clip(0.05, 1).round(3)

        found = _Objects(
            self.kind,
            self.height,
            self.width,
            np.concatenate([classes, found.classes[num_true:]]),
            np.concatenate([boxes, found.boxes[num_true:]]),
            np.concatenate([shapes, found.shapes[num_true:]]),
        )
        results = [
            {"image_id": image_id, "category_id": category - 1, "bbox": box, "score": score}
            for category, box, score in zip(
                found.classes.tolist(), found.boxes.tolist(), scores.tolist(), strict=True
            )
        ]
        if self.kind == "instances":
            limits = [self.width, self.height] * len(CIRCLE)
            polygons = list(found.polygons().clip(0, limits))
            masks = mask_util.frPyObjects(polygons, self.height, self.width)
            for result, mask in zip(results, masks, strict=True):
                result["segmentation"] = {**mask, "counts": mask["counts"].decode()}
        else:
            seen = rng.uniform(0, 1, (count, len(POSE), 1))
            for result, points in zip(results, np.dstack([found.keypoints(), seen]), strict=True):
                result["keypoints"] = points.ravel().tolist()
        return sorted(results, key=lambda result: -result["score"])
